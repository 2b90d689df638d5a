"""Scoring questions with the PyTorch model itself, no bundle needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dsd_trt.manifest import ScoreKind
from dsd_trt.train.adapter import Adapter
from dsd_trt.train.data.question import Question
from dsd_trt.train.evaluation.answers import Score
from dsd_trt.train.fewshot.examples import encode_questions
from dsd_trt.train.fewshot.match_probability import MatchProbability, combine
from dsd_trt.train.fewshot.model import FewShotModel, score_all
from dsd_trt.train.head_weights import HeadWeights
from dsd_trt.train.model import build_scoring_unet, load_checkpoint
from dsd_trt.train.noise import DEFAULT_LEVELS


def by_model(
    model: str,
    adapter: Path | None,
    score: ScoreKind | None = None,
    levels: tuple[float, ...] = DEFAULT_LEVELS,
) -> Score:
    """Score candidates in FP32 PyTorch.

    Args:
        model: what `load_checkpoint` takes.
        adapter: folder of a few-shot adapter, or None.
        score: None is the adapter's, or "attention" without one.
        levels: noise levels s.

    Raises:
        ModelError: model or adapter cannot be read, or do not belong together.
    """
    checkpoint = load_checkpoint(model)
    learned = Adapter.load(adapter) if adapter else None
    scoring = build_scoring_unet(checkpoint, learned, score=score, levels=levels)
    kind = score or (learned.score if learned else "attention")
    heads = HeadWeights(scoring.head_weights, learned=False)
    whole = FewShotModel(scoring, heads, MatchProbability(kind))
    weight = learned.denoising_weight if learned else 1.0

    def score_candidates(questions: Sequence[Question]) -> list[list[float]]:
        examples = encode_questions(checkpoint, questions)
        scores = combine(kind, weight, *score_all(whole, examples)).tolist()
        bounds = examples.starts.tolist()
        return [scores[a:b] for a, b in itertools.pairwise(bounds)]

    return score_candidates
