"""Scoring of questions with a model in PyTorch, without a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dsd_trt.bundle.manifest import Mode, Resize, ScoreKind
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.fewshot.encoded import score_encoded
from dsd_trt.train.fewshot.examples import Examples, encoders_of
from dsd_trt.train.fewshot.match_probability import MatchProbability, combine
from dsd_trt.train.fewshot.model import FewShotModel, score_all
from dsd_trt.train.left_out import ignore
from dsd_trt.train.question import Question, Report, Score
from dsd_trt.train.run.device import best_device
from dsd_trt.train.scoring.adapter import Adapter, resize_of
from dsd_trt.train.scoring.choices import require_matrix
from dsd_trt.train.scoring.head_weights import LearnedHeadWeights
from dsd_trt.train.scoring.matrix import MatrixScorer


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
    kind = score or (learned.score if learned else "attention")
    if mode is None:
        mode = "matrix" if learned is not None and learned.mode == "matrix" else "pair"
    if mode == "matrix":
        require_matrix(kind, learned.head_mode if learned else "uniform", "score with --mode pair")
    checkpoint = read_checkpoint(model, best_device())
    scoring = build_scoring_unet(checkpoint, learned, score=score, levels=levels)
    heads = LearnedHeadWeights(scoring.head_weights, learned=False)
    unconditional = encode_texts(checkpoint, [""])[0]
    matrix = MatrixScorer(scoring, unconditional) if mode == "matrix" else None
    whole = FewShotModel(scoring, heads, MatchProbability(kind), matrix).to(checkpoint.device)
    resize = resize_of(learned, resize)
    weight = learned.denoising_weight if learned else 1.0

    encoders = encoders_of(checkpoint, resize)

    def score_pairs(examples: Examples) -> Tensor:
        return combine(kind, weight, *score_all(whole, examples, mode))

    def score_candidates(
        questions: Sequence[Question], left_out: Report = ignore
    ) -> list[list[float]]:
        return score_encoded(encoders, score_pairs, questions, left_out, unconditional)

    return score_candidates
