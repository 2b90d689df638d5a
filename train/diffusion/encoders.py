"""What is computed once an image and once a text, as Stable Diffusion's pipelines compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class ImageEncoder(nn.Module):
    """Pixels to latent: the posterior mean, not a sample, times the scaling factor.

    Where the VAE's config has means and deviations of the latents' channels, as a few of Stable
    Diffusion XL have, the latent is normalised by them too.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.statistics: tuple[Tensor, Tensor] | None = None  # of each channel, (C, 1, 1)
        if vae.config["latents_mean"] is not None:
            mean, std = (
                torch.tensor(vae.config[field], dtype=torch.float32).view(-1, 1, 1)
                for field in ("latents_mean", "latents_std")
            )
            self.statistics = mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode.

        Args:
            pixels: uint8 (images, H, W, 3).

        Returns:
            z, (images, C, h, w), in the VAE's precision.
        """
        images = pixels.float().permute(0, 3, 1, 2) / 127.5 - 1  # TensorRT permutes no uint8
        moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        latent = moments.mean
        if self.statistics is not None:
            mean, std = (number.to(latent) for number in self.statistics)
            latent = (latent - mean) / std
        return latent * self.vae.config["scaling_factor"]


class TextEncoder(nn.Module):
    """Token ids to the text encoder's last hidden state."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode int (texts, 77) to r_y, (texts, 77, D)."""
        return self.text_encoder(input_ids).last_hidden_state


class DualTextEncoder(nn.Module):
    """Stable Diffusion XL's two text encoders, side by side.

    Args:
        first: its last state but one is the first part of each text state.
        second: likewise the second part; its pooled text conditions the U-Net as a whole.
        eos_id: of both tokenizers.
        pad_id: what the second encoder's tokenizer pads with, "!".
        mark_id: the first one's id of an exclamation mark, which the second takes for padding.

    The ids that come in are the first tokenizer's; the second's are told from them. They agree on
    every text but those with several punctuation marks in a row, a "!" among them, which the first
    joins to one token and the second does not.
    """

    def __init__(
        self,
        first: CLIPTextModel,
        second: CLIPTextModelWithProjection,
        eos_id: int,
        pad_id: int,
        mark_id: int,
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.eos_id, self.pad_id, self.mark_id = eos_id, pad_id, mark_id

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode int (texts, 77) to r_y with the pooled text as a last row, (texts, 78, D).

        One tensor a text, whatever the family, keeps every graph's signature the same. The row is
        filled up with zeros.
        """
        first = self.first(input_ids, output_hidden_states=True).hidden_states[-2]
        eos = (input_ids == self.eos_id).int()
        padding = eos.cumsum(dim=1) - eos > 0  # all after the first EOS
        ids = torch.where(padding | (input_ids == self.mark_id), self.pad_id, input_ids)
        out = self.second(ids, output_hidden_states=True)
        states = torch.cat([first, out.hidden_states[-2]], dim=2)  # (texts, 77, D)
        pooled = F.pad(out.text_embeds, (0, states.shape[2] - out.text_embeds.shape[1]))
        return torch.cat([states, pooled[:, None]], dim=1)
