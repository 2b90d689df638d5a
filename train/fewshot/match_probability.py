"""From a score to the probability of a match: the logistic with a, b and the denoising weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dsd_trt.bundle.manifest import ScoreKind


def combine(score: ScoreKind, weight: float | Tensor, f: Tensor, d: Tensor | None) -> Tensor:
    """The score s: attention f, denoising term d, or f + w d; see `Method` of the bundle."""
    if score == "attention" or d is None:
        return f
    return d if score == "denoising" else f + weight * d


class MatchProbability(nn.Module):
    """The logit a s + b of a match; a and w are kept positive, so that ranking is s's.

    Attributes:
        log_a: log of a.
        b: offset.
        log_w: log of w, the weight of the denoising term where the score has both.
    """

    def __init__(self, score: ScoreKind) -> None:
        super().__init__()
        self.score = score
        self.log_a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.tensor(-3.0 if score == "attention" else 0.0))
        self.log_w = nn.Parameter(torch.tensor(0.0), requires_grad=score == "attention+denoising")

    @property
    def w(self) -> float:
        """Weight of the denoising term."""
        return self.log_w.exp().item()

    def start_from(self, a: float, b: float) -> None:
        """Take a slope and an offset to learn from, if the slope is steeper than what is there.

        A model that tells nothing apart yet fits a flat one, and would learn nothing from it.
        """
        if a > self.log_a.exp().item():
            with torch.no_grad():
                self.log_a.fill_(math.log(a))
                self.b.fill_(b)

    def forward(self, f: Tensor, d: Tensor | None) -> Tensor:
        """Logits of pairs with attention score f and denoising term d, same shape."""
        return self.log_a.exp() * combine(self.score, self.log_w.exp(), f, d) + self.b


def fit_match_probability(score: Tensor, labels: Tensor) -> tuple[float, float]:
    """The a and b of greatest likelihood for fixed scores: logistic regression by Newton's method.

    Matches and mismatches weigh the same, however many there are of each: 1/2 is where a pair is
    as likely the one as the other, before anything is known of how often texts match.

    Args:
        score: s, (pairs,).
        labels: 0 or 1, (pairs,).
    """
    center, spread = score.double().mean(), score.double().std().clamp(min=1e-12)
    x = torch.stack([(score.double() - center) / spread, torch.ones(len(score)).double()])
    y = labels.double()
    weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y).mean())
    theta = torch.zeros(2, dtype=torch.float64)
    ridge = 1e-3 * torch.eye(2, dtype=torch.float64)  # keeps separable data finite
    for _ in range(50):
        p = torch.sigmoid(theta @ x)
        gradient = x @ (weight * (y - p)) - ridge @ theta
        hessian = (x * (weight * p * (1 - p))) @ x.T + ridge
        theta = theta + torch.linalg.solve(hessian, gradient)
    a = theta[0] / spread
    return float(a), float(theta[1] - a * center)
