"""The batch of a training step as tensors alone, ready for the losses and for a GPU."""

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

_LOADERS = 8  # maximum number of processes that encode batches for a GPU


@dataclass(frozen=True)
class EncodedBatch:
    """An encoded batch, whose rows are pairs.

    The first half of the rows pairs every image with its own caption, the second half with its
    twin's.

    Attributes:
        latents: clean latents z, (twins, 2, C, h, w).
        masks: share of each latent cell that a thing covers, (twins, 2, MAX_THINGS, h, w).
        timesteps: timestep t, shared by a twin's pairs, int64 (twins,).
        noise: noise eps of each image, (twins, 2, C, h, w).
        ranked: 1 where a twin has captions to rank, else 0, (twins,).
        telling: index into `TELLING` of the words that distinguish a twin's captions, (twins,).
        ids: token ids of each image's caption, int64 (images, 77).
        words: token ids of colour and shape of each image's things, -1 for a missing thing, int64
            (images, MAX_THINGS, 2).
        labels: indices of shape and colour of each thing, see `unsaid`, (rows, MAX_THINGS, 2).
        hidden: 1 where a visible thing's word is not in the caption, see `unsaid`,
            (rows, MAX_THINGS, 2).
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
        """Index of the image whose caption each row has, int64 (rows,)."""
        return _order(len(self.ids), self.ids.device)

    def to(self, device: torch.device) -> EncodedBatch:
        """The batch with all tensors on a device."""
        return EncodedBatch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )


def encode_batch(batch: TwinBatch, tokenizer: CLIPTokenizer) -> EncodedBatch:
    """Encode a batch of twins into tensors."""
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


def _order(images: int, device: torch.device) -> Tensor:
    own = torch.arange(images, device=device)
    return torch.cat([own, own.view(-1, 2).flip(1).flatten()])


def words_of(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids of colour and shape of each thing, (scenes, MAX_THINGS, 2); -1 for no thing."""
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
    """The encoded batches from a step on; each depends on its step alone.

    For a GPU several processes encode ahead, because one is slower than the training step.

    Args:
        data: encoded twins to draw from.
        settings: hyperparameters of the stage.
        start: index of the first step.
        tokenizer: CLIP tokenizer of the demonstration's words.
        worker: worker whose part of each batch is encoded.
        device: device the tensors are moved to.
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
