"""The cross-attention layers of a U-Net: which there are, and which count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock


def cross_attention_names(unet: UNet2DConditionModel) -> list[str]:
    """Paths of the transformer blocks that hold cross-attention, in order of execution."""
    modules = dict(unet.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, BasicTransformerBlock)]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order[name.split(".")[0]])  # stable within a part


def inner_widths(unet: UNet2DConditionModel) -> list[int]:
    """Rows of each cross-attention layer's key matrix (heads x head_dim), in order of execution."""
    names = cross_attention_names(unet)
    return [unet.get_submodule(name).attn2.to_k.out_features for name in names]


def last_of_each_stage(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Indices of the last cross-attention layer of every block of the U-Net that has one."""
    stages = [name.split(".attentions.")[0] for name in cross_attention_names(unet)]
    return tuple(
        layer
        for layer, (stage, following) in enumerate(pairwise([*stages, ""]))
        if stage != following
    )


def select_layers(selection: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Turn a setting into layer indices, ascending.

    Args:
        selection: "all", "last:N", or indices in order of execution, as a sequence or "0,3,5".
        count: cross-attention layers the U-Net has.

    Raises:
        ValueError: no such layers.
    """
    allowed = f'choose "all", "last:N" with N up to {count}, or indices from 0 to {count - 1}'
    try:
        if selection == "all":
            layers = list(range(count))
        elif isinstance(selection, str) and selection.startswith("last:"):
            last = int(selection.removeprefix("last:"))
            layers = list(range(count - last, count)) if last > 0 else []
        elif isinstance(selection, str):
            layers = [int(index) for index in selection.split(",")]
        else:
            layers = [int(index) for index in selection]
    except ValueError:
        layers = []
    if not layers or min(layers) < 0 or max(layers) >= count:
        raise ValueError(f"no cross-attention layers {selection!r}: {allowed}")
    return tuple(sorted(set(layers)))


def require_stable_diffusion(config: Mapping[str, Any]) -> None:
    """Refuse U-Nets with parts that `ScoringUNet.cross_attentions` does not walk.

    Args:
        config: of the U-Net, as diffusers writes it.

    Raises:
        ValueError: names the field, what it is and what it may be.
    """
    blocks = len(config["down_block_types"])
    for field, allowed in _EXPECTED.items():
        value = config.get(field, allowed[0])
        if value not in allowed and list(_as_list(value)) != [allowed[0]] * blocks:
            raise ValueError(_unexpected(field, value, allowed))
    for field, part in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        known = (part, f"CrossAttn{part}")
        for value in config[field]:
            if value not in known:
                raise ValueError(_unexpected(field, value, known))


_EXPECTED: Mapping[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None,),
    "center_input_sample": (False,),
    "dual_cross_attention": (False,),
    "only_cross_attention": (False,),
    "time_embedding_act_fn": (None,),
    "time_cond_proj_dim": (None,),
    "attention_type": ("default",),
    "resnet_time_scale_shift": ("default",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
}


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _unexpected(field: str, value: Any, allowed: Sequence[Any]) -> str:
    return (
        f"not a U-Net of the Stable Diffusion family: {field} is {value!r}, expected is "
        f"{' or '.join(map(repr, allowed))}"
    )
