"""The FP32 PyTorch model: what every other path of the project is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.export.probe import Probe
from dsd_trt.export.recipe import Recipe
from dsd_trt.train.diffusion.checkpoint import token_mask
from dsd_trt.train.diffusion.families import TOKENS
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

_FED = 2  # pairs to look at layer by layer


@dataclass(frozen=True)
class Expected:
    """What the reference computes on a probe.

    Attributes:
        probe: images and texts.
        input_ids: (texts, 77).
        latent: z, (images, C, h, w).
        text_states: r_y, (texts, 77, D).
        token_mask: (texts, 77).
        scores: f(y, x), (images, texts), the mean over the probe's levels.
        matrix: the same in matrix mode; None where that is not looked at.
    """

    probe: Probe
    input_ids: NDArray[np.int32]
    latent: NDArray[np.float32]
    text_states: NDArray[np.float32]
    token_mask: NDArray[np.float32]
    scores: NDArray[np.float32]
    matrix: NDArray[np.float32] | None

    def feeds(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The inputs of each graph for a few of the pairs, exact: all of the levels of each."""
        levels = np.array(self.probe.levels, np.int32)
        rows, level = np.repeat(np.arange(_FED), len(levels)), np.tile(levels, _FED)
        fed: dict[str, dict[str, NDArray[Any]]] = {
            "image_encoder": {"pixels": self.probe.pixels[:_FED]},
            "text_encoder": {"input_ids": self.input_ids[:_FED]},
            "pair_scorer": {
                "latent": self.latent[rows],
                "level": level,
                "text_states": self.text_states[rows],
                "token_mask": self.token_mask[rows],
            },
        }
        if self.matrix is not None:
            fed["matrix_scorer"] = {
                "latent": self.latent[rows],
                "level": level,
                "text_states": self.text_states[:_FED],
                "token_mask": self.token_mask[:_FED],
            }
        return fed


class Reference:
    """Scores as METHOD has it, in FP32 PyTorch.

    Each part of the model is read when it is first needed, and kept by the checkpoint until
    `expect` is done with it.

    Args:
        recipe: which model and score it is, which tokens count (Eq. 4), and whether matrix mode is
            computed too.
        batch: images, texts or (image, text, level) triples at a time; the reference is batch 1.
    """

    def __init__(self, recipe: Recipe, batch: int = 1) -> None:
        self.batch = batch
        self._recipe = recipe
        self._checkpoint = recipe.checkpoint
        self._method, self._matrix = recipe.manifest.method, recipe.manifest.matrix

    @cached_property
    def scoring(self) -> ScoringUNet:
        """The scoring U-Net, FP32."""
        return self._recipe.scoring(self._checkpoint.read_unet())

    @cached_property
    def matrix_scorer(self) -> MatrixScorer:
        """The scoring U-Net in matrix mode, where that was asked for."""
        assert self._matrix is not None
        empty = self.encode_texts(self.tokenize([""])[0])
        return MatrixScorer(self.scoring, empty, self._matrix.query_pool)

    @torch.no_grad()
    def encode_images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Latents z, (images, C, h, w), of uint8 (images, H, W, 3)."""
        parts = torch.from_numpy(pixels).split(self.batch)
        return torch.cat([self._checkpoint.image_encoder(part) for part in parts])

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (texts, 77) each."""
        tokenizer = self._checkpoint.tokenizer
        ids = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        ).input_ids
        return ids, token_mask(ids, tokenizer.eos_token_id, self._method.token_mask)

    @torch.no_grad()
    def encode_texts(self, ids: Tensor) -> Tensor:
        """Text states r_y, (texts, rows, D)."""
        return torch.cat([self._checkpoint.text_encoder(part) for part in ids.split(self.batch)])

    @torch.no_grad()
    def score(
        self,
        latent: Tensor,
        states: Tensor,
        mask: Tensor,
        step: Callable[[int, int], None] | None = None,
        levels: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """The score of every image and text, averaged over levels (Eq. 4).

        Args:
            latent: z, (images, C, h, w).
            states: r_y, (texts, 77, D).
            mask: (texts, 77).
            step: told how many triples are scored, and of how many.
            levels: indices of noise levels; None is all of them.

        Returns:
            (images, texts).
        """
        images, texts = len(latent), len(states)
        at = torch.arange(len(self.scoring.timesteps)) if levels is None else torch.tensor(levels)
        compared = self.scoring.denoising  # with the text that says nothing
        total, scored = images * (texts + compared) * len(at), 0

        def mean_over_levels(states: Tensor, mask: Tensor) -> list[Tensor]:
            """(images, texts) each: attention score and, where it is computed, denoising error."""
            nonlocal scored
            shape = (images, len(states), len(at))
            triples = torch.cartesian_prod(torch.arange(images), torch.arange(len(states)), at)
            parts: list[tuple[Tensor, ...]] = []
            for image, text, level in (p.unbind(dim=1) for p in triples.split(self.batch)):
                score, _, *error = self.scoring(latent[image], level, states[text], mask[text])
                parts.append((score, *error))
                scored += len(level)
                if step:
                    step(scored, total)
            return [
                torch.cat(part).double().view(shape).mean(dim=2)
                for part in zip(*parts, strict=True)
            ]

        f, *error = mean_over_levels(states, mask)
        if not compared:
            return f.float().numpy()
        ids, mask = self.tokenize([""])
        _, without = mean_over_levels(self.encode_texts(ids), mask)  # (images, 1)
        d = without - error[0]
        combined = d if self._method.score == "denoising" else f + self._method.denoising_weight * d
        return combined.float().numpy()

    @torch.no_grad()
    def score_matrix(
        self, latent: Tensor, states: Tensor, mask: Tensor, levels: Sequence[int]
    ) -> NDArray[np.float32]:
        """The matrix mode's score of every image and text, one pair at a time; as `score`."""
        scorer = self.matrix_scorer
        scores = np.zeros((len(latent), len(states)))
        for i, j in np.ndindex(scores.shape):
            for level in levels:
                at = torch.tensor([level])
                pair = scorer(latent[i : i + 1], at, states[j : j + 1], mask[j : j + 1])
                scores[i, j] += pair.item() / len(levels)
        return scores.astype(np.float32)

    def expect(self, probe: Probe, step: Callable[[int, int], None] | None = None) -> Expected:
        """Compute everything a path is compared with; `step` as in `score`."""
        latent = self.encode_images(probe.pixels)
        ids, mask = self.tokenize(probe.texts)
        states = self.encode_texts(ids)
        self._checkpoint.forget()  # each part has had its turn: one in memory at a time
        return Expected(
            probe=probe,
            input_ids=ids.int().numpy(),
            latent=latent.numpy(),
            text_states=states.numpy(),
            token_mask=mask.numpy(),
            scores=self.score(latent, states, mask, step, probe.levels),
            matrix=(
                self.score_matrix(latent, states, mask, probe.levels) if self._matrix else None
            ),
        )
