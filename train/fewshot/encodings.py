"""Encoded images and texts of questions, each distinct one encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import TokenMask
from dsd_trt.errors import ImageError
from dsd_trt.image.preprocess import ImageSource, image_identity, preprocess
from dsd_trt.results import Failure
from dsd_trt.train.data.likeness import words_of
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts
from dsd_trt.train.fewshot.augment import augment
from dsd_trt.train.fewshot.examples import Examples, require_choices
from dsd_trt.train.left_out import LeftOut, name_image, refuse
from dsd_trt.train.question import Question, Report

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Progress callback `(done, total)`."""


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
        latents: clean latents of the images that could be encoded, then those of their copies, in
            the order of `Examples.latents`.
        text_states: r_y of each text, (texts, 77, D).
        token_masks: 1 where a token counts, else 0, (texts, 77).
        unconditional: r_y of the unconditional text, (1, 77, D).
        copies: number of augmented copies of each image, see `augment`.
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

    def usable(self, questions: Sequence[Question], what: str) -> Examples:
        """Examples of those questions of a part that can be used.

        Args:
            questions: questions of the part, at least one.
            what: name of the part in the message, such as "validation questions".

        Raises:
            InputError: none of them can; the message names the first failures.
        """
        left_out = LeftOut()
        examples = self.examples(questions, left_out.add)
        left_out.require_some(len(examples), what)
        return examples


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
    encodings = encode_candidates(
        checkpoint, questions, resize=resize, counted=counted, copies=copies, progress=progress
    )
    return encodings.examples(questions, left_out)


def encode_candidates(
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
            text_places[text] = (
                len(text_places)
                if finite
                else Failure(None, "its text states have NaN or infinity", text)
            )
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
