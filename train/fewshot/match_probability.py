"""Match probability sigmoid(a s + b) of a score s, and the weight of its denoising term."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from dsd_trt.bundle.method import Mode, ScoreKind
from dsd_trt.metrics import fit_logistic
from dsd_trt.train.scoring.adapter import Adapter


def combine(score: ScoreKind, weight: float | Tensor, f: Tensor, d: Tensor | None) -> Tensor:
    """The score s: f, d or f + w d; see `Method` of the bundle.

    Args:
        score: kind of score: "attention" is f, "denoising" d, "attention+denoising" f + w d.
        weight: weight w of the denoising term, above 0.
        f: attention score of each pair, any shape.
        d: denoising term of each pair, the shape of `f`; None for the attention score.
    """
    if score == "attention" or d is None:
        return f
    return d if score == "denoising" else f + weight * d


class MatchProbability(nn.Module):
    """The logit a s + b of a match, with a > 0, so that logits rank pairs as s does.

    Args:
        score: kind of score s, see `combine`.

    Attributes:
        log_a: logarithm of the scale a.
        b: offset b of the logit.
        log_w: logarithm of the denoising weight w, trained for "attention+denoising" alone.
    """

    def __init__(self, score: ScoreKind) -> None:
        super().__init__()
        self.score = score
        self.log_a: nn.Parameter = nn.Parameter(torch.tensor(3.0))
        self.b: nn.Parameter = nn.Parameter(torch.tensor(-3.0 if score == "attention" else 0.0))
        self.log_w: nn.Parameter = nn.Parameter(
            torch.tensor(0.0), requires_grad=score == "attention+denoising"
        )

    @property
    def w(self) -> float:
        """Weight w of the denoising term, above 0."""
        return self.log_w.exp().item()

    def start_from(self, a: float, b: float) -> None:
        """Initialise a and b, if the given a exceeds the present one.

        The fit to a model that does not separate positives from negatives yet is almost flat, and
        would leave no gradient to learn from.

        Args:
            a: scale fitted to the untrained model's scores.
            b: offset fitted together with `a`.
        """
        if a > self.log_a.exp().item():
            with torch.no_grad():
                self.log_a.fill_(math.log(a))
                self.b.fill_(b)

    def continue_from(self, adapter: Adapter, mode: Mode) -> None:
        """Initialise w, a and b from an adapter, as far as it has them, so that training goes on.

        Args:
            adapter: adapter of the same score.
            mode: mode whose a and b are taken.
        """
        fitted = adapter.calibration_of(mode)
        with torch.no_grad():
            self.log_w.fill_(math.log(adapter.denoising_weight))
            if fitted is not None and fitted.a > 0:
                self.log_a.fill_(math.log(fitted.a))
                self.b.fill_(fitted.b)

    def forward(self, f: Tensor, d: Tensor | None) -> Tensor:
        """Logit of each pair's match, given attention score f and denoising term d; same shape."""
        return self.log_a.exp() * combine(self.score, self.log_w.exp(), f, d) + self.b


def fit_match_probability(score: Tensor, labels: Tensor) -> tuple[float, float]:
    """Maximum-likelihood a and b for given scores, as `fit_logistic` fits them.

    Positives and negatives have the same total weight, however many there are of each. A
    probability of 1/2 thus assumes that a text matches an image as often as not.

    Args:
        score: score s of each pair, (pairs,).
        labels: 1 for a positive pair, 0 for a negative one, (pairs,).

    Returns:
        Scale a and offset b of the match probability sigmoid(a s + b). Where all scores are the
        same, every probability is 1/2.
    """
    values = score.double().cpu().numpy()
    if not np.ptp(values):
        return 0.0, 0.0
    return fit_logistic(values, labels.cpu().numpy(), prior=0.5)
