"""Few-shot examples: questions whose images and texts are encoded once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.bundle.manifest import Resize, TokenMask
from dsd_trt.errors import ImageError, InputError
from dsd_trt.image.preprocess import ImageSource, image_identity, preprocess
from dsd_trt.results import Failure
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts
from dsd_trt.train.left_out import name_image, refuse
from dsd_trt.train.question import Question, Report

T = TypeVar("T")
Progress = Callable[[int, int], None]


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


@dataclass(frozen=True)
class Encoders:
    """What turns images and texts into what examples hold.

    Attributes:
        pixels: an image to uint8 (H, W, 3); raises ImageError.
        images: uint8 (images, H, W, 3) to a state each, on the CPU.
        texts: texts to a state each and to their token masks, on the CPU.
        batch: images or texts encoded at a time.
    """

    pixels: Callable[[ImageSource], NDArray[np.uint8]]
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    batch: int = 16


def encode_questions(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    *,
    resize: Resize = "bicubic-stretch",
    counted: TokenMask = "words_eos",
    progress: Progress = lambda done, total: None,
    left_out: Report = refuse,
) -> Examples:
    """Encode every image and every text of some questions, each once.

    Args:
        checkpoint: the base model.
        questions: at least one.
        resize: how images become the model's squares, see `Resize`.
        counted: which text tokens count.
        progress: as for `encode`.
        left_out: as for `encode`.

    Raises:
        InputError: as for `encode`, or no questions, or one without a wrong candidate.
    """
    require_choices(questions)
    encoders = encoders_of(checkpoint, resize, counted)
    empty = encode_texts(checkpoint, [""], counted)[0]
    return encode(encoders, questions, empty, progress, left_out)


def require_choices(questions: Sequence[Question]) -> None:
    """Refuse questions that nothing can be learned from.

    Raises:
        InputError: no questions, or one without a wrong candidate.
    """
    if not questions:
        raise InputError("there are no questions to learn from")
    for question in questions:
        if len(question.candidates) < 2:
            raise InputError(f"{question.source}: a question with nothing wrong to tell from right")


def encoders_of(
    checkpoint: Checkpoint, resize: Resize, counted: TokenMask = "words_eos"
) -> Encoders:
    """What encodes with a base model; `resize` and `counted` as for `encode_questions`."""

    def encode_images(pixels: Tensor) -> Tensor:
        latents: Tensor = checkpoint.image_encoder(pixels.to(checkpoint.device)).cpu()
        return latents

    return Encoders(
        pixels=lambda image: preprocess(image, checkpoint.resolution, resize),
        images=encode_images,
        texts=lambda texts: encode_texts(checkpoint, list(texts), counted),
    )


@torch.no_grad()
def encode(
    encoders: Encoders,
    questions: Sequence[Question],
    empty: Tensor | None = None,
    progress: Progress = lambda done, total: None,
    left_out: Report = refuse,
) -> Examples:
    """Encode every image and every text of some questions, each once.

    Args:
        encoders: what to encode them with.
        questions: at least one.
        empty: state of the text that says nothing; None is zeros.
        progress: told (done, total) images and texts.
        left_out: told of each question of which an image cannot be decoded, or an image or a text
            has no finite state. It is not among the examples. Without it, this raises InputError.

    Returns:
        The other questions, in their order; there may be none.
    """
    images = {
        image_identity(image): (image, question)
        for question in questions
        for image, _ in question.candidates
    }
    texts = list(dict.fromkeys(text for question in questions for _, text in question.candidates))
    total = len(images) + len(texts)
    latents, bad_images = [], dict[object, Failure]()
    for batch in _batches(list(images), encoders.batch):
        encoded = _encode_images(encoders, {identity: images[identity] for identity in batch})
        for identity, state in encoded.items():
            if isinstance(state, Failure):
                bad_images[identity] = state
            else:
                latents.append(state)
        progress(len(latents) + len(bad_images), total)
    states, masks, bad_texts = [], [], dict[str, Failure]()
    for part in _batches(texts, encoders.batch):
        of_texts, mask = encoders.texts(part)
        states.append(of_texts)
        masks.append(mask)
        for text, finite in zip(part, _finite(of_texts), strict=True):
            if not finite:
                bad_texts[text] = Failure(None, "its text states have NaN or infinity", text)
        progress(len(images) + sum(map(len, states)), total)

    kept = []
    for question in questions:
        failures = [
            failure
            for image, text in question.candidates
            for failure in (bad_images.get(image_identity(image)), bad_texts.get(text))
            if failure is not None
        ]
        if failures:
            left_out(question, list(dict.fromkeys(failures)))
        else:
            kept.append(question)
    readable = [identity for identity in images if identity not in bad_images]
    place_of_image = {identity: i for i, identity in enumerate(readable)}
    place_of_text = {text: i for i, text in enumerate(texts)}
    pairs = [pair for question in kept for pair in question.candidates]
    starts = np.cumsum([0, *(len(question.candidates) for question in kept)])
    right = [start + question.right for start, question in zip(starts, kept, strict=False)]
    return Examples(
        latents=torch.stack(latents) if latents else torch.empty(0),
        text_states=torch.cat(states),
        token_masks=torch.cat(masks),
        images=_places([place_of_image[image_identity(image)] for image, _ in pairs]),
        texts=_places([place_of_text[text] for _, text in pairs]),
        starts=torch.from_numpy(starts),
        right=_places(right),
        empty=torch.zeros_like(states[0][:1]) if empty is None else empty,
    )


def _encode_images(
    encoders: Encoders, images: Mapping[object, tuple[ImageSource, Question]]
) -> dict[object, Tensor | Failure]:
    """State of each image, or why it has none."""
    encoded, pixels = dict[object, Tensor | Failure](), dict[object, Tensor]()
    for identity, (image, question) in images.items():
        try:
            pixels[identity] = torch.from_numpy(encoders.pixels(image))
        except ImageError as error:
            encoded[identity] = Failure(name_image(image, question), str(error))
    if pixels:
        states = encoders.images(torch.stack(list(pixels.values())))
        for identity, state, finite in zip(pixels, states, _finite(states), strict=True):
            name = name_image(*images[identity])
            encoded[identity] = state if finite else Failure(name, "its latent has NaN or infinity")
    return encoded


def _finite(states: Tensor) -> list[bool]:
    finite: list[bool] = torch.isfinite(states).flatten(1).all(dim=1).tolist()
    return finite


def _places(places: Sequence[int]) -> Tensor:
    return torch.tensor(places, dtype=torch.int64)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
