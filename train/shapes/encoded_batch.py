"""A step's batch as tensors alone: what the losses take, and what a GPU is fed with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTokenizer

from dsd_trt.train.diffusion.checkpoint import tokenize
from dsd_trt.train.shapes.batch import TwinBatch, sample_batch
from dsd_trt.train.shapes.naming import unsaid
from dsd_trt.train.shapes.scene import Scene
from dsd_trt.train.shapes.settings import DiffusionSettings
from dsd_trt.train.shapes.twins import MAX_THINGS, TwinLatents
from dsd_trt.train.shapes.workers import Worker

_LOADERS = 8  # processes that encode batches for a GPU


@dataclass(frozen=True)
class EncodedBatch:
    """A batch, encoded. A row is a pair: every picture with its own caption, then its twin's.

    Attributes:
        latents: as `TwinBatch.latents`, and so are `masks`, `timesteps`, `noise`, `ranked` and
            `telling`.
        ids: of the captions, (pictures, 77).
        words: ids of colour and shape of each picture's things, (pictures, MAX_THINGS, 2).
        labels: see `unsaid`, of each row.
        hidden: likewise.
    """

    latents: Tensor
    masks: Tensor
    timesteps: Tensor
    noise: Tensor
    ranked: Tensor
    telling: Tensor
    ids: Tensor
    words: Tensor
    labels: Tensor
    hidden: Tensor

    @property
    def order(self) -> Tensor:
        """Whose caption each row has, (rows,)."""
        return _order(len(self.ids), self.ids.device)

    def to(self, device: torch.device) -> EncodedBatch:
        """The same on a device."""
        return EncodedBatch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )


def encode_batch(batch: TwinBatch, tokenizer: CLIPTokenizer) -> EncodedBatch:
    """Encode a batch."""
    order = _order(len(batch.scenes), batch.latents.device)
    told_to = [batch.captions[i] for i in order.tolist()]
    masks = torch.cat([batch.masks.flatten(0, 1)] * 2)
    labels, hidden = unsaid(batch.scenes * 2, told_to, masks)
    return EncodedBatch(
        batch.latents,
        batch.masks,
        batch.timesteps,
        batch.noise,
        batch.ranked,
        batch.telling,
        tokenize(tokenizer, batch.captions),
        words_of(batch.scenes, tokenizer),
        labels,
        hidden,
    )


def _order(pictures: int, device: torch.device) -> Tensor:
    own = torch.arange(pictures, device=device)
    return torch.cat([own, own.view(-1, 2).flip(1).flatten()])


def words_of(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    """Ids of colour and shape of each thing, -1 where there is none: (scenes, MAX_THINGS, 2)."""
    words = torch.full((len(scenes), MAX_THINGS, 2), -1)
    for i, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            words[i, k] = torch.tensor(
                tokenizer.convert_tokens_to_ids([f"{thing.colour}</w>", f"{thing.shape}</w>"])
            )
    return words


def encoded_batches(
    data: TwinLatents,
    settings: DiffusionSettings,
    start: int,
    tokenizer: CLIPTokenizer,
    worker: Worker,
    device: torch.device,
) -> Iterator[EncodedBatch]:
    """The batches from step `start` on, on a device; each follows from its step alone.

    A GPU is faster than one process encodes them, so several do, ahead of it.
    """
    steps = _Steps(data, settings, start, tokenizer, worker)
    loaders = 0 if device.type == "cpu" else max(min(_LOADERS, (os.cpu_count() or 1) - 1), 1)
    loader: DataLoader[EncodedBatch] = DataLoader(
        steps, batch_size=None, num_workers=loaders, collate_fn=_unchanged
    )
    for batch in loader:
        yield batch.to(device)


class _Steps(Dataset[EncodedBatch]):
    def __init__(
        self,
        data: TwinLatents,
        settings: DiffusionSettings,
        start: int,
        tokenizer: CLIPTokenizer,
        worker: Worker,
    ) -> None:
        self._data, self._settings, self._start = data, settings, start
        self._tokenizer, self._worker = tokenizer, worker

    def __len__(self) -> int:
        return self._settings.steps - self._start

    def __getitem__(self, index: int) -> EncodedBatch:
        batch = sample_batch(self._data, self._settings, self._start + index, self._worker)
        return encode_batch(batch, self._tokenizer)


def _unchanged(batch: Any) -> Any:
    return batch
