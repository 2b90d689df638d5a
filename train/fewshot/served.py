"""A model as it is served, in PyTorch: an adapter's score, weights and levels, nothing trained."""

from __future__ import annotations

from torch import Tensor

from dsd_trt.bundle.method import Mode, ScoreKind
from dsd_trt.train.build import build_relations, build_scoring_unet, build_token_heads
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import MatchProbability, combine
from dsd_trt.train.fewshot.model import FewShotModel, score_all
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import require_matrix
from dsd_trt.train.scoring.head_weights import LearnedHeadWeights
from dsd_trt.train.scoring.matrix import MatrixScorer


class Served:
    """A checkpoint with an adapter, or without, as export puts it into a bundle.

    Args:
        checkpoint: base model, on the device that scores.
        adapter: few-shot adapter; None scores zero-shot.
        unconditional: states of the unconditional text, (1, 77, D).
        score: kind of score; None is the adapter's, or "attention" without an adapter.
        levels: noise levels s; None is the adapter's, or 0.2, 0.4, 0.6, 0.8.
        mode: mode of scoring, "pair" or "matrix"; None is matrix mode for an adapter of that mode
            alone, else pair mode.

    Raises:
        InputError: matrix mode does not have the score, see `require_matrix`.
        ModelError: the adapter does not belong to the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapter: Adapter | None,
        unconditional: Tensor,
        *,
        score: ScoreKind | None = None,
        levels: tuple[float, ...] | None = None,
        mode: Mode | None = None,
    ) -> None:
        self._kind = served_score(adapter, score)
        self._mode = served_mode(adapter, mode)
        if self._mode == "matrix":
            heads = adapter.head_mode if adapter else "uniform"
            require_matrix(self._kind, heads, "score with --mode pair")
        scoring = build_scoring_unet(checkpoint, adapter, score=score, levels=levels)
        weights = LearnedHeadWeights(scoring.head_weights, learned=False)
        matrix = None
        if self._mode == "matrix":
            matrix = MatrixScorer(
                scoring,
                unconditional,
                token_heads=build_token_heads(scoring, adapter),
                relations=build_relations(scoring, adapter),
            )
        model = FewShotModel(scoring, weights, MatchProbability(self._kind), matrix)
        self._model = model.to(checkpoint.device)
        self._weight = adapter.denoising_weight if adapter else 1.0

    def score(self, examples: Examples) -> Tensor:
        """Score of each pair, averaged over noise levels, (pairs,)."""
        return combine(self._kind, self._weight, *score_all(self._model, examples, self._mode))


def served_score(adapter: Adapter | None, asked: ScoreKind | None = None) -> ScoreKind:
    """Kind of score: the one asked for, else the adapter's, else "attention"."""
    return asked or (adapter.score if adapter else "attention")


def served_mode(adapter: Adapter | None, asked: Mode | None = None) -> Mode:
    """Mode of scoring: the one asked for, else matrix for an adapter of that mode, else pair."""
    trained = adapter is not None and adapter.mode == "matrix"
    return asked or ("matrix" if trained else "pair")
