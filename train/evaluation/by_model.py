"""Scoring of questions with a model in PyTorch, without a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import Mode, ScoreKind
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.fewshot.encoded import score_encoded
from dsd_trt.train.fewshot.encodings import encoders_of
from dsd_trt.train.fewshot.served import Served, served_mode, served_score
from dsd_trt.train.left_out import ignore
from dsd_trt.train.question import Question, Report, Score
from dsd_trt.train.run.device import best_device
from dsd_trt.train.scoring.adapter import Adapter, resize_of
from dsd_trt.train.scoring.choices import require_matrix


def by_model(
    model: str,
    adapter: Path | None,
    score: ScoreKind | None = None,
    levels: tuple[float, ...] | None = None,
    resize: Resize | None = None,
    mode: Mode | None = None,
) -> Score:
    """A `Score` that scores candidates in FP32 PyTorch, on `best_device`.

    Args:
        model: base model: "shapes", a folder, a file or a repository, see `find_model`.
        adapter: folder of a few-shot adapter; None scores zero-shot.
        score: kind of score; None is the adapter's, or "attention" without an adapter.
        levels: noise levels s; None is the adapter's, or 0.2, 0.4, 0.6, 0.8.
        resize: method by which images are made square; None is the adapter's, or
            "bicubic-stretch".
        mode: mode of scoring, "pair" or "matrix"; None is matrix mode for an adapter of that mode
            alone, else pair mode.

    Raises:
        InputError: matrix mode does not have the score, see `require_matrix`.
        ModelError: the model or the adapter cannot be read, or they do not belong together.
    """
    learned = Adapter.load(adapter) if adapter else None
    kind = served_score(learned, score)
    if served_mode(learned, mode) == "matrix":  # before the model is read
        heads = learned.head_mode if learned else "uniform"
        require_matrix(kind, heads, "score with --mode pair")
    checkpoint = read_checkpoint(model, best_device())
    unconditional = encode_texts(checkpoint, [""])[0]
    served = Served(checkpoint, learned, unconditional, score=score, levels=levels, mode=mode)
    encoders = encoders_of(checkpoint, resize_of(learned, resize))

    def score_candidates(
        questions: Sequence[Question], left_out: Report = ignore
    ) -> list[list[float]]:
        return score_encoded(encoders, served.score, questions, left_out, unconditional)

    return score_candidates
