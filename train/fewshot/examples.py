"""Few-shot examples: questions whose distinct images and texts are encoded once each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import TokenMask
from dsd_trt.errors import ImageError, InputError
from dsd_trt.image.preprocess import ImageSource, image_identity, preprocess
from dsd_trt.results import Failure
from dsd_trt.train.data.likeness import may_describe_the_same, words_of
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts
from dsd_trt.train.fewshot.augment import augment
from dsd_trt.train.left_out import name_image, refuse
from dsd_trt.train.question import Question, Report

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Progress callback `(done, total)`."""


@dataclass(frozen=True)
class Examples:
    """Encoded questions; candidate c of question q is pair `starts[q] + c`.

    Attributes:
        latents: clean latent z of each image, then those of its augmented copies: copy c of image
            i is at c * images + i, ((1 + copies) * images, C, h, w).
        text_states: r_y of each text, (texts, 77, D).
        token_masks: 1 where a token counts, else 0, (texts, 77).
        images: index of each pair's image, int64 (pairs,).
        texts: index of each pair's text, int64 (pairs,).
        starts: index of each question's first pair, then the number of pairs, int64
            (questions + 1,).
        right: index of each question's positive pair, int64 (questions,).
        unconditional: r_y of the unconditional text, (1, 77, D).
        words: words of each text, by `words_of`, (texts,).
        copies: number of augmented copies of each image, see `augment`.
    """

    latents: Tensor
    text_states: Tensor
    token_masks: Tensor
    images: Tensor
    texts: Tensor
    starts: Tensor
    right: Tensor
    unconditional: Tensor
    words: tuple[frozenset[str], ...]
    copies: int = 0

    def __len__(self) -> int:
        return len(self.right)

    @property
    def image_count(self) -> int:
        """Number of distinct images, augmented copies not counted."""
        return len(self.latents) // (1 + self.copies)

    @property
    def labels(self) -> Tensor:
        """1 for a positive pair, 0 for a negative one, FP32 (pairs,)."""
        labels = torch.zeros(len(self.images))
        labels[self.right] = 1
        return labels

    def may_match(self, image: int, text: int) -> bool:
        """Whether a text may describe an image: it is alike a right text of that image.

        Args:
            image: index of the image, augmented copies not counted.
            text: index of the text.
        """
        own = self._described.get(image, ())
        return any(may_describe_the_same(self.words[text], self.words[it]) for it in own)

    @functools.cached_property
    def _described(self) -> dict[int, list[int]]:
        """Right texts of each image that has some."""
        found = dict[int, list[int]]()
        pairs = zip(self.images[self.right].tolist(), self.texts[self.right].tolist(), strict=True)
        for image, text in pairs:
            found.setdefault(image, []).append(text)
        return found

    def first(self, questions: int) -> Examples:
        """Examples with the first `questions` questions alone; images and texts are shared."""
        starts = self.starts[: questions + 1]
        pairs = int(starts[-1])
        return replace(
            self,
            images=self.images[:pairs],
            texts=self.texts[:pairs],
            starts=starts,
            right=self.right[:questions],
        )

    def right_answers(self, *scores: Tensor) -> tuple[bool, ...]:
        """Whether each question is answered right; a tie and NaN count as a wrong answer.

        Args:
            scores: score of each pair, (pairs,). With several, such as those of two modes, an
                answer is right if each of them gives it: a question has one answer, as two modes
                often err together.
        """
        answers = []
        for q, right in enumerate(self.right.tolist()):
            first, last = int(self.starts[q]), int(self.starts[q + 1])
            found = []
            for of_pairs in scores:
                others = of_pairs[first:last].tolist()
                best = others.pop(right - first)
                found.append(all(best > other for other in others))
            answers.append(all(found))
        return tuple(answers)


