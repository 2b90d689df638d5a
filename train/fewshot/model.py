"""The model an adapter is trained in, and how it scores examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.bundle.manifest import Mode
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import MatchProbability, combine
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.scoring.head_weights import (
    LearnedHeadWeights,
    calibrated_weights,
    head_attributions,
)
from dsd_trt.train.scoring.layers import inner_widths, text_width
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.prompts import AttentionPrompts, PromptConfig
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_heads, average_tokens

_BATCH = 64  # pairs scored at a time where no gradients are kept


class FewShotModel(nn.Module):
    """The frozen scoring U-Net with everything that is learned around it.

    Args:
        scoring: with prompts.
        heads: weights of its heads.
        match: the logistic.
        matrix: the matrix scorer around the same U-Net and prompts; None where only pair mode is
            of interest.
    """

    def __init__(
        self,
        scoring: ScoringUNet,
        heads: LearnedHeadWeights,
        match: MatchProbability,
        matrix: MatrixScorer | None = None,
        modes: tuple[Mode, ...] = ("pair",),
    ) -> None:
        super().__init__()
        self.matrix = matrix
        self.modes = modes
        self.scoring = scoring
        self.heads = heads
        self.match = match

    def learned(self) -> dict[str, Tensor]:
        """Copies of everything that belongs to the adapter, by name."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            if not name.startswith(("scoring.unet.", "matrix."))  # which shares what is learned
        }

    def forward(
        self, latent: Tensor, level: Tensor, text_states: Tensor, token_mask: Tensor, empty: Tensor
    ) -> Tensor:
        """Logits of matches in each mode that is trained, (modes, batch).

        Args:
            latent: z, (batch, C, h, w).
            level: index into the noise levels, integer (batch,).
            text_states: r_y, (batch, 77, D).
            token_mask: (batch, 77).
            empty: states of the text that says nothing, (1, 77, D).
        """
        pairs = (latent, level, text_states, token_mask)
        logits = []
        for mode in self.modes:
            f, error = self.attend(*pairs, mode)
            if error is not None:
                nothing = empty.expand(len(latent), -1, -1)
                _, without = self.attend(latent, level, nothing, token_mask)
                assert without is not None
                error = without - error
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
        """Attention score f and, where the score needs it, denoising error, (batch,) each."""
        if mode == "matrix":
            assert self.matrix is not None
            own = (text_states[:, None], token_mask[:, None])  # one text for each image
            return self.matrix.score(latent, level, *own, self.heads())[:, 0], None
        response = self.scoring.respond(latent, level, text_states, token_mask)
        f = average_tokens(average_heads(response, self.heads()), token_mask)
        return f, response.denoising_error


def build_model(
    checkpoint: Checkpoint, examples: Examples, settings: FewShotSettings
) -> FewShotModel:
    """The model before its first step: an exact identity of the base model's score.

    Raises:
        ValueError: settings that matrix mode does not have.
    """
    unet = checkpoint.unet  # reading it draws random numbers: before the seed
    torch.manual_seed(settings.seed)
    config = PromptConfig(settings.rank, settings.hidden, checkpoint.latent_shape[0])
    prompts = AttentionPrompts(inner_widths(unet), text_width(unet), config)
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
    if settings.head_mode == "calibrated":
        initial = _calibrate(scoring, examples)
    heads = LearnedHeadWeights(initial, learned=settings.head_mode == "learned")
    matrix = MatrixScorer(scoring, examples.empty) if settings.mode != "pair" else None
    return FewShotModel(scoring, heads, MatchProbability(settings.score), matrix, settings.modes)


def _calibrate(scoring: ScoringUNet, examples: Examples) -> Tensor:
    """Head weights by exact attribution over all right pairs and levels (Eq. 7)."""
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
    """Attention score f and denoising term d of every pair, averaged over levels, (pairs,) each."""
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
    every = torch.arange(len(examples.latents))
    _, without = _mean_over_levels(
        model,
        mode,
        examples.latents,
        examples.empty,
        examples.token_masks[:1],
        every,
        torch.zeros_like(every),
    )
    assert without is not None
    return f, without[examples.images] - error


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
    """Answer questions with the score that is served, averaged over levels and over modes."""
    answers, losses = [], []
    for mode in model.modes:
        f, d = score_all(model, examples, mode)
        answers += examples.right_answers(combine(model.match.score, model.match.w, f, d))
        device = model.match.b.device
        with torch.no_grad():
            logits = model.match(f.to(device), d if d is None else d.to(device)).cpu()
        losses.append(float(F.binary_cross_entropy_with_logits(logits, examples.labels)))
    return Validation(step, float(np.mean(answers)), float(np.mean(losses)))


@dataclass(frozen=True)
class Validation:
    """Figures after some steps: share of questions answered right, and cross-entropy (Eq. 6)."""

    step: int
    accuracy: float
    loss: float
