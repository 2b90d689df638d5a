"""Reading a Stable Diffusion checkpoint and putting the scoring model together from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.manifest import ScoreKind
from dsd_trt.train.adapter import Adapter
from dsd_trt.train.layers import inner_widths
from dsd_trt.train.noise import DEFAULT_LEVELS, noise_levels
from dsd_trt.train.pooling import Pooling
from dsd_trt.train.prompts import AttentionPrompts
from dsd_trt.train.scoring_unet import Prediction, ScoringUNet
from dsd_trt.train.source import EMBEDDED, ModelSource, find_model

TokenMask = Literal["words_eos", "words", "all"]
TOKEN_MASKS: tuple[str, ...] = get_args(TokenMask)
_PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


@dataclass(frozen=True)
class Checkpoint:
    """A latent diffusion model, FP32, in evaluation mode, frozen.

    Attributes:
        source: where it came from.
        vae: image autoencoder.
        text_encoder: CLIP text model.
        tokenizer: its tokenizer.
        unet: the denoising U-Net.
        alphas_cumprod: abar of the noise schedule, (T,).
        prediction: what the U-Net was trained to predict.
        resolution: side of the pictures it was trained on, in pixels.
        weight_hashes: sha256 of each weight file, by its path in the folder.
    """

    source: ModelSource
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    prediction: Prediction
    resolution: int
    weight_hashes: dict[str, str]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        side = int(self.unet.config["sample_size"])
        return int(self.unet.config["in_channels"]), side, side


class ImageEncoder(nn.Module):
    """Pixels to latent: the posterior mean, not a sample, times the scaling factor."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode.

        Args:
            pixels: uint8 (images, H, W, 3).

        Returns:
            z, (images, C, h, w), in the VAE's precision.
        """
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return moments.mean * self.vae.config["scaling_factor"]


class TextEncoder(nn.Module):
    """Token ids to the text encoder's last hidden state, as Stable Diffusion's pipeline uses it."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode int (texts, 77) to r_y, (texts, 77, D)."""
        return self.text_encoder(input_ids).last_hidden_state


def load_checkpoint(model: str | Path = EMBEDDED) -> Checkpoint:
    """Read a model in diffusers' format.

    Args:
        model: what `find_model` takes: "shapes", a folder, or a repository on the hub.

    Raises:
        ModelError: no such model, or a part of it is missing or unreadable.
    """
    source = find_model(model)
    folder = source.folder
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(
            f"{folder} is not a Stable Diffusion folder in diffusers' format: it has no "
            f"{', '.join(missing)}"
        )
    try:
        # Half-precision files are read into FP32: the reference computes in FP32 throughout.
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, attn_implementation="sdpa"
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the model in {folder}: {error}") from error
    for part in (vae, unet, text_encoder):
        part.eval().requires_grad_(False)
    scale = 2 ** (len(vae.config["block_out_channels"]) - 1)
    return Checkpoint(
        source=source,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction=_prediction(folder, scheduler),
        resolution=int(unet.config["sample_size"]) * scale,
        weight_hashes=weight_hashes(folder),
    )


def _prediction(folder: Path, scheduler: DDPMScheduler) -> Prediction:
    kind = scheduler.config["prediction_type"]
    if kind not in get_args(Prediction):
        raise ModelError(
            f"{folder}/scheduler: prediction_type is {kind!r}; known are "
            f"{', '.join(get_args(Prediction))}"
        )
    return cast("Prediction", kind)


def build_scoring_unet(
    checkpoint: Checkpoint,
    adapter: Adapter | None = None,
    *,
    score_layers: str | Sequence[int] = "all",
    levels: tuple[float, ...] = DEFAULT_LEVELS,
    noise_seed: int = 0,
    pooling: Pooling = "lse",
    lam: float = 20.0,
    score: ScoreKind | None = None,
) -> ScoringUNet:
    """Put the scoring model together.

    Args:
        checkpoint: the base model.
        adapter: few-shot adapter, or None for the zero-shot score.
        score_layers: as in `ScoringUNet`.
        levels: noise levels s.
        noise_seed: names the noise.
        pooling: as in `ScoringUNet`.
        lam: as in `ScoringUNet`.
        score: which score it is for; None is the adapter's, or "attention" without one.

    Raises:
        ModelError: the adapter was trained on other weights or for another score, or its head
            weights on other layers.
        ValueError: layers or levels that do not exist.
    """
    prompts = None
    if adapter is not None:
        adapter.require_base(checkpoint.weight_hashes)
        adapter.require_score(score or adapter.score)
        prompts = build_prompts(checkpoint.unet, adapter)
    scoring = ScoringUNet(
        checkpoint.unet,
        noise_levels(checkpoint.alphas_cumprod, checkpoint.latent_shape, levels, noise_seed),
        score_layers=score_layers,
        pooling=pooling,
        lam=lam,
        prompts=prompts,
        dynamic_heads=adapter is not None and adapter.head_mode == "dynamic",
        denoising=(score or (adapter.score if adapter else "attention")) != "attention",
        prediction=checkpoint.prediction,
    )
    if adapter is not None:
        weights = adapter.weights_of(scoring.score_layers, scoring.heads)
        scoring.head_weights.copy_(torch.cat(weights))
    return scoring.eval()


def build_prompts(unet: UNet2DConditionModel, adapter: Adapter) -> AttentionPrompts:
    """The adapter's prompts for a U-Net, with their learned values."""
    text_width = int(unet.config["cross_attention_dim"])
    prompts = AttentionPrompts(inner_widths(unet), text_width, adapter.prompt_config)
    prompts.load_state_dict(adapter.prompt_state)
    return prompts.requires_grad_(False)


def token_mask(input_ids: Tensor, eos_id: int, counted: TokenMask = "words_eos") -> Tensor:
    """1 where a token counts in the score's mean (Eq. 4).

    Args:
        input_ids: BOS, words, EOS, padding, (texts, 77).
        eos_id: the id of EOS; the first one ends the text, later ones are padding.
        counted: "words_eos", "words" or "all".

    Returns:
        FP32 (texts, 77).
    """
    if counted == "all":
        return torch.ones(input_ids.shape)
    places = torch.arange(input_ids.shape[1])
    end = (input_ids == eos_id).int().argmax(dim=1, keepdim=True)
    last = end if counted == "words_eos" else end - 1
    return ((places > 0) & (places <= last)).float()


@torch.no_grad()
def encode_texts(
    checkpoint: Checkpoint, texts: list[str], counted: TokenMask = "words_eos"
) -> tuple[Tensor, Tensor]:
    """Text states (texts, 77, D) and token masks (texts, 77) of some texts."""
    ids = checkpoint.tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    states = checkpoint.text_encoder(ids).last_hidden_state
    return states, token_mask(ids, checkpoint.tokenizer.eos_token_id, counted)


def weight_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every weight file of a model, by its path in the folder."""
    weights = sorted(
        path
        for part in ("vae", "text_encoder", "unet")
        for path in (folder / part).glob("*.safetensors")
    )
    return {path.relative_to(folder).as_posix(): sha256(path) for path in weights}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "TOKEN_MASKS",
    "Checkpoint",
    "ImageEncoder",
    "TextEncoder",
    "TokenMask",
    "build_prompts",
    "build_scoring_unet",
    "encode_texts",
    "load_checkpoint",
    "token_mask",
    "weight_hashes",
]
