"""The modules that are traced, in the precision their graphs get."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import AdapterInput
from dsd_trt.export.adapter_input import FedScoringUNet
from dsd_trt.export.gates import split_gates
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts
from dsd_trt.train.diffusion.encoders import ImageEncoder
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet


class BuildScoring(Protocol):
    """Puts the scoring model together from a U-Net: `build_scoring_unet`, all else settled."""

    def __call__(self, *, unet: UNet2DConditionModel) -> ScoringUNet:
        """Build it."""
        ...


class UpcastImageEncoder(ImageEncoder):
    """An FP32 encoder in an FP16 bundle, for VAEs that overflow in FP16."""

    def forward(self, pixels: Tensor) -> Tensor:
        """As `ImageEncoder`, rounded to FP16 at the end."""
        return super().forward(pixels).half()


def traceable(
    name: str,
    checkpoint: Checkpoint,
    build: BuildScoring,
    precision: Precision,
    fed: AdapterInput | None = None,
    query_pool: int = 1,
) -> nn.Module:
    """The module a graph is traced from, read anew: whoever drops it has its memory back.

    Precision is chosen here and nowhere else: weights become FP16, while what the modules' own code
    computes in FP32 (logits, softmax, LogSumExp, noise) stays FP32.

    Args:
        name: "image_encoder", "text_encoder", "pair_scorer" or "matrix_scorer".
        checkpoint: the base model.
        build: puts its scoring U-Net together; static prompts are folded in here.
        precision: of the graph.
        fed: what the pair scorer takes as an input instead of its having it folded in.
        query_pool: of the matrix scorer.
    """
    half = precision == "fp16"
    dtype = torch.float16 if half else torch.float32
    if name == "image_encoder":
        if half and checkpoint.vae_overflows:
            return UpcastImageEncoder(checkpoint.read_image_encoder().vae)
        return checkpoint.read_image_encoder(dtype)
    if name == "text_encoder":
        return checkpoint.read_text_encoder(dtype)
    empty = None
    if name == "matrix_scorer":
        empty = encode_texts(checkpoint, [""])[0].to(dtype)
        checkpoint.forget()
    scoring = build(unet=checkpoint.read_unet(dtype))
    split_gates(scoring)
    if fed is not None:
        return FedScoringUNet(scoring, fed.tensors)
    matrix = None if empty is None else MatrixScorer(scoring, empty, query_pool)
    (matrix or scoring).fold_static_prompts()
    if half and scoring.prompts is not None:
        scoring.prompts.half()
    return scoring if matrix is None else matrix


def drop_weights(module: nn.Module) -> None:
    """Take a module's weights away once they are stored: PyTorch keeps modules that were traced."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.new_empty(0)
