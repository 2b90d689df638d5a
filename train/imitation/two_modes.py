"""Pair mode and matrix mode of one model in PyTorch, on the same encoded images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.encodings import Encodings
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.relations import Relations
from dsd_trt.train.scoring.scoring_unet import ScoringUNet
from dsd_trt.train.scoring.token_heads import TokenHeads

_PAIRS, _TEXTS = 64, 16  # pairs of a U-Net pass, and texts that are matched at once


@dataclass(frozen=True)
class Matched:
    """What matrix mode sees of images, each with some texts.

    Attributes:
        pooled: pooled attention S, FP16 (images, texts, tokens, heads).
        centres: centres of the first layer's maps, FP16 (images, texts, tokens, its heads, 2).
    """

    pooled: Tensor
    centres: Tensor

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Some images together."""
        return cls(torch.cat([it.pooled for it in parts]), torch.cat([it.centres for it in parts]))

    def __getitem__(self, images: NDArray[np.intp] | slice) -> Matched:
        return Matched(self.pooled[images], self.centres[images])

    def related(self) -> tuple[Tensor, Tensor]:
        """The first layer's S and centres as `Relations` takes them."""
        centres = self.centres.float().permute(0, 3, 1, 2, 4)  # (images, heads, texts, tokens, 2)
        first = self.pooled[..., : centres.shape[1]].float()
        return first.permute(0, 3, 1, 2), centres


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
        self.scoring: ScoringUNet = build_scoring_unet(checkpoint, adapter)
        self.matrix: MatrixScorer = MatrixScorer(
            self.scoring, encodings.unconditional.to(checkpoint.device)
        )
        self._device = checkpoint.device
        self._latents, self._masks = encodings.latents, encodings.token_masks
        self._states = encodings.text_states
        counted = self._masks.amax(dim=0).nonzero()
        self.tokens: int = int(counted.max()) + 1 if len(counted) else 1

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
    def match(self, image: int, texts: NDArray[np.intp]) -> Matched:
        """What matrix mode sees of an image with some texts, at tokens that may count."""
        latent = self._latents[image : image + 1].to(self._device)
        level = torch.tensor([self.list_level], device=self._device)
        queries = self.matrix.queries(latent, level)
        pooled, centres = [], []
        for start in range(0, len(texts), _TEXTS):
            states = self._text(texts[start : start + _TEXTS])[0][None].to(self._device)
            seen = self.matrix.see(queries, latent, states, self.tokens, centres=True)
            assert seen.centres is not None
            # (1, heads, texts, tokens, ...) -> (1, texts, tokens, heads, ...)
            pooled.append(seen.pooled.movedim(1, 3).half().cpu())
            centres.append(seen.centres.movedim(1, 3).half().cpu())
        return Matched(torch.cat(pooled, dim=1), torch.cat(centres, dim=1))

    def words(self, texts: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """States and mask of the tokens that may count, (texts, tokens, D) and (texts, tokens)."""
        states, mask = self._text(texts)
        return self.matrix.words(states)[:, : self.tokens], mask[:, : self.tokens]

    @torch.no_grad()
    def estimates(
        self,
        heads: TokenHeads,
        matched: Matched,
        texts: NDArray[np.intp],
        relations: Relations | None = None,
    ) -> NDArray[np.float32]:
        """Matrix mode's estimates with token heads.

        Args:
            heads: token heads to estimate with.
            matched: what matrix mode sees of some images, all with the same texts.
            texts: places of the texts.
            relations: relations whose R is added; None adds nothing.

        Returns:
            FP32 (images, texts).
        """
        words, mask = self.words(texts)
        weights = heads.weights(words, mask)
        rows = []
        for image in range(len(matched.pooled)):
            row = (matched.pooled[image].float() * weights).sum(dim=(1, 2)) + heads.offset
            if relations is not None:
                seen = matched[image : image + 1].related()
                row += relations(words[None], mask[None], *seen)[0].sum(dim=1)
            rows.append(row)
        return torch.stack(rows).numpy()

    def _text(self, texts: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        return self._states[texts], self._masks[texts]
