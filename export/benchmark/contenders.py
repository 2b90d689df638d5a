"""The contenders by name; imports nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

from dsd_trt.engine import usable_entries

MATRIX = "-matrix"
"""Suffix of contenders in matrix mode."""

_ON_CPU = [it for it in usable_entries() if not it.on_gpu]
RUNTIME: dict[str, str] = {
    **{it.name: f"dsd-trt on {it.title}" for it in _ON_CPU},
    **{
        it.name + MATRIX: f"dsd-trt on {it.title}, matrix mode"
        for it in _ON_CPU
        if "matrix" in it.modes
    },
}
"""Contenders of this package: every CPU backend in each of its modes, with a title."""

CONTENDERS: dict[str, str] = {
    **RUNTIME,
    "torch": "PyTorch FP32, batch 1",
    "torch-batched": "PyTorch FP32",
    "torch-bf16": "PyTorch BF16",
    "torch-compile": "PyTorch FP32, torch.compile",
    "torch-compile-bf16": "PyTorch BF16, torch.compile",
    "diffusion-classifier": "diffusion classifier, PyTorch FP32",
    "naive": "research loop, PyTorch FP32",
}
REFERENCE = "torch-batched"


def is_matrix(name: str) -> bool:
    """Whether a contender scores in matrix mode."""
    return name.endswith(MATRIX)
