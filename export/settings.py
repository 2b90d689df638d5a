"""What to export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import Resize, ScoreKind, TokenMask
from dsd_trt.train.diffusion.source import EMBEDDED, embedded_model_folder

Verify = Literal["quick", "full"]


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how.

    Attributes:
        model: what `find_model` takes: "shapes", a folder, a file, or a repository on the hub.
        adapter: folder of a few-shot adapter; None is the zero-shot score.
        precision: "fp32", or "fp16" with FP32 islands.
        score_layers: "all", "last:N", or layer indices.
        levels: noise levels s; None is the adapter's, or 0.2, 0.4, 0.6, 0.8.
        resize: how images become the model's squares; None is the adapter's, or at once.
        noise_seed: names the fixed noise of each level.
        token_mask: which tokens count.
        score: attention, denoising term, or both; None is what the adapter was trained for, or
            "attention", the paper's, without one.
        verify: how much the graphs are compared with PyTorch on, see `draw_probe`; None is full
            where that takes seconds, quick where it takes hours.
        matrix: export the matrix scorer as well; None is yes where the adapter was trained for it.
        query_pool: of the matrix scorer, see `MatrixMode` of the bundle.
        adapter_input: take the adapter as an input of the pair scorer instead of folding it in.
    """

    model: str = EMBEDDED
    adapter: Path | None = None
    precision: Precision = "fp32"
    score_layers: str | Sequence[int] = "all"
    levels: tuple[float, ...] | None = None
    resize: Resize | None = None
    noise_seed: int = 0
    token_mask: TokenMask = "words_eos"
    score: ScoreKind | None = None
    verify: Verify | None = None
    adapter_input: bool = False
    matrix: bool | None = None
    query_pool: int = 1


def default_adapter(model: str) -> Path | None:
    """The adapter that comes with a model: the embedded one has its own."""
    return embedded_model_folder() / "adapter" if model == EMBEDDED else None
