"""Few-shot examples: questions whose images and texts are encoded once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.errors import ImageError, InputError
from dsd_trt.image import ImageSource, image_identity, preprocess
from dsd_trt.manifest import Resize, TokenMask
from dsd_trt.train.data.question import Question
from dsd_trt.train.model import Checkpoint, encode_texts

_BATCH = 16  # images or texts encoded at a time


@dataclass(frozen=True)
class Examples:
    """Encoded questions; candidate c of question q is pair `starts[q] + c`.

    Attributes:
        latents: z of each image, (images, C, h, w).
        text_states: r_y of each text, (texts, 77, D).
        token_masks: counted tokens of each text, (texts, 77).
        images: image of each pair, int64 (pairs,).
        texts: text of each pair, int64 (pairs,).
        starts: first pair of each question, and the number of pairs, int64 (questions + 1,).
        right: the pair that is right, of each question, int64 (questions,).
        empty: r_y of the text that says nothing, (1, 77, D).
    """

    latents: Tensor
    text_states: Tensor
    token_masks: Tensor
    images: Tensor
    texts: Tensor
    starts: Tensor
    right: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.right)

    @property
    def labels(self) -> Tensor:
        """1 where a pair is the right one of its question, FP32 (pairs,)."""
        labels = torch.zeros(len(self.images))
        labels[self.right] = 1
        return labels

    @functools.cached_property
    def matches(self) -> frozenset[tuple[int, int]]:
        """(image, text) of every right pair."""
        of_right = (self.images[self.right].tolist(), self.texts[self.right].tolist())
        return frozenset(zip(*of_right, strict=True))

    def first(self, questions: int) -> Examples:
        """The first few questions alone."""
        starts = self.starts[: questions + 1]
        pairs = int(starts[-1])
        return replace(
            self,
            images=self.images[:pairs],
            texts=self.texts[:pairs],
            starts=starts,
            right=self.right[:questions],
        )

    def right_answers(self, scores: Tensor) -> list[bool]:
        """Whether each question is answered right by the pairs' scores; a tie is wrong."""
        answers = []
        for q, right in enumerate(self.right.tolist()):
            of_question = scores[self.starts[q] : self.starts[q + 1]].tolist()
            best = of_question.pop(right - int(self.starts[q]))
            answers.append(best > max(of_question, default=-float("inf")))
        return answers


def encode_questions(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    *,
    resize: Resize = "bicubic-stretch",
    counted: TokenMask = "words_eos",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:
    """Encode every image and every text of some questions, each once.

    Args:
        checkpoint: the base model.
        questions: at least one.
        resize: how images become the model's squares, see `Resize`.
        counted: which text tokens count.
        progress: told (done, total) images and texts.

    Raises:
        InputError: no questions, one without a wrong candidate, or an image that cannot be
            decoded, with its name.
    """
    if not questions:
        raise InputError("there are no questions to learn from")
    for question in questions:
        if len(question.candidates) < 2:
            raise InputError(f"{question.source}: a question with nothing wrong to tell from right")
    pairs = [pair for question in questions for pair in question.candidates]
    images = {image_identity(image): image for image, _ in pairs}
    texts = list(dict.fromkeys(text for _, text in pairs))
    place_of_image = {identity: i for i, identity in enumerate(images)}
    place_of_text = {text: i for i, text in enumerate(texts)}
    total = len(images) + len(texts)

    latents = []
    for batch in _batches(list(images.values())):
        pixels = np.stack([_pixels(image, checkpoint.resolution, resize) for image in batch])
        with torch.no_grad():
            on_device = torch.from_numpy(pixels).to(checkpoint.device)
            latents.append(checkpoint.image_encoder(on_device).cpu())
        progress(sum(map(len, latents)), total)
    states, masks = [], []
    for batch in _batches(texts):
        of_texts, mask = encode_texts(checkpoint, list(batch), counted)
        states.append(of_texts)
        masks.append(mask)
        progress(len(images) + sum(map(len, states)), total)

    starts = np.cumsum([0, *(len(question.candidates) for question in questions)])
    right = [start + q.right for start, q in zip(starts, questions, strict=False)]
    return Examples(
        latents=torch.cat(latents),
        text_states=torch.cat(states),
        token_masks=torch.cat(masks),
        images=torch.tensor([place_of_image[image_identity(image)] for image, _ in pairs]),
        texts=torch.tensor([place_of_text[text] for _, text in pairs]),
        starts=torch.from_numpy(starts),
        right=torch.tensor(right),
        empty=encode_texts(checkpoint, [""], counted)[0],
    )


def _pixels(image: ImageSource, resolution: int, resize: Resize) -> NDArray[np.uint8]:
    try:
        return preprocess(image, resolution, resize)
    except ImageError as error:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "an image"
        raise InputError(f"cannot learn from {name}: {error}") from error


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
