"""Encoders of images and texts, computed once per image and once per text.

They match Stable Diffusion's own pipelines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class ImageEncoder(nn.Module):
    """From pixels to the latent z: the VAE's posterior mean times its scaling factor.

    Some VAEs of Stable Diffusion XL specify mean and standard deviation of the latent's channels;
    the latent is then normalised by them too.

    Args:
        vae: VAE of the checkpoint.
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
        """Encode images.

        Args:
            pixels: RGB pixels, uint8 (images, H, W, 3).

        Returns:
            Clean latent z, (images, C, h, w), in the VAE's precision.
        """
        # Converted before permuting, because TensorRT cannot permute uint8.
        images = pixels.float().permute(0, 3, 1, 2) / 127.5 - 1  # (images, 3, H, W)
        moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        latent = moments.mean
        if self.statistics is not None:
            mean, std = (number.to(latent) for number in self.statistics)
            latent = (latent - mean) / std
        return latent * self.vae.config["scaling_factor"]


class TextEncoder(nn.Module):
    """From token ids to the text encoder's last hidden state r_y.

    Args:
        text_encoder: text encoder of the checkpoint.
    """

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Text states r_y, (texts, 77, D), of token ids, integer (texts, 77)."""
        return self.text_encoder(input_ids).last_hidden_state


class DualTextEncoder(nn.Module):
    """Stable Diffusion XL's two text encoders, whose states are concatenated.

    Inputs are ids of the first tokenizer, from which those of the second are derived. The derived
    ids are wrong only for several punctuation marks in a row with a "!" among them: the first
    tokenizer merges these into one token, the second does not.

    Args:
        first: text encoder whose second-to-last hidden state is the first part of r_y.
        second: text encoder whose second-to-last hidden state is the second part of r_y, and
            whose pooled text conditions the U-Net.
        eos_id: token id of EOS in both tokenizers.
        pad_id: token id of the second tokenizer's padding, "!".
        mark_id: id of "!" in the first tokenizer; the second tokenizer pads with it.
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
        self.first: CLIPTextModel = first
        self.second: CLIPTextModelWithProjection = second
        self.eos_id: int = eos_id
        self.pad_id: int = pad_id
        self.mark_id: int = mark_id

    def forward(self, input_ids: Tensor) -> Tensor:
        """Text states r_y with the pooled text as last row, (texts, 78, D).

        One tensor per text gives the graphs of all families the same signature. The pooled text
        is padded with zeros to D.

        Args:
            input_ids: token ids of the first tokenizer, integer (texts, 77).
        """
        first = self.first(input_ids, output_hidden_states=True).hidden_states[-2]
        eos = (input_ids == self.eos_id).int()
        padding = eos.cumsum(dim=1) - eos > 0  # (texts, 77): everything after the first EOS
        ids = torch.where(padding | (input_ids == self.mark_id), self.pad_id, input_ids)
        out = self.second(ids, output_hidden_states=True)
        states = torch.cat([first, out.hidden_states[-2]], dim=2)  # (texts, 77, D)
        pooled = F.pad(out.text_embeds, (0, states.shape[2] - out.text_embeds.shape[1]))
        return torch.cat([states, pooled[:, None]], dim=1)
