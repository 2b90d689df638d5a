"""The FP32 PyTorch reference, which every engine is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from dsd_trt.train.run.threads import one_thread
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

_FED = 2  # pairs that are compared layer by layer


@dataclass(frozen=True)
class Expected:
    """Outputs of the reference on a probe.

    Attributes:
        probe: images, texts and levels that were scored.
        input_ids: token ids of the texts, (texts, 77).
        latent: latents z of the images, (images, C, h, w).
        text_states: text states r_y, (texts, 77, D).
        token_mask: 1 where a token counts in Eq. 4, else 0, (texts, 77).
        scores: scores f(y, x), the mean over the probe's levels, (images, texts).
        matrix: matrix mode's scores, (images, texts); None without a matrix scorer.
    """

    probe: Probe
    input_ids: NDArray[np.int32]
    latent: NDArray[np.float32]
    text_states: NDArray[np.float32]
    token_mask: NDArray[np.float32]
    scores: NDArray[np.float32]
    matrix: NDArray[np.float32] | None

    def feeds(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Inputs of each graph for a few pairs at all of the probe's levels, by graph and name."""
        levels = np.array(self.probe.levels, np.int32)
        # (pairs * levels,) each
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
    """The method's scores in FP32 PyTorch.

    Each part of the checkpoint is read when it is first needed. The checkpoint keeps it until
    `expect` has finished with it.

    Args:
        recipe: ingredients of the export: checkpoint, score, counted tokens (Eq. 4), matrix mode.
        batch: images, texts or passes per batch; the default of 1 is the reference.
    """

    def __init__(self, recipe: Recipe, batch: int = 1) -> None:
        self.batch = batch
        self._recipe = recipe
        self._checkpoint = recipe.checkpoint
        self._method, self._matrix = recipe.manifest.method, recipe.manifest.matrix

    def threads(self) -> AbstractContextManager[None]:
        """Block in which the reference computes on one thread if its U-Net is small."""
        return nullcontext() if self._recipe.large else one_thread()

    @cached_property
    def scoring(self) -> ScoringUNet:
        """The scoring U-Net in FP32."""
        return self._recipe.build_scoring(self._checkpoint.read_unet())

    @cached_property
    def matrix_scorer(self) -> MatrixScorer:
        """The matrix scorer in FP32; the export must include matrix mode."""
        assert self._matrix is not None
        unconditional = self.encode_texts(self.tokenize([""])[0])  # (1, 77, D)
        return self._recipe.build_matrix(self.scoring, unconditional)

    @torch.no_grad()
    def encode_images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Encode images as latents z: uint8 (images, H, W, 3) -> (images, C, h, w)."""
        parts = torch.from_numpy(pixels).split(self.batch)
        return torch.cat([self._checkpoint.image_encoder(part) for part in parts])

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of counted tokens, (texts, 77) each."""
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
        """Encode token ids as text states r_y: (texts, 77) -> (texts, rows, D)."""
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
        """Score every image with every text, averaged over levels (Eq. 4).

        Args:
            latent: latents z of the images, (images, C, h, w).
            states: text states r_y, (texts, 77, D).
            mask: mask of counted tokens, (texts, 77).
            step: callback `(done, total)` in passes.
            levels: indices of the noise levels to score; None is all of them.

        Returns:
            The scores, (images, texts).
        """
        images, texts = len(latent), len(states)
        at = torch.arange(len(self.scoring.timesteps)) if levels is None else torch.tensor(levels)
        compared = self.scoring.denoising  # with the unconditional text
        total, scored = images * (texts + compared) * len(at), 0

        def mean_over_levels(states: Tensor, mask: Tensor) -> list[Tensor]:
            """Attention score and, if it is computed, denoising error, (images, texts) each."""
            nonlocal scored
            shape = (images, len(states), len(at))
            # (images * texts * levels, 3): image, text and level of each pass
            passes = torch.cartesian_prod(torch.arange(images), torch.arange(len(states)), at)
            parts: list[tuple[Tensor, ...]] = []
            for image, text, level in (p.unbind(dim=1) for p in passes.split(self.batch)):
                score, _, *error = self.scoring(latent[image], level, states[text], mask[text])
                parts.append((score, *error))
                scored += len(level)
                if step:
                    step(scored, total)
            return [
                # (images * texts * levels,) -> (images, texts)
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
        """Matrix mode's score of every image and text, one pair at a time.

        An image is walked once per level, because the walk does not depend on the text.

        Args:
            latent: latents z of the images, (images, C, h, w).
            states: text states r_y, (texts, 77, D).
            mask: mask of counted tokens, (texts, 77).
            levels: indices of the noise levels to score.

        Returns:
            The mean over the levels, (images, texts).
        """
        scorer = self.matrix_scorer
        scores = np.zeros((len(latent), len(states)))
        for i, level in itertools.product(range(len(latent)), levels):
            image = latent[i : i + 1]
            queries = scorer.queries(image, torch.tensor([level]))
            for j in range(len(states)):
                pair = scorer.match_texts(queries, image, states[j : j + 1], mask[j : j + 1])
                scores[i, j] += pair.item() / len(levels)
        return scores.astype(np.float32)

    def expect(self, probe: Probe, step: Callable[[int, int], None] | None = None) -> Expected:
        """Compute all outputs that engines are compared with.

        Args:
            probe: images, texts and levels to score.
            step: callback `(done, total)` in passes.
        """
        with self.threads():
            latent = self.encode_images(probe.pixels)
            ids, mask = self.tokenize(probe.texts)
            states = self.encode_texts(ids)
            self._checkpoint.forget()  # the encoders are done: one part in memory at a time
            scores = self.score(latent, states, mask, step, probe.levels)
            matrix = None
            if self._matrix is not None:
                matrix = self.score_matrix(latent, states, mask, probe.levels)
        return Expected(
            probe=probe,
            input_ids=ids.int().numpy(),
            latent=latent.numpy(),
            text_states=states.numpy(),
            token_mask=mask.numpy(),
            scores=scores,
            matrix=matrix,
        )
