"""Reading a Stable Diffusion checkpoint and putting the scoring model together from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.manifest import ScoreKind
from dsd_trt.train.adapter import Adapter
from dsd_trt.train.encoders import DualTextEncoder, ImageEncoder, TextEncoder
from dsd_trt.train.layers import inner_widths, last_of_each_stage, require_stable_diffusion
from dsd_trt.train.model_folder import ModelFolder
from dsd_trt.train.noise import DEFAULT_LEVELS, noise_levels
from dsd_trt.train.pooling import Pooling
from dsd_trt.train.prompts import AttentionPrompts, PromptConfig
from dsd_trt.train.scoring_unet import Prediction, ScoringUNet
from dsd_trt.train.single_file import SingleFile
from dsd_trt.train.source import EMBEDDED, ModelSource, find_model

TokenMask = Literal["words_eos", "words", "all"]
TOKEN_MASKS: tuple[str, ...] = get_args(TokenMask)
_PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
_SECOND = ("text_encoder_2", "tokenizer_2")


@dataclass(frozen=True)
class Checkpoint:
    """A latent diffusion model whose parts are read when they are first asked for.

    The parts asked for by name are in FP32, the reference's precision, in evaluation mode, frozen,
    and kept; `read_*` reads one anew, in any precision, and keeps nothing.

    Attributes:
        source: where it came from.
        tokenizer: of the first text encoder.
        alphas_cumprod: abar of the noise schedule, (T,).
        prediction: what the U-Net was trained to predict.
        unet_config: the U-Net's `config.json`.
        vae_config: the VAE's.
    """

    source: ModelSource
    tokenizer: CLIPTokenizer
    alphas_cumprod: Tensor
    prediction: Prediction
    unet_config: dict[str, Any]
    vae_config: dict[str, Any]

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """The VAE's encoder, FP32."""
        return self.read_image_encoder()

    @cached_property
    def text_encoder(self) -> TextEncoder | DualTextEncoder:
        """All of the text encoders, FP32."""
        return self.read_text_encoder()

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising U-Net, FP32."""
        return self.read_unet()

    def forget(self) -> None:
        """Let go of the parts that were kept; they are read again when asked for."""
        for part in ("image_encoder", "text_encoder", "unet"):
            self.__dict__.pop(part, None)

    def read_image_encoder(self, dtype: torch.dtype = torch.float32) -> ImageEncoder:
        """Read the VAE."""
        vae = self._read("vae", dtype)
        vae.decoder = None  # nothing here makes pictures
        return ImageEncoder(vae).eval()

    def read_text_encoder(
        self, dtype: torch.dtype = torch.float32
    ) -> TextEncoder | DualTextEncoder:
        """Read the text encoder, or both."""
        first = self._read("text_encoder", dtype)
        if not self.has_pooled_text:
            return TextEncoder(first).eval()
        second = self._read("text_encoder_2", dtype)
        other = self.source.parts.tokenizer("tokenizer_2")
        mark_id = self.tokenizer.convert_tokens_to_ids(f"{other.pad_token}</w>")
        return DualTextEncoder(
            first, second, self.tokenizer.eos_token_id, other.pad_token_id, mark_id
        ).eval()

    def read_unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """Read the U-Net."""
        unet: UNet2DConditionModel = self._read("unet", dtype)
        return unet

    def empty_unet(self) -> UNet2DConditionModel:
        """The U-Net without its weights, in no time: to ask for layers and sizes."""
        with torch.device("meta"):
            unet: UNet2DConditionModel = UNet2DConditionModel.from_config(self.unet_config)
        return unet.requires_grad_(False)

    def _read(self, part: str, dtype: torch.dtype) -> Any:
        return self.source.parts.read(part, dtype).eval().requires_grad_(False)

    @cached_property
    def weight_hashes(self) -> dict[str, str]:
        """sha256 of each weight file, by its name."""
        return {name: sha256(path) for name, path in self.source.parts.weight_files().items()}

    @property
    def has_pooled_text(self) -> bool:
        """Whether the U-Net is conditioned on the text as a whole, too: Stable Diffusion XL's."""
        return self.unet_config.get("addition_embed_type") == "text_time"

    @property
    def vae_overflows(self) -> bool:
        """Whether the VAE says that it does not compute in FP16."""
        return bool(self.vae_config.get("force_upcast", False))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        side = int(self.unet_config["sample_size"])
        return int(self.unet_config["in_channels"]), side, side

    @property
    def text_width(self) -> int:
        """D, the width of a text state."""
        return int(self.unet_config["cross_attention_dim"])

    @property
    def resolution(self) -> int:
        """Side of the pictures it was trained on, in pixels."""
        scale = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        return int(self.unet_config["sample_size"]) * scale


def load_checkpoint(model: str | Path = EMBEDDED) -> Checkpoint:
    """Open a model in diffusers' format; its weights are read when they are needed.

    Args:
        model: what `find_model` takes: "shapes", a folder, a file, or a repository on the hub.

    Raises:
        ModelError: no such model, a part of it is missing or unreadable, or it is none of the
            Stable Diffusion family.
    """
    source = find_model(model)
    parts = source.parts
    if missing := [part for part in _PARTS if not parts.has(part)]:
        raise ModelError(
            f"{parts} is no Stable Diffusion in diffusers' format: it has no {', '.join(missing)}"
        )
    unet_config, vae_config = parts.config("unet"), parts.config("vae")
    try:
        _require_parts_that_fit(parts, unet_config, vae_config)
    except KeyError as error:
        raise ModelError(f"{parts}: a config.json has no {error}") from error
    scheduler = parts.scheduler()
    return Checkpoint(
        source=source,
        tokenizer=parts.tokenizer(),
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction=_prediction(parts, scheduler),
        unet_config=unet_config,
        vae_config=vae_config,
    )