@dataclass(frozen=True)
class Encoders:
    """Encoders of images and texts into the tensors of `Examples`.

    Attributes:
        pixels: function from an image to its pixels, uint8 (H, W, 3); it raises ImageError for
            an image that cannot be decoded.
        images: function from pixels, uint8 (images, H, W, 3), to one state per image on the CPU.
        texts: function from texts to their states and token masks on the CPU.
        batch: number of images or texts per encoder pass.
    """

    pixels: Callable[[ImageSource], NDArray[np.uint8]]
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    batch: int = 16


@dataclass(frozen=True)
class Encodings:
    """Encoded images and texts, of which questions are made into `Examples`.

    Attributes:
        latents: as in `Examples`, of the images that could be encoded.
        text_states: as in `Examples`.
        token_masks: as in `Examples`.
        unconditional: as in `Examples`.
        copies: as in `Examples`.
        images: place of each image among the latents, or what prevents it, by its identity.
        texts: place of each text among the states, or what prevents it.
    """

    latents: Tensor
    text_states: Tensor
    token_masks: Tensor
    unconditional: Tensor
    copies: int
    images: Mapping[object, int | Failure]
    texts: Mapping[str, int | Failure]

    def examples(self, questions: Sequence[Question], left_out: Report = refuse) -> Examples:
        """Examples of some questions whose images and texts are among those encoded.

        Args:
            questions: questions, in any order.
            left_out: callback for each question left out, with its failures: images that cannot be
                decoded, images or texts whose state is not finite.

        Returns:
            Examples of the remaining questions, in their order; possibly none.

        Raises:
            InputError: a question would be left out, and `left_out` is the default.
        """
        kept, images, texts = [], list[int](), list[int]()
        for question in questions:
            places = [
                (self.images[image_identity(image)], self.texts[text])
                for image, text in question.candidates
            ]
            failures = [it for pair in places for it in pair if isinstance(it, Failure)]
            if failures:
                left_out(question, list(dict.fromkeys(failures)))
                continue
            kept.append(question)
            for image, text in places:
                assert isinstance(image, int)
                assert isinstance(text, int)
                images.append(image)
                texts.append(text)
        starts = np.cumsum([0, *(len(question.candidates) for question in kept)])
        right = [start + question.right for start, question in zip(starts, kept, strict=False)]
        return Examples(
            latents=self.latents,
            text_states=self.text_states,
            token_masks=self.token_masks,
            images=_places(images),
            texts=_places(texts),
            starts=torch.from_numpy(starts),
            right=_places(right),
            unconditional=self.unconditional,
            words=tuple(map(words_of, self.texts)),
            copies=self.copies,
        )


def encode_questions(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    *,
    resize: Resize = "bicubic-stretch",
    counted: TokenMask = "words_eos",
    copies: int = 0,
    progress: Progress = lambda done, total: None,
    left_out: Report = refuse,
) -> Examples:
    """Encode the distinct images and texts of some questions with a diffusion model.

    Args:
        checkpoint: base model with VAE and text encoder.
        questions: at least one question, each with two or more candidates.
        resize: method by which images are made square, see `Resize`.
        counted: text tokens that count in the score's mean, see `TokenMask`.
        copies: number of augmented copies of each image, for training.
        progress: callback `(done, total)`, counting images and texts.
        left_out: callback for each question left out, with its failures; by default a failure
            raises InputError.

    Raises:
        InputError: there are no questions, or one has a single candidate; without `left_out`,
            also an image that cannot be decoded or a state that is not finite.
    """
    require_choices(questions)
    encodings = encode_with(
        checkpoint, questions, resize=resize, counted=counted, copies=copies, progress=progress
    )
    return encodings.examples(questions, left_out)


def encode_with(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    *,
    resize: Resize = "bicubic-stretch",
    counted: TokenMask = "words_eos",
    copies: int = 0,
    progress: Progress = lambda done, total: None,
) -> Encodings:
    """Encode the distinct images and texts of some questions; arguments as `encode_questions`."""
    encoders = encoders_of(checkpoint, resize, counted)
    unconditional = encode_texts(checkpoint, [""], counted)[0]
    return encode(encoders, questions, unconditional, progress, copies)


