"""The trained model: a frozen scoring U-Net with prompts, head weights and match probability."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.bundle.method import Mode
from dsd_trt.train.build import build_prompts
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import MatchProbability, combine
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.head_weights import (
    LearnedHeadWeights,
    calibrated_weights,
    head_attributions,
)
from dsd_trt.train.scoring.layers import inner_widths, text_width
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.prompts import AttentionPrompts
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_heads, average_tokens
from dsd_trt.train.scoring.updates import LowRankUpdates

_BATCH = 64  # pairs per forward pass without gradients


class FewShotModel(nn.Module):
    """The frozen scoring U-Net together with all learned parameters.

    Args:
        scoring: scoring U-Net with its prompts.
        heads: weights w_{l,h} of all heads of all scored layers.
        match: match probability sigmoid(a s + b) of the score.
        matrix: matrix scorer that shares the U-Net and the prompts; None for pair mode alone.
        modes: modes that are trained, "pair", "matrix" or both.
        updates: updates of the U-Net's matrices, in effect inside their `applied_to` alone; None
            trains prompts alone.
    """

    def __init__(
        self,
        scoring: ScoringUNet,
        heads: LearnedHeadWeights,
        match: MatchProbability,
        matrix: MatrixScorer | None = None,
        modes: tuple[Mode, ...] = ("pair",),
        updates: LowRankUpdates | None = None,
    ) -> None:
        super().__init__()
        self.updates = updates
        self.matrix = matrix
        self.modes = modes
        self.scoring = scoring
        self.heads = heads
        self.match = match

    def updated(self) -> AbstractContextManager[None]:
        """Context in which the U-Net computes with its updates; training and scoring need it."""
        if self.updates is None:
            return nullcontext()
        return self.updates.applied_to(self.scoring.unet)

    def learned(self) -> dict[str, Tensor]:
        """Copies of the adapter's parameters on the CPU, by their names in the state_dict."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            # "matrix." repeats what it shares with "scoring."
            if not name.startswith(("scoring.unet.", "matrix."))
        }

    def forward(
        self,
        latent: Tensor,
        level: Tensor,
        text_states: Tensor,
        token_mask: Tensor,
        unconditional: Tensor,
    ) -> Tensor:
        """Logit of each pair's match in each trained mode, (modes, batch).

        Args:
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, 77, D).
            token_mask: 1 where a token counts, else 0, (batch, 77).
            unconditional: r_y of the unconditional text, (1, 77, D).
        """
        pairs = (latent, level, text_states, token_mask)
        logits = []
        for mode in self.modes:
            f, error = self.attend(*pairs, mode)
            if error is not None:
                states = unconditional.expand(len(latent), -1, -1)
                _, without = self.attend(latent, level, states, token_mask)
                assert without is not None
                error = without - error  # d: the text's reduction of the denoising error
            logits.append(self.match(f, error))
        return torch.stack(logits)

    def attend(
        self,
        latent: Tensor,
        level: Tensor,
        text_states: Tensor,
        token_mask: Tensor,
        mode: Mode = "pair",
    ) -> tuple[Tensor, Tensor | None]:
        """Attention score f and, if the score has a denoising term, denoising error, (batch,) each.

        Args:
            latent: clean latent z, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, 77, D).
            token_mask: 1 where a token counts, else 0, (batch, 77).
            mode: mode of scoring, "pair" or "matrix".
        """
        if mode == "matrix":
            assert self.matrix is not None
            own = (text_states[:, None], token_mask[:, None])  # one text for each image
            heads = None if self.matrix.token_heads is not None else self.heads()
            return self.matrix.score(latent, level, *own, heads)[:, 0], None
        response = self.scoring.respond(latent, level, text_states, token_mask)
        f = average_tokens(average_heads(response, self.heads()), token_mask)
        return f, response.denoising_error


def build_model(
    checkpoint: Checkpoint,
    examples: Examples,
    settings: FewShotSettings,
    start: Adapter | None = None,
) -> FewShotModel:
    """The model at step 0, which scores exactly as what training starts from.

    Args:
        checkpoint: base model, whose U-Net the model shares.
        examples: few-shot examples, to which calibrated head weights are fitted.
        settings: hyperparameters of few-shot training, see `continued`.
        start: adapter that training starts from; None is the base model.

    Raises:
        ModelError: the adapter is of another model.
    """
    unet = checkpoint.unet  # read before seeding, because reading draws random numbers
    torch.manual_seed(settings.seed)
    config = PromptConfig(settings.rank, settings.hidden, checkpoint.latent_shape[0])
    prompts = AttentionPrompts(inner_widths(unet), text_width(unet), config)
    if start is not None:
        start.require_base(checkpoint.weight_hashes)
        if start.prompt_config is not None:
            prompts = build_prompts(unet, start, start.prompt_config).requires_grad_(True)
    if not settings.conditional:
        prompts.freeze_condition()
    levels = noise_levels(
        checkpoint.alphas_cumprod, checkpoint.latent_shape, settings.levels, settings.noise_seed
    )
    scoring = ScoringUNet(
        unet,
        levels,
        prompts=prompts,
        dynamic_heads=settings.head_mode == "dynamic",
        denoising=settings.score != "attention",
        prediction=checkpoint.prediction,
        resolution=checkpoint.resolution,
    ).to(checkpoint.device)
    scoring.checkpointing = settings.recompute
    initial = scoring.head_weights
    if start is not None:
        initial = torch.cat(start.weights_of(scoring.score_layers, scoring.heads))
        initial = initial.to(scoring.head_weights.device)
    elif settings.head_mode == "calibrated":
        initial = _calibrate(scoring, examples)
    heads = LearnedHeadWeights(initial, learned=settings.head_mode == "learned")
    matrix = MatrixScorer(scoring, examples.unconditional) if settings.mode != "pair" else None
    match = MatchProbability(settings.score)
    if start is not None and start.score == settings.score:
        match.continue_from(start, "matrix" if settings.mode == "matrix" else "pair")
    updates = None
    if settings.update_rank:
        updates = LowRankUpdates(unet, settings.update_rank, start.merged if start else {})
    return FewShotModel(scoring, heads, match, matrix, settings.modes, updates)


