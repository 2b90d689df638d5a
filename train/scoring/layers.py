"""The cross-attention layers of a U-Net: how they are found and ordered."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from dsd_trt.train.diffusion.fields import UNET, require_assumed


def cross_attention_names(unet: UNet2DConditionModel) -> list[str]:
    """Module paths of the transformer blocks with cross-attention, in order of execution."""
    modules = dict(unet.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, BasicTransformerBlock)]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order[name.split(".")[0]])  # stable within a part


def inner_widths(unet: UNet2DConditionModel) -> list[int]:
    """Rows of each cross-attention layer's key matrix (heads x head_dim), in order of execution."""
    names = cross_attention_names(unet)
    return [unet.get_submodule(name).attn2.to_k.out_features for name in names]


def last_of_each_stage(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Index of the last cross-attention layer in each block of the U-Net that has any."""
    stages = [name.split(".attentions.")[0] for name in cross_attention_names(unet)]
    return tuple(
        layer
        for layer, (stage, following) in enumerate(pairwise([*stages, ""]))
        if stage != following
    )


def require_stable_diffusion(config: Mapping[str, Any]) -> None:
    """Refuse a U-Net with parts that `ScoringUNet.cross_attentions` does not implement.

    Args:
        config: the U-Net's configuration, as diffusers writes it to `config.json`.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    try:
        require_assumed(config, UNET.assumed)
    except ValueError as error:
        raise ValueError(f"not a U-Net of the Stable Diffusion family: {error}") from error


def text_width(unet: UNet2DConditionModel) -> int:
    """D, the number of features of each text state r_j that the U-Net attends to."""
    width: int = unet.get_submodule(cross_attention_names(unet)[0]).attn2.to_k.in_features
    return width
