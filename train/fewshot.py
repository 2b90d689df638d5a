"""Few-shot training of an adapter: the base model frozen, prompts and head weights learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.adapter import Adapter
from dsd_trt.train.model import Checkpoint
from dsd_trt.train.noise import DEFAULT_LEVELS, noise_levels
from dsd_trt.train.prompts import AttentionPrompts, PromptConfig
from dsd_trt.train.scoring_unet import ScoringUNet, average_tokens, inner_widths


@dataclass(frozen=True)
class Examples:
    """Labelled pairs, encoded once.

    Attributes:
        latents: z of each image, (images, C, h, w).
        text_states: r_y of each text, (texts, 77, D).
        token_masks: counted tokens of each text, (texts, 77).
        images: image of each pair, integer (pairs,).
        texts: text of each pair, integer (pairs,).
        labels: 1 where they match, else 0, FP32 (pairs,).
    """

    latents: Tensor
    text_states: Tensor
    token_masks: Tensor
    images: Tensor
    texts: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FewShotSettings:
    """How an adapter is trained.

    Attributes:
        steps: optimiser steps.
        pairs: pairs a step.
        learning_rate: peak, falling linearly to zero.
        rank: of the static prompts.
        hidden: width of the mapping network.
        seed: of initial values, batches and levels.
        noise_seed: of the score's noise levels; export uses the same.
    """

    steps: int = 600
    pairs: int = 32
    learning_rate: float = 2e-3
    rank: int = 4
    hidden: int = 32
    seed: int = 0
    noise_seed: int = 0


def fit_adapter(
    checkpoint: Checkpoint,
    examples: Examples,
    settings: FewShotSettings,
    *,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Adapter:
    """Learn prompts, head weights, a and b by binary cross-entropy (Eq. 6).

    Every step scores its pairs at one random noise level each. At the end a and b are fitted
    again, to the score averaged over all levels, which is what is served.

    Args:
        checkpoint: the base model; not changed.
        examples: matching and non-matching pairs.
        settings: sizes and lengths.
        report: called with (step, loss).

    Returns:
        The adapter.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    unet = checkpoint.unet
    config = PromptConfig(settings.rank, settings.hidden, checkpoint.latent_shape[0])
    prompts = AttentionPrompts(inner_widths(unet), int(unet.config["cross_attention_dim"]), config)
    levels = noise_levels(
        checkpoint.alphas_cumprod, checkpoint.latent_shape, DEFAULT_LEVELS, settings.noise_seed
    )
    scoring = ScoringUNet(unet, levels, prompts=prompts)
    heads = HeadWeights(scoring.heads)
    match = MatchProbability()
    learned = [*prompts.parameters(), *heads.parameters(), *match.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.01)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        chosen = torch.randint(len(examples), (settings.pairs,), generator=generator)
        level = torch.randint(len(DEFAULT_LEVELS), (settings.pairs,), generator=generator)
        f = score(scoring, heads(), examples, chosen, level)
        loss = F.binary_cross_entropy_with_logits(match(f), examples.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item())
    f = score_all(scoring, heads(), examples)
    a, b = fit_match_probability(f, examples.labels)
    return Adapter(
        prompt_config=config,
        prompt_state={name: value.detach() for name, value in prompts.state_dict().items()},
        head_weights=[weights.detach() for weights in heads()],
        a=a,
        b=b,
        base=checkpoint.weight_hashes,
    )


class HeadWeights(nn.Module):
    """w_{l,h}: a softmax over all heads of all layers, uniform at first."""

    def __init__(self, heads: list[int]) -> None:
        super().__init__()
        self.heads = heads
        self.logits = nn.Parameter(torch.zeros(sum(heads)))

    def forward(self) -> tuple[Tensor, ...]:
        """One tensor (heads,) a layer; together they sum to 1."""
        return self.logits.softmax(dim=0).split(self.heads)


class MatchProbability(nn.Module):
    """The logit a f + b of a match; a is kept positive, so that ranking is f's."""

    def __init__(self) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.tensor(-3.0))

    def forward(self, f: Tensor) -> Tensor:
        """Logits of scores, same shape."""
        return self.log_a.exp() * f + self.b


def score(
    scoring: ScoringUNet,
    head_weights: tuple[Tensor, ...],
    examples: Examples,
    pairs: Tensor,
    level: Tensor,
) -> Tensor:
    """F of some pairs with head weights that take gradients, (pairs,)."""
    texts = examples.texts[pairs]
    latents = examples.latents[examples.images[pairs]]
    pooled = scoring.pooled_scores(latents, level, examples.text_states[texts])
    token_scores = torch.zeros(len(pairs), examples.token_masks.shape[1])
    for (_, layer_scores), weights in zip(pooled, head_weights, strict=True):
        token_scores = token_scores + (layer_scores * weights[:, None]).sum(dim=1)
    return average_tokens(token_scores, examples.token_masks[texts])


@torch.no_grad()
def score_all(
    scoring: ScoringUNet, head_weights: tuple[Tensor, ...], examples: Examples, batch: int = 64
) -> Tensor:
    """F of every pair, averaged over the noise levels, (pairs,)."""
    scores = []
    for pairs in torch.arange(len(examples)).split(batch):
        at_levels = [
            score(scoring, head_weights, examples, pairs, torch.full((len(pairs),), level))
            for level in range(len(scoring.timesteps))
        ]
        scores.append(torch.stack(at_levels).mean(dim=0))
    return torch.cat(scores)


def fit_match_probability(f: Tensor, labels: Tensor) -> tuple[float, float]:
    """The a and b of greatest likelihood for fixed scores: logistic regression by Newton's method.

    Args:
        f: scores, (pairs,).
        labels: 0 or 1, (pairs,).
    """
    center, spread = f.double().mean(), f.double().std().clamp(min=1e-12)
    x = torch.stack([(f.double() - center) / spread, torch.ones_like(f, dtype=torch.float64)])
    y = labels.double()
    theta = torch.zeros(2, dtype=torch.float64)
    ridge = 1e-3 * torch.eye(2, dtype=torch.float64)  # keeps separable data finite
    for _ in range(50):
        p = torch.sigmoid(theta @ x)
        gradient = x @ (y - p) - ridge @ theta
        hessian = (x * (p * (1 - p))) @ x.T + ridge
        theta = theta + torch.linalg.solve(hessian, gradient)
    a = theta[0] / spread
    return float(a), float(theta[1] - a * center)