def _calibrate(scoring: ScoringUNet, examples: Examples) -> Tensor:
    """Head weights by exact attribution over all positive pairs and levels (Eq. 7)."""
    attributions = []
    for pairs in examples.right.split(_BATCH):
        images, texts = examples.images[pairs], examples.texts[pairs]
        for level in range(len(scoring.timesteps)):
            inputs = (
                examples.latents[images],
                torch.full((len(pairs),), level),
                examples.text_states[texts],
                examples.token_masks[texts],
            )
            device = scoring.head_weights.device
            attributions.append(head_attributions(scoring, *(part.to(device) for part in inputs)))
    return calibrated_weights(attributions)


@torch.no_grad()
def score_all(
    model: FewShotModel, examples: Examples, mode: Mode = "pair"
) -> tuple[Tensor, Tensor | None]:
    """Score every pair in one mode, averaged over noise levels.

    Args:
        model: model to score with.
        examples: encoded questions whose pairs are scored.
        mode: mode of scoring, "pair" or "matrix".

    Returns:
        Attention score f of each pair, (pairs,), and denoising term d, (pairs,) or None if the
        score has no such term.
    """
    f, error = _mean_over_levels(
        model,
        mode,
        examples.latents,
        examples.text_states,
        examples.token_masks,
        examples.images,
        examples.texts,
    )
    if error is None:
        return f, None
    images, place = examples.images.unique(return_inverse=True)
    _, without = _mean_over_levels(
        model,
        mode,
        examples.latents,
        examples.unconditional,
        examples.token_masks[:1],
        images,
        torch.zeros_like(images),
    )
    assert without is not None
    return f, without[place] - error


def _mean_over_levels(
    model: FewShotModel,
    mode: Mode,
    latents: Tensor,
    states: Tensor,
    masks: Tensor,
    images: Tensor,
    texts: Tensor,
) -> tuple[Tensor, Tensor | None]:
    device, levels = model.match.b.device, len(model.scoring.timesteps)
    scores, errors = [], []
    for x, y in zip(images.split(_BATCH), texts.split(_BATCH), strict=True):
        latent, of_text, mask = (part.to(device) for part in (latents[x], states[y], masks[y]))
        f, error = torch.zeros(len(x)), torch.zeros(len(x))
        for level in range(levels):
            at = torch.full((len(x),), level, device=device)
            of_level, of_error = model.attend(latent, at, of_text, mask, mode)
            f += of_level.cpu() / levels
            if of_error is not None:
                error += of_error.cpu() / levels
        scores.append(f)
        errors.append(error)
    return torch.cat(scores), torch.cat(errors) if model.scoring.denoising else None


def validate(model: FewShotModel, examples: Examples, step: int) -> Validation:
    """Answers to validation questions, and cross-entropy (Eq. 6) averaged over trained modes.

    Args:
        model: model with its present parameters.
        examples: the validation questions, encoded.
        step: number of completed steps.
    """
    scores, losses = [], []
    for mode in model.modes:
        f, d = score_all(model, examples, mode)
        scores.append(combine(model.match.score, model.match.w, f, d))
        device = model.match.b.device
        with torch.no_grad():
            logits = model.match(f.to(device), d if d is None else d.to(device)).cpu()
        losses.append(float(F.binary_cross_entropy_with_logits(logits, examples.labels)))
    return Validation(step, examples.right_answers(*scores), float(np.mean(losses)))


@dataclass(frozen=True)
class Validation:
    """Validation metrics after some steps.

    Attributes:
        step: number of completed steps.
        answers: whether each question was answered right, by every trained mode.
        loss: binary cross-entropy over all pairs (Eq. 6).
    """

    step: int
    answers: tuple[bool, ...]
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of questions answered right, in [0, 1]."""
        return float(np.mean(self.answers))

    def to_plain(self) -> dict[str, float]:
        """Step, accuracy and loss, as JSON takes them."""
        return {"step": self.step, "accuracy": self.accuracy, "loss": self.loss}
