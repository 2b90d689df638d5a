"""Pair mode and matrix mode of one model in PyTorch, on the same encoded images and texts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.encodings import Encodings
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.token_heads import TokenHeads

_PAIRS, _TEXTS = 64, 16  # pairs of a U-Net pass, and texts that are matched at once


class TwoModes:
    """A model with an adapter, or without, as export puts both of its scorers into a bundle.

    Args:
        checkpoint: base model, on the device that scores.
        adapter: few-shot adapter; None scores zero-shot. Its own token heads are not used.
        encodings: encoded images and texts that are scored.
    """

    def __init__(
        self, checkpoint: Checkpoint, adapter: Adapter | None, encodings: Encodings
    ) -> None:
        self.scoring = build_scoring_unet(checkpoint, adapter)
        self.matrix = MatrixScorer(self.scoring, encodings.unconditional.to(checkpoint.device))
        self._device = checkpoint.device
        self._latents, self._masks = encodings.latents, encodings.token_masks
        self._states = encodings.text_states
        counted = self._masks.amax(dim=0).nonzero()
        self.tokens = int(counted.max()) + 1 if len(counted) else 1

    @property
    def levels(self) -> int:
        """Number of noise levels."""
        return len(self.scoring.levels)

    @property
    def list_level(self) -> int:
        """Index of the noise level of the walk that makes a list: the middle one."""
        return (self.levels - 1) // 2

    @torch.no_grad()
    def score(
        self, images: NDArray[np.intp], texts: NDArray[np.intp], level: int
    ) -> NDArray[np.float32]:
        """Pair mode's scores of some pairs at one noise level, FP32 (pairs,).

        Args:
            images: place of each pair's image among the latents, (pairs,).
            texts: place of each pair's text among the states, (pairs,).
            level: index of the noise level.
        """
        found = []
        for start in range(0, len(images), _PAIRS):
            x, y = images[start : start + _PAIRS], texts[start : start + _PAIRS]
            inputs = (self._latents[x], torch.full((len(x),), level), *self._text(y))
            score, *_ = self.scoring(*(it.to(self._device) for it in inputs))
            found.append(score.cpu().numpy())
        return np.concatenate(found) if found else np.empty(0, np.float32)

    @torch.no_grad()
    def pooled(self, image: int, texts: NDArray[np.intp]) -> Tensor:
        """Matrix mode's pooled attention of an image with some texts, from one walk.

        Returns:
            S of the tokens that may count, FP16 (texts, tokens, heads).
        """
        latent = self._latents[image : image + 1].to(self._device)
        level = torch.tensor([self.list_level], device=self._device)
        queries = self.matrix.queries(latent, level)
        found = []
        for start in range(0, len(texts), _TEXTS):
            states, _ = self._text(texts[start : start + _TEXTS])
            pooled = self.matrix.pool(queries, latent, states[None].to(self._device), self.tokens)
            # (1, heads, texts, tokens) -> (texts, tokens, heads)
            found.append(pooled[0].permute(1, 2, 0).half().cpu())
        return torch.cat(found)

    def words(self, texts: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """States and mask of the tokens that may count, (texts, tokens, D) and (texts, tokens)."""
        states, mask = self._text(texts)
        return self.matrix.words(states)[:, : self.tokens], mask[:, : self.tokens]

    @torch.no_grad()
    def estimates(
        self, heads: TokenHeads, pooled: Tensor, texts: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Matrix mode's estimates with token heads.

        Args:
            heads: token heads to estimate with.
            pooled: pooled attention of some images with the texts, (images, texts, tokens, heads).
            texts: places of the texts.

        Returns:
            FP32 (images, texts).
        """
        weights = heads.weights(*self.words(texts))
        rows = [(image.float() * weights).sum(dim=(1, 2)) + heads.offset for image in pooled]
        return torch.stack(rows).numpy()

    def _text(self, texts: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        return self._states[texts], self._masks[texts]
