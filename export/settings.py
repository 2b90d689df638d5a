"""Export settings, as the command line or a caller gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import ScoreKind, TokenMask, TrainedFor
from dsd_trt.errors import InputError
from dsd_trt.train.diffusion.place import EMBEDDED
from dsd_trt.train.scoring.adapter_file import AdapterFile
from dsd_trt.train.scoring.choices import (
    require_levels,
    require_matrix,
    require_score,
    require_selection,
)

Verify = Literal["quick", "full", "none"]
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
            is "full" for small U-Nets and "quick" for those where full takes hours. "none" leaves
            the comparison to `dsd-trt gpu-check`, which makes it anyway.
        adapter_input: whether the pair scorer takes the adapter as an input instead of having it
            folded in.
        matrix: whether to export the matrix scorer too; None follows the adapter's training.
        query_pool: side of the squares over which the matrix scorer averages queries, see
            `MatrixMode`.
        cuda_form: operators that are fused in forms of the graphs for ONNX Runtime on CUDA; None
            writes no forms.
        bf16: whether to measure what BF16 does to the scores, where this machine computes in it;
            None measures it for small U-Nets, where it takes seconds.
        maps: whether to export the maps graph too, which explanations are made from.
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
    bf16: bool | None = None
    maps: bool = False

    def __post_init__(self) -> None:
        """Refuse malformed settings, before anything is opened.

        Raises:
            InputError: layers or levels are malformed.
        """
        try:
            require_selection(self.score_layers)
            if self.levels is not None:
                require_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None


def wants_matrix(settings: ExportSettings, trained: TrainedFor | None) -> bool:
    """Whether the matrix scorer is exported too.

    Args:
        settings: export settings, which may ask for it or rule it out.
        trained: mode that the adapter was trained for; None without an adapter.
    """
    if settings.matrix is not None:
        return settings.matrix
    return trained not in (None, "pair")


def require_consistent(settings: ExportSettings, file: AdapterFile | None) -> None:
    """Refuse settings that contradict each other or the adapter, before a model is opened.

    Raises:
        InputError: settings contradict each other or what the adapter changes, or are malformed.
        ModelError: the adapter was trained for another score.
    """
    adapter = None if file is None else file.config
    score = settings.score or (adapter.score if adapter else "attention")
    if adapter is not None:
        require_score(adapter.score, score, "leave out --score, or train an adapter for it")
    if score == "released" and settings.score_layers != "all":
        raise InputError('the score "released" has layers of its own: omit --score-layers')
    if settings.adapter_input:
        _require_input(file)
    if settings.maps and score != "attention":
        raise InputError(
            f'--maps shows what the score "attention" reads, and this one is "{score}": leave out '
            "--maps, or give --score attention"
        )
    if not wants_matrix(settings, None if adapter is None else adapter.mode):
        if settings.query_pool > 1:
            raise InputError("--query-pool is of the matrix scorer: add --matrix, or leave it out")
        return
    require_matrix(score, adapter.head_mode if adapter else "uniform", "export with --no-matrix")
    if settings.adapter_input:
        raise InputError(
            "the matrix scorer takes no adapter as an input: leave out --adapter-input, or pass "
            "--no-matrix"
        )


def _require_input(file: AdapterFile | None) -> None:
    """Refuse an adapter that the pair scorer cannot take as an input."""
    if file is not None and file.merged:
        raise InputError(
            "the adapter changes weights of the U-Net itself, which are no input of the graph: "
            "leave out --adapter-input, or train one with --update-rank 0"
        )
    if file is None or file.config.prompts is None:
        raise InputError(
            "--adapter-input is for an adapter with prompts: name one with --adapter, or leave "
            "out --adapter-input"
        )
