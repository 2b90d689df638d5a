"""Configurations of a checkpoint's parts, interpreted as by diffusers' pipelines, or refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from dsd_trt.train.diffusion.clip_tokenizer import BOS, EOS
from dsd_trt.train.diffusion.families import LEGACY_EOS, TOKENS
from dsd_trt.train.diffusion.fields import TEXT_ENCODER, UNET, VAE, require_known, unexpected
from dsd_trt.train.diffusion.kinds import COUNT, is_count, is_number

_OLD = (0, 9)  # before this release of diffusers, the U-Net's sample_size may be wrong
_OLD_SAMPLE_SIZE = 64


def unet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A U-Net's complete configuration; `sample_size` and `cross_attention_dim` become integers.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    fields = _complete(UNet2DConditionModel, config)
    require_known(fields, UNET)
    fields["cross_attention_dim"] = _one_width(fields["cross_attention_dim"])
    counted = ["cross_attention_dim"]
    if fields["addition_embed_type"] is not None:
        counted += ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
    _require_counts(fields, *counted)
    fields["sample_size"] = _sample_size(fields)
    return fields


def vae_fields(config: Mapping[str, Any], *, with_pooled_text: bool) -> dict[str, Any]:
    """A VAE's complete configuration.

    Args:
        config: content of the part's `config.json`.
        with_pooled_text: whether the VAE is a Stable Diffusion XL's, whose pipelines alone read
            `latents_mean`, `latents_std` and `force_upcast`.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    fields = _complete(AutoencoderKL, config)
    require_known(fields, VAE)
    if "force_upcast" not in config:  # the library's default fits Stable Diffusion XL alone
        fields["force_upcast"] = with_pooled_text
    _check_latent_statistics(fields, with_pooled_text)
    return fields


def text_fields(config: Mapping[str, Any], eos_id: int | None = None) -> dict[str, Any]:
    """A text encoder's complete configuration.

    Args:
        config: content of the part's `config.json`.
        eos_id: token id of the tokenizer's EOS, at which the text is pooled; None if the pooled
            text is not used.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    fields = _complete(CLIPTextConfig, config)
    require_known(fields, TEXT_ENCODER)
    if eos_id is not None:
        require_eos(fields["eos_token_id"], eos_id)
        _require_counts(fields, "projection_dim")
    return fields


def require_eos(said: Any, eos_id: int) -> None:
    """Refuse a configuration whose EOS differs from the tokenizer's.

    Args:
        said: value of `eos_token_id` in the configuration.
        eos_id: token id of the tokenizer's EOS.

    Raises:
        ValueError: the ids differ, and the configuration's is not `LEGACY_EOS`.
    """
    if said not in (eos_id, LEGACY_EOS):
        raise ValueError(
            f"eos_token_id is {said!r}, expected the tokenizer's, {eos_id}, or {LEGACY_EOS} as "
            "in older configs: the pooled text is taken at that token"
        )


def require_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer whose length or token order the text encoder does not expect.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    length = tokenizer.model_max_length
    # transformers sets a huge number if the configuration has no length.
    if not is_number(length) or (length != TOKENS and length < 10**20):
        raise ValueError(unexpected("model_max_length", length, [TOKENS]))
    require_ends(tokenizer)


def require_ends(tokenizer: Any) -> None:
    """Refuse a tokenizer whose BOS, EOS, padding or truncation differ from CLIP's.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    for field, token in (("bos_token", BOS), ("eos_token", EOS)):
        if getattr(tokenizer, field) != token:
            raise ValueError(unexpected(field, getattr(tokenizer, field), [token]))
    for field in ("padding_side", "truncation_side"):
        if getattr(tokenizer, field) != "right":
            raise ValueError(unexpected(field, getattr(tokenizer, field), ["right"]))
    if tokenizer.pad_token_id is None:
        raise ValueError("it has no pad_token: texts are padded to one length")


def _complete(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the library's defaults for missing fields."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    return {**defaults, **config}


def _require_counts(fields: Mapping[str, Any], *names: str) -> None:
    """Refuse fields that are not integers above 0."""
    for name in names:
        if not is_count(fields[name]):
            raise ValueError(f"{name} is {fields[name]!r}, expected {COUNT.expected}")


def _one_width(value: Any) -> Any:
    """Width of the text states, which may be given per block."""
    if isinstance(value, (list, tuple)) and value:
        if len(set(map(str, value))) > 1:
            raise ValueError(f"cross_attention_dim is {value}, expected one width of all blocks")
        return value[0]
    return value


def _sample_size(fields: Mapping[str, Any]) -> int:
    """Side of the latents, as diffusers' pipelines determine it."""
    value = fields["sample_size"]
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not is_count(value):
        raise ValueError(
            f"sample_size is {value!r}, expected the side of the latents it was trained on, 64 "
            "for images of 512 x 512 pixels: write it into the U-Net's config.json"
        )
    # Configurations of that time have 32 for models of 512 x 512 pixels.
    version = fields.get("_diffusers_version")
    if version is not None and fields["addition_embed_type"] is None:
        if not (found := re.match(r"(\d+)\.(\d+)", str(version))):
            raise ValueError(f"_diffusers_version is {version!r}, expected a version")
        if (int(found[1]), int(found[2])) < _OLD:
            value = max(value, _OLD_SAMPLE_SIZE)
    halvings = 2 ** (len(fields["down_block_types"]) - 1)
    if value % halvings:
        raise ValueError(
            f"sample_size is {value}, expected a multiple of {halvings}: it is halved "
            f"{len(fields['down_block_types']) - 1} times"
        )
    return value


def _check_latent_statistics(fields: Mapping[str, Any], with_pooled_text: bool) -> None:
    """Refuse `latents_mean` and `latents_std` that are incomplete or of the wrong family."""
    channels = fields["latent_channels"]
    values = {field: fields[field] for field in ("latents_mean", "latents_std")}
    if all(value is None for value in values.values()):
        return
    for field, value in values.items():
        if not with_pooled_text:
            if value is not None:
                raise ValueError(
                    f"{field} is {value}, expected None: only Stable Diffusion XL's latents are "
                    "normalised by it"
                )
            continue
        fits = isinstance(value, (list, tuple)) and len(value) == channels
        if not fits or not all(is_number(number) for number in value):
            raise ValueError(
                f"{field} is {value!r}, expected a number per channel, {channels} in all"
            )
    if with_pooled_text and min(values["latents_std"]) <= 0:
        raise ValueError(f"latents_std is {values['latents_std']}, expected are numbers above 0")
