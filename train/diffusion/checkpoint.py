"""A Stable Diffusion checkpoint, whose parts are validated first and read on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from dsd_trt.bundle.method import TokenMask
from dsd_trt.errors import ModelError
from dsd_trt.files.whole import sha256_of
from dsd_trt.log import get_logger
from dsd_trt.train.diffusion.clip_tokenizer import require_embedding
from dsd_trt.train.diffusion.declared import require_tokenizer, text_fields, unet_fields, vae_fields
from dsd_trt.train.diffusion.encoders import DualTextEncoder, ImageEncoder, TextEncoder
from dsd_trt.train.diffusion.families import TOKENS, Prediction
from dsd_trt.train.diffusion.folder import ModelFolder
from dsd_trt.train.diffusion.place import EMBEDDED, PARTS, require_parts
from dsd_trt.train.diffusion.single_file import SingleFile
from dsd_trt.train.diffusion.source import ModelSource, find_model
from dsd_trt.train.run.memory import release_freed_memory

logger = get_logger(__name__)

_SECOND = ("text_encoder_2", "tokenizer_2")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checkpoint:
    """A latent diffusion model whose parts are read at first access.

    The properties `image_encoder`, `text_encoder` and `unet` are cached, in FP32 (the reference's
    precision), frozen and in evaluation mode. The `read_*` methods read a part again, in any
    precision, and cache nothing.

    Attributes:
        source: origin of the model: its name, its parts and its revision.
        tokenizer: tokenizer of the first text encoder.
        alphas_cumprod: abar of the noise schedule, (T,).
        prediction: training target of the U-Net, "epsilon" or "v_prediction".
        unet_config: complete configuration of the U-Net, see `unet_fields`.
        vae_config: complete configuration of the VAE, see `vae_fields`.
        text_configs: complete configuration of each text encoder, see `text_fields`.
        device: device the parts are read onto.
    """

    source: ModelSource
    tokenizer: CLIPTokenizer
    alphas_cumprod: Tensor
    prediction: Prediction
    unet_config: dict[str, Any]
    vae_config: dict[str, Any]
    text_configs: tuple[dict[str, Any], ...]
    device: torch.device = _CPU

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """The VAE's encoder in FP32, cached."""
        return self.read_image_encoder()

    @cached_property
    def text_encoder(self) -> TextEncoder | DualTextEncoder:
        """The text encoder, or both of them, in FP32, cached."""
        return self.read_text_encoder()

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising U-Net in FP32, cached."""
        return self.read_unet()

    def forget(self) -> None:
        """Free the cached parts, which are read again at the next access."""
        for part in ("image_encoder", "text_encoder", "unet"):
            self.__dict__.pop(part, None)
        release_freed_memory()

    def read_image_encoder(self, dtype: torch.dtype = torch.float32) -> ImageEncoder:
        """Read the VAE's encoder with weights of type `dtype`."""
        vae = self._read("vae", dtype)
        vae.decoder = None  # scoring never decodes
        return ImageEncoder(vae).eval()

    def read_text_encoder(
        self, dtype: torch.dtype = torch.float32
    ) -> TextEncoder | DualTextEncoder:
        """Read the text encoder, or both of them, with weights of type `dtype`."""
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
        """Read the U-Net with weights of type `dtype`."""
        unet: UNet2DConditionModel = self._read("unet", dtype)
        return unet

    def empty_unet(self) -> UNet2DConditionModel:
        """The U-Net on the meta device, without weights, for its layers and sizes."""
        with torch.device("meta"):
            unet: UNet2DConditionModel = UNet2DConditionModel.from_config(self.unet_config)
        return unet.requires_grad_(False)

    def _read(self, part: str, dtype: torch.dtype) -> Any:
        module = self.source.parts.read(part, dtype).eval().requires_grad_(False)
        return module.to(self.device)

    @cached_property
    def weight_hashes(self) -> dict[str, str]:
        """sha256 of each weight file, by its name.

        All weights are checked to be finite as well: the files are in memory at this point, and
        the caller is about to spend minutes on them.

        Raises:
            ModelError: a weight is NaN or infinite; the message names the first.
        """
        hashes = {name: sha256_of(path) for name, path in self.weight_files.items()}
        for part in self.weight_parts:
            self.source.parts.check_numbers(part)
        return hashes

    @property
    def weight_parts(self) -> tuple[str, ...]:
        """Names of the parts that have weights."""
        return ("vae", "text_encoder", *_SECOND[:1] * self.has_pooled_text, "unet")

    @property
    def weight_files(self) -> dict[str, Path]:
        """Path of each weight file, by its name."""
        return self.source.parts.weight_files(self.weight_parts)

    @property
    def has_pooled_text(self) -> bool:
        """Whether the U-Net is also conditioned on the pooled text, as in Stable Diffusion XL."""
        return bool(self.unet_config["addition_embed_type"] == "text_time")

    @property
    def vae_overflows(self) -> bool:
        """Whether the VAE overflows in FP16, according to its `force_upcast`."""
        return bool(self.vae_config["force_upcast"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of one latent."""
        side = int(self.unet_config["sample_size"])
        return int(self.unet_config["in_channels"]), side, side

    @property
    def text_width(self) -> int:
        """D, the number of features of a text state."""
        return int(self.unet_config["cross_attention_dim"])

    @property
    def vocabulary(self) -> int:
        """Number of rows of the text encoders' token embeddings."""
        return int(self.text_configs[0]["vocab_size"])

    @property
    def resolution(self) -> int:
        """Side of the training images, in pixels."""
        scale = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        return int(self.unet_config["sample_size"]) * scale


def read_checkpoint(model: str | Path = EMBEDDED, device: torch.device = _CPU) -> Checkpoint:
    """Open a checkpoint and validate it; its weights are read later, on demand.

    Args:
        model: "shapes", a folder, a single file or a repository on the hub, see `find_model`.
        device: device the parts are read onto.

    Raises:
        ModelError: the model does not exist, is not of the Stable Diffusion family, or has a part
            that is missing or unreadable.
    """
    source = find_model(model)
    parts = source.parts
    require_parts(parts, {part: parts.has(part) for part in PARTS})
    unet_config, vae_config, *text_configs = _require_parts_that_fit(parts)
    scheduler = parts.scheduler()
    tokenizer = _tokenizer(parts, "tokenizer")
    checkpoint = Checkpoint(
        source=source,
        tokenizer=tokenizer,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction=scheduler.config["prediction_type"],
        unet_config=unet_config,
        vae_config=vae_config,
        text_configs=tuple(text_configs),
        device=device,
    )
    _require_tokens(checkpoint)
    for part in checkpoint.weight_parts:
        parts.check(part)
    logger.info("the model %s is read onto %s, in PyTorch", parts, device)
    return checkpoint


def _require_tokens(checkpoint: Checkpoint) -> None:
    """Refuse tokenizers that do not match their text encoders' embeddings, or each other."""
    parts, first = checkpoint.source.parts, checkpoint.tokenizer
    require_embedding(first, checkpoint.vocabulary, f"{parts}, tokenizer")
    if not checkpoint.has_pooled_text:
        return
    second = parts.tokenizer("tokenizer_2")
    rows = int(checkpoint.text_configs[1]["vocab_size"])
    require_embedding(second, rows, f"{parts}, tokenizer_2")
    if different := sorted(first.get_vocab().items() ^ second.get_vocab().items()):
        raise ModelError(
            f"{parts}: the token {different[0][0]!r} is not the same in tokenizer and tokenizer_2; "
            "both must give it the same id"
        )


def _require_parts_that_fit(parts: ModelFolder | SingleFile) -> list[dict[str, Any]]:
    """Refuse models that are not of the Stable Diffusion family, before any weights are read.

    Returns:
        Complete configurations of the U-Net, the VAE and each text encoder, in this order.
    """
    unet = _declared(parts, "unet", unet_fields)
    with_pooled_text = unet["addition_embed_type"] == "text_time"
    vae = _declared(parts, "vae", partial(vae_fields, with_pooled_text=with_pooled_text))
    texts = [_declared(parts, "text_encoder", text_fields)]
    if with_pooled_text:
        if missing := [part for part in _SECOND if not parts.has(part)]:
            raise ModelError(f"{parts} is a Stable Diffusion XL without {', '.join(missing)}")
        eos_id = _tokenizer(parts, "tokenizer_2").eos_token_id
        texts += [_declared(parts, "text_encoder_2", partial(text_fields, eos_id=eos_id))]
    wanted = {
        "in_channels": (vae["latent_channels"], "the VAE's latent_channels"),
        "out_channels": (vae["latent_channels"], "the VAE's latent_channels"),
        "cross_attention_dim": (
            sum(text["hidden_size"] for text in texts),
            "the text's hidden_size",
        ),
    }
    if with_pooled_text:  # the refiner is conditioned on five numbers of the image, not six
        width = 6 * unet["addition_time_embed_dim"] + texts[1]["projection_dim"]
        whose = "six addition_time_embed_dim and the second text encoder's projection_dim"
        wanted["projection_class_embeddings_input_dim"] = width, whose
    for field, (value, whose) in wanted.items():
        if unet[field] != value:
            raise ModelError(
                f"{parts}, unet: {field} is {unet[field]}, expected {whose}, {value}: not a "
                "text-to-image model of the Stable Diffusion family"
            )
    return [unet, vae, *texts]


def _declared(
    parts: ModelFolder | SingleFile,
    part: str,
    complete: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Complete configuration of a part; unknown fields are refused."""
    try:
        return complete(parts.config(part))
    except ValueError as error:
        raise ModelError(f"{parts}, {part}: {error}") from error


def _tokenizer(parts: ModelFolder | SingleFile, part: str) -> CLIPTokenizer:
    """Read a tokenizer, and refuse one whose token order the text encoders do not expect."""
    tokenizer = parts.tokenizer(part)
    try:
        require_tokenizer(tokenizer)
    except ValueError as error:
        raise ModelError(f"{parts}, {part}: {error}") from error
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, truncated and padded to the text encoder's length, int64 (texts, 77)."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return ids


def token_mask(input_ids: Tensor, eos_id: int, counted: TokenMask = "words_eos") -> Tensor:
    """Mask of the tokens that count in the score's mean (Eq. 4).

    Args:
        input_ids: token ids of BOS, words, EOS and padding, (texts, 77).
        eos_id: token id of EOS; the first one ends the text, later ones are padding.
        counted: tokens that count: "words_eos", "words" or "all".

    Returns:
        1 where a token counts, else 0, FP32 (texts, 77).
    """
    if counted == "all":
        return torch.ones(input_ids.shape, device=input_ids.device)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    end = (input_ids == eos_id).int().argmax(dim=1, keepdim=True)
    last = end if counted == "words_eos" else end - 1
    return ((places > 0) & (places <= last)).float()


@torch.no_grad()
def encode_texts(
    checkpoint: Checkpoint, texts: list[str], counted: TokenMask = "words_eos"
) -> tuple[Tensor, Tensor]:
    """Encode texts; the results are in main memory, whatever the text encoder's device.

    Args:
        checkpoint: checkpoint with tokenizer and text encoder.
        texts: texts to encode, truncated to 77 tokens each.
        counted: tokens that count in the score's mean, see `token_mask`.

    Returns:
        Text states r_y, (texts, rows, D) with 77 rows or, with the pooled text, 78; and token
        masks, FP32 (texts, 77).
    """
    ids = tokenize(checkpoint.tokenizer, texts)
    states = checkpoint.text_encoder(ids.to(checkpoint.device)).cpu()
    return states, token_mask(ids, checkpoint.tokenizer.eos_token_id, counted)
