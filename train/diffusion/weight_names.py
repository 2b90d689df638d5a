"""Names of weights in older releases of the libraries, and weights that no part needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from dsd_trt.errors import ModelError

T = TypeVar("T")

# The numbers 0 to 76, which modules compute and older files store as a weight.
_COMPUTED = re.compile(r"(.+\.)?position_ids")
# Weights of a complete CLIP that text states do not depend on.
_REST_OF_CLIP = re.compile(
    r"text_projection(\.weight)?|logit_scale|logit_bias|visual_projection\.weight"
    r"|(vision_model|visual)\..+"
)
# The VAE's attention in diffusers before release 0.15, and in most models of that time.
_OLD_ATTENTION = re.compile(
    r"(?P<block>.+\.attentions\.\d+)\.(?P<matrix>query|key|value|proj_attn)"
)
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_names(
    part: str, weights: Mapping[str, T], module: nn.Module, where: str
) -> dict[str, T]:
    """A part's weights under the names of its module, without unused ones.

    Args:
        part: name of the part: "unet", "vae", "text_encoder" or "text_encoder_2".
        weights: tensors or headers, by their names in the file.
        module: module of the part.
        where: folder or file, for the message.

    Raises:
        ModelError: two weights of the file have the same name in the module; the message names
            both.
    """
    if part.startswith("text_encoder"):
        renamed = _of_text_encoder(weights, module)
    elif part == "vae":
        renamed = {name: _OLD_ATTENTION.sub(_renamed, name) for name in weights}
    else:
        return dict(weights)
    sources: dict[str, str] = {}
    for name, new in renamed.items():
        if (other := sources.setdefault(new, name)) != name:
            raise ModelError(
                f"{where}: {part} has both {other} and {name}, two names of one weight: the "
                "merge was faulty, remove one of them"
            )
    return {new: weights[name] for name, new in renamed.items()}


def is_computed(name: str) -> bool:
    """Whether a tensor holds positions, which its module computes, instead of weights."""
    return bool(_COMPUTED.fullmatch(name))


def _renamed(found: re.Match[str]) -> str:
    return f"{found['block']}.{_NEW_ATTENTION[found['matrix']]}"


def _of_text_encoder(weights: Iterable[str], module: nn.Module) -> dict[str, str]:
    """Names in the module by names in the file, without unused weights."""
    expected = module.state_dict().keys()
    names: dict[str, str] = {}
    for name in weights:
        # transformers' text classes have had this prefix in some releases only.
        bare = name.removeprefix("text_model.")
        new = next((n for n in (bare, f"text_model.{bare}") if n in expected), name)
        if new in expected or not (is_computed(bare) or _REST_OF_CLIP.fullmatch(bare)):
            names[name] = new
    return names
