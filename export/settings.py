"""Export settings, as the command line or a caller gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import Resize, ScoreKind, TokenMask
from dsd_trt.train.diffusion.source import EMBEDDED, embedded_model_folder

Verify = Literal["quick", "full"]
CudaForm = Literal["attention", "attention+group-norm"]


@dataclass(frozen=True)
class ExportSettings:
    """Checkpoint, adapter, score and precision of an export.

    Attributes:
        model: checkpoint as `find_model` takes it: "shapes", a folder, a file, or a repository on
            the Hugging Face Hub.
        adapter: folder of a few-shot adapter; None is the zero-shot score.
        precision: precision of the graphs: "fp32", or "fp16" with FP32 islands.
        score_layers: scored cross-attention layers: "all", "last:N", or layer indices.
        levels: noise levels s, each between 0 and 1; None is the adapter's, or 0.2, 0.4, 0.6, 0.8.
        resize: method that makes images square at the model's resolution; None is the adapter's,
            or a single resize.
        noise_seed: seed of the fixed noise of each level.
        token_mask: tokens that count in Eq. 4: "words_eos", "words" or "all".
        score: attention score, denoising term, or both; None is the adapter's, or the paper's
            "attention" without an adapter.
        verify: size of the probe that graphs and PyTorch are compared on, see `draw_probe`; None
            is "full" for small U-Nets and "quick" for those where full takes hours.
        adapter_input: whether the pair scorer takes the adapter as an input instead of having it
            folded in.
        matrix: whether to export the matrix scorer too; None follows the adapter's training.
        query_pool: side of the squares over which the matrix scorer averages queries, see
            `MatrixMode`.
        cuda_form: operators that are fused in forms of the graphs for ONNX Runtime on CUDA; None
            writes no forms.
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
    cuda_form: CudaForm | None = None


def default_adapter(model: str) -> Path | None:
    """Folder of the adapter that comes with a checkpoint; None except for the embedded one."""
    return embedded_model_folder() / "adapter" if model == EMBEDDED else None
