"""A step's twins as tensors, with all that the losses know of them: what workers prepare."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTokenizer

from dsd_trt.train.shapes.batch import Batch, sample_batch
from dsd_trt.train.shapes.naming import unsaid
from dsd_trt.train.shapes.scene import Scene
from dsd_trt.train.shapes.settings import Settings
from dsd_trt.train.shapes.twins import MAX_THINGS, TwinLatents
from dsd_trt.train.shapes.workers import Worker

_LOADERS = 8  # processes that prepare lessons for a GPU


@dataclass(frozen=True)
class Lesson:
    """A batch, encoded. A row is a pair: every picture with its own caption, then its twin's.

    Attributes:
        latents: as `Batch.latents`, and so are `masks`, `timesteps`, `noise`, `ranked`, `telling`.
        ids: of the captions, (pictures, 77).
        words: ids of colour and shape of each picture's things, (pictures, MAX_THINGS, 2).
        order: whose caption each row has, (rows,).
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
    order: Tensor
    labels: Tensor
    hidden: Tensor

    def to(self, device: torch.device) -> Lesson:
        """The same on a device."""
        return Lesson(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )


def prepare(batch: Batch, tokenizer: CLIPTokenizer) -> Lesson:
    """Encode a batch."""
    pictures = len(batch.scenes)
    swapped = torch.arange(pictures).view(-1, 2).flip(1).flatten()
    order = torch.cat([torch.arange(pictures), swapped])
    told_to = [batch.captions[i] for i in order.tolist()]
    masks = torch.cat([batch.masks.flatten(0, 1)] * 2)
    labels, hidden = unsaid(batch.scenes * 2, told_to, masks)
    return Lesson(
        batch.latents,
        batch.masks,
        batch.timesteps,
        batch.noise,
        batch.ranked,
        batch.telling,
        tokenize(tokenizer, batch.captions),
        words_of(batch.scenes, tokenizer),
        order,
        labels,
        hidden,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids, (captions, 77)."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    return ids


def words_of(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    """Ids of colour and shape of each thing, -1 where there is none: (scenes, MAX_THINGS, 2)."""
    words = torch.full((len(scenes), MAX_THINGS, 2), -1)
    for i, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            words[i, k] = torch.tensor(
                tokenizer.convert_tokens_to_ids([f"{thing.colour}</w>", f"{thing.shape}</w>"])
            )
    return words


def lessons(
    data: TwinLatents,
    settings: Settings,
    start: int,
    tokenizer: CLIPTokenizer,
    worker: Worker,
    device: torch.device,
) -> Iterator[Lesson]:
    """The lessons from step `start` on, on a device; each follows from its step alone.

    A GPU is faster than one process prepares them, so several do, ahead of it.
    """
    steps = _Steps(data, settings, start, tokenizer, worker)
    loaders = 0 if device.type == "cpu" else max(min(_LOADERS, (os.cpu_count() or 1) - 1), 1)
    loader: DataLoader[Lesson] = DataLoader(
        steps, batch_size=None, num_workers=loaders, collate_fn=_unchanged
    )
    for lesson in loader:
        yield lesson.to(device)


class _Steps(Dataset[Lesson]):
    def __init__(
        self,
        data: TwinLatents,
        settings: Settings,
        start: int,
        tokenizer: CLIPTokenizer,
        worker: Worker,
    ) -> None:
        self._data, self._settings, self._start = data, settings, start
        self._tokenizer, self._worker = tokenizer, worker

    def __len__(self) -> int:
        return self._settings.steps - self._start

    def __getitem__(self, index: int) -> Lesson:
        batch = sample_batch(self._data, self._settings, self._start + index, self._worker)
        return prepare(batch, self._tokenizer)


def _unchanged(lesson: Any) -> Any:
    return lesson
