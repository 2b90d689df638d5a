"""The three modules that are traced, in the precision their graphs get."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from dsd_trt.manifest import Precision
from dsd_trt.train.model import Checkpoint, ImageEncoder, TextEncoder
from dsd_trt.train.scoring_unet import ScoringUNet


class UpcastImageEncoder(ImageEncoder):
    """An FP32 encoder in an FP16 bundle, for VAEs that overflow in FP16."""

    def forward(self, pixels: Tensor) -> Tensor:
        """As `ImageEncoder`, rounded to FP16 at the end."""
        return super().forward(pixels).half()


def traceable(
    name: str, checkpoint: Checkpoint, scoring: ScoringUNet, precision: Precision
) -> nn.Module:
    """The module a graph is traced from.

    Precision is cast here and nowhere else: weights become FP16, while what the modules' own code
    computes in FP32 (logits, softmax, LogSumExp, noise) stays FP32.

    Args:
        name: "image_encoder", "text_encoder" or "pair_scorer".
        checkpoint: the base model; left as it is.
        scoring: its scoring U-Net; left as it is, while the module's static prompts are folded in.
        precision: of the graph.
    """
    half = precision == "fp16"
    if name == "image_encoder":
        if half and checkpoint.vae.config["force_upcast"]:
            return UpcastImageEncoder(checkpoint.vae)
        return ImageEncoder(_cast(checkpoint.vae, half))
    if name == "text_encoder":
        return TextEncoder(_cast(checkpoint.text_encoder, half))
    if not half and scoring.prompts is None:
        return scoring
    scoring = deepcopy(scoring)
    with torch.no_grad():
        scoring.fold_static_prompts()
    if half:
        scoring.unet.half()
        if scoring.prompts is not None:
            scoring.prompts.half()
    return scoring


def _cast(module: nn.Module, half: bool) -> nn.Module:
    return deepcopy(module).half() if half else module