def require_choices(questions: Sequence[Question]) -> None:
    """Refuse questions without negative pairs, which training needs.

    Raises:
        InputError: there are no questions, or one has fewer than two candidates.
    """
    if not questions:
        raise InputError("there are no questions to learn from")
    for question in questions:
        if len(question.candidates) < 2:
            raise InputError(
                f"{question.source}: a question without a negative pair. Give it at least two "
                "candidates"
            )


def encoders_of(
    checkpoint: Checkpoint, resize: Resize, counted: TokenMask = "words_eos"
) -> Encoders:
    """Encoders of a base model.

    Args:
        checkpoint: base model with VAE and text encoder.
        resize: method by which images are made square, see `Resize`.
        counted: text tokens that count in the score's mean, see `TokenMask`.
    """

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
    unconditional: Tensor | None = None,
    progress: Progress = lambda done, total: None,
    copies: int = 0,
) -> Encodings:
    """Encode the distinct images and texts of some questions.

    Args:
        encoders: encoders of images and texts.
        questions: at least one question.
        unconditional: states of the unconditional text, (1, 77, D); None is zeros.
        progress: callback `(done, total)`, counting images and texts.
        copies: number of augmented copies of each image.
    """
    images = {
        image_identity(image): (image, question)
        for question in questions
        for image, _ in question.candidates
    }
    texts = list(dict.fromkeys(text for question in questions for _, text in question.candidates))
    total = len(images) + len(texts)
    latents, places = list[Tensor](), dict[object, int | Failure]()
    generator = torch.Generator().manual_seed(0)  # of the copies
    for batch in _batches(list(images), encoders.batch):
        part = {identity: images[identity] for identity in batch}
        encoded = _encode_images(encoders, part, copies, generator)
        for identity in part:
            state = encoded[identity]
            if isinstance(state, Failure):
                places[identity] = state
            else:
                places[identity] = len(latents)
                latents.append(state)
        progress(len(places), total)
    states, masks, text_places = [], [], dict[str, int | Failure]()
    for some in _batches(texts, encoders.batch):
        of_texts, mask = encoders.texts(some)
        states.append(of_texts)
        masks.append(mask)
        for text, finite in zip(some, _finite(of_texts), strict=True):
            lost = Failure(None, "its text states have NaN or infinity", text)
            text_places[text] = len(text_places) if finite else lost
        progress(len(places) + len(text_places), total)
    return Encodings(
        # (1 + copies, images, ...) -> ((1 + copies) * images, ...)
        latents=torch.stack(latents, dim=1).flatten(0, 1) if latents else torch.empty(0),
        text_states=torch.cat(states),
        token_masks=torch.cat(masks),
        unconditional=(torch.zeros_like(states[0][:1]) if unconditional is None else unconditional),
        copies=copies,
        images=places,
        texts=text_places,
    )


def _encode_images(
    encoders: Encoders,
    images: Mapping[object, tuple[ImageSource, Question]],
    copies: int,
    generator: torch.Generator,
) -> dict[object, Tensor | Failure]:
    """States of each image and its copies, or the failure that prevents one, by its identity."""
    encoded, pixels = dict[object, Tensor | Failure](), dict[object, Tensor]()
    for identity, (image, question) in images.items():
        try:
            pixels[identity] = torch.from_numpy(encoders.pixels(image))
        except ImageError as error:
            encoded[identity] = Failure(name_image(image, question), str(error))
    if pixels:
        every = torch.stack(list(pixels.values()))
        drawn = [augment(every, generator) for _ in range(copies)]
        # (images, 1 + copies, ...)
        states = torch.stack([encoders.images(part) for part in (every, *drawn)], dim=1)
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