def _require_parts_that_fit(
    parts: ModelFolder | SingleFile, unet: dict[str, Any], vae: dict[str, Any]
) -> None:
    """Refuse what is not of the Stable Diffusion family, before gigabytes are read."""
    try:
        require_stable_diffusion(unet)
    except ValueError as error:
        raise ModelError(f"{parts}, unet: {error}") from error
    encoders = ["text_encoder"]
    if unet.get("addition_embed_type") == "text_time":
        encoders += ["text_encoder_2"]
        if missing := [part for part in _SECOND if not parts.has(part)]:
            raise ModelError(f"{parts} is a Stable Diffusion XL without {', '.join(missing)}")
    text_width = sum(int(parts.config(part)["hidden_size"]) for part in encoders)
    for field, value, wanted, whose in (
        ("in_channels", unet["in_channels"], vae["latent_channels"], "the VAE's latent_channels"),
        ("cross_attention_dim", unet["cross_attention_dim"], text_width, "the text's hidden_size"),
    ):
        if value != wanted:
            raise ModelError(
                f"{parts}, unet: {field} is {value}, expected is {whose}, {wanted}: not a "
                "text-to-image model of the Stable Diffusion family"
            )


def _prediction(parts: ModelFolder | SingleFile, scheduler: DDPMScheduler) -> Prediction:
    kind = scheduler.config["prediction_type"]
    if kind not in get_args(Prediction):
        raise ModelError(
            f"{parts}, scheduler: prediction_type is {kind!r}; known are "
            f"{', '.join(get_args(Prediction))}"
        )
    return cast("Prediction", kind)


def build_scoring_unet(
    checkpoint: Checkpoint,
    adapter: Adapter | None = None,
    *,
    score_layers: str | Sequence[int] = "all",
    levels: tuple[float, ...] | None = None,
    noise_seed: int = 0,
    pooling: Pooling = "lse",
    lam: float = 20.0,
    score: ScoreKind | None = None,
    unet: UNet2DConditionModel | None = None,
) -> ScoringUNet:
    """Put the scoring model together.

    Args:
        checkpoint: the base model.
        adapter: few-shot adapter, or None for the zero-shot score.
        score_layers: as in `ScoringUNet`.
        levels: noise levels s; None is those the adapter was trained at, or 0.2, 0.4, 0.6, 0.8.
        noise_seed: names the noise.
        pooling: as in `ScoringUNet`.
        lam: as in `ScoringUNet`.
        score: which score it is for; None is the adapter's, or "attention" without one. "released"
            has a pooling and layers of its own: the last of each of the U-Net's blocks.
        unet: the checkpoint's U-Net, read by the caller, for whom it is changed where the adapter
            changes weights; None is the one the checkpoint keeps.

    Raises:
        ModelError: the adapter was trained on other weights or for another score, or its head
            weights on other layers.
        ValueError: layers or levels that do not exist.
    """
    score = score or (adapter.score if adapter else "attention")
    levels = levels or (adapter.levels if adapter else ()) or DEFAULT_LEVELS
    prompts = None
    if adapter is not None:
        adapter.require_base(checkpoint.weight_hashes)
        adapter.require_score(score)
        if adapter.merged:
            unet = unet or checkpoint.read_unet()
            adapter.merge_into(unet)
        if adapter.prompt_config is not None:
            prompts = build_prompts(unet or checkpoint.unet, adapter, adapter.prompt_config)
    unet = unet or checkpoint.unet
    if score == "released":
        if score_layers != "all":
            raise ValueError('the score "released" has layers of its own: leave --score-layers')
        pooling, score_layers = "logits", last_of_each_stage(unet)
    scoring = ScoringUNet(
        unet,
        noise_levels(checkpoint.alphas_cumprod, checkpoint.latent_shape, levels, noise_seed),
        score_layers=score_layers,
        pooling=pooling,
        lam=lam,
        prompts=prompts,
        dynamic_heads=adapter is not None and adapter.head_mode == "dynamic",
        denoising=score != "attention",
        prediction=checkpoint.prediction,
        resolution=checkpoint.resolution,
    )
    if score == "released":
        each = [torch.full((heads,), 1 / heads) for heads in scoring.heads]
        scoring.head_weights.copy_(torch.cat(each) / len(each))  # every layer counts the same
    elif adapter is not None:
        weights = adapter.weights_of(scoring.score_layers, scoring.heads)
        scoring.head_weights.copy_(torch.cat(weights))
    return scoring.eval()


def build_prompts(
    unet: UNet2DConditionModel, adapter: Adapter, config: PromptConfig
) -> AttentionPrompts:
    """The adapter's prompts for a U-Net, with their learned values."""
    text_width = int(unet.config["cross_attention_dim"])
    prompts = AttentionPrompts(inner_widths(unet), text_width, config)
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
    """Text states r_y (texts, rows, D), see `Checkpoint.text_encoder`, and masks (texts, 77)."""
    ids = checkpoint.tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    return checkpoint.text_encoder(ids), token_mask(ids, checkpoint.tokenizer.eos_token_id, counted)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "TOKEN_MASKS",
    "Checkpoint",
    "TokenMask",
    "build_prompts",
    "build_scoring_unet",
    "encode_texts",
    "load_checkpoint",
    "token_mask",
]
