"""How well images and texts go together by CLIP: what the baselines share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dsd_trt.errors import ImageError, InputError
from dsd_trt.image import ImageSource, image_identity, preprocess
from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.data.question import Question
from dsd_trt.train.evaluation.answers import Score
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import MatchProbability

_BATCH = 64  # images, texts or pairs at a time


class Matcher(nn.Module):
    """CLIP as it is, nothing learned; each baseline changes one part of it.

    What no training changes is computed once for every image and every text, its *state*: here the
    output of a tower, pooled. The score of a pair follows from its two states.

    Attributes:
        clip: what it is made from.
        match: the logistic a f + b that turns a score into the logit of a match, where a is CLIP's
            logit scale; what is trained is trained through it, and it changes no ranking.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.vision_model = clip.model.vision_model
        self.text_model = clip.model.text_model
        self.visual_projection = clip.model.visual_projection
        self.text_projection = clip.model.text_projection
        self.match = MatchProbability("attention")
        with torch.no_grad():
            self.match.log_a.copy_(clip.model.logit_scale)
            self.match.b.zero_()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.match.b.device

    def learned(self) -> dict[str, nn.Parameter]:
        """Everything that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def image_states(self, pixels: Tensor) -> Tensor:
        """(images, vision width) of uint8 (images, H, W, 3)."""
        inputs = self.clip.normalise(pixels.to(self.device))
        return self.vision_model(pixel_values=inputs).pooler_output

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """(texts, text width)."""
        ids = self.clip.trim(self.clip.tokenize(texts))
        return self.text_model(input_ids=ids.to(self.device)).pooler_output

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of the features of pairs, (pairs,).

        Args:
            images: states, (pairs, ...).
            texts: states, (pairs, ...).
        """
        return F.cosine_similarity(self.visual_projection(images), self.text_projection(texts))


@torch.no_grad()
def encode_questions(
    matcher: Matcher, questions: Sequence[Question], *, strict: bool = True
) -> Examples:
    """Compute the state of every image and every text of some questions, each once.

    Args:
        matcher: whose states.
        questions: at least one.
        strict: refuse what cannot be learned from; otherwise an image that cannot be decoded has
            the state NaN, and so its pairs the score NaN.

    Returns:
        The same examples as for DSD, pair by pair, whose `latents` and `text_states` are states of
        `matcher`; no token is masked.

    Raises:
        InputError: if strict: no questions, one without a wrong candidate, or an image that cannot
            be decoded, with its name.
    """
    if strict and not questions:
        raise InputError("there are no questions to learn from")
    for question in questions:
        if strict and len(question.candidates) < 2:
            raise InputError(f"{question.source}: a question with nothing wrong to tell from right")
    pairs = [pair for question in questions for pair in question.candidates]
    images = {image_identity(image): image for image, _ in pairs}
    texts = list(dict.fromkeys(text for _, text in pairs))
    place_of_image = {identity: i for i, identity in enumerate(images)}
    place_of_text = {text: i for i, text in enumerate(texts)}
    starts = np.cumsum([0, *(len(question.candidates) for question in questions)])
    right = [start + q.right for start, q in zip(starts, questions, strict=False)]
    text_states = torch.cat([matcher.text_states(batch).cpu() for batch in _batches(texts)])
    return Examples(
        latents=torch.cat(
            [_image_states(matcher, batch, strict) for batch in _batches(list(images.values()))]
        ),
        text_states=text_states,
        token_masks=torch.ones(len(texts), 1),
        images=torch.tensor([place_of_image[image_identity(image)] for image, _ in pairs]),
        texts=torch.tensor([place_of_text[text] for _, text in pairs]),
        starts=torch.from_numpy(starts),
        right=torch.tensor(right),
        empty=torch.zeros_like(text_states[:1]),
    )


@torch.no_grad()
def score_all(matcher: Matcher, examples: Examples) -> Tensor:
    """Score of every pair, (pairs,)."""
    batches = zip(examples.images.split(_BATCH), examples.texts.split(_BATCH), strict=True)
    return torch.cat([pair_up(matcher, examples, x, y).cpu() for x, y in batches])


def pair_up(matcher: Matcher, examples: Examples, images: Tensor, texts: Tensor) -> Tensor:
    """Score pairs of the examples' images and texts, given by number, (pairs,)."""
    of_images, of_texts = examples.latents[images], examples.text_states[texts]
    return matcher(of_images.to(matcher.device), of_texts.to(matcher.device))


def by_matcher(matcher: Matcher) -> Score:
    """Score candidates with CLIP as it is, or with a baseline."""

    def score(questions: Sequence[Question]) -> list[list[float]]:
        examples = encode_questions(matcher, questions, strict=False)
        scores = score_all(matcher, examples).tolist()
        return [scores[a:b] for a, b in itertools.pairwise(examples.starts.tolist())]

    return score


def _image_states(matcher: Matcher, images: Sequence[ImageSource], strict: bool) -> Tensor:
    resolution = matcher.clip.resolution
    read = [_pixels(image, resolution, strict) for image in images]
    blank = np.zeros((resolution, resolution, 3), np.uint8)
    pixels = np.stack([blank if picture is None else picture for picture in read])
    states = matcher.image_states(torch.from_numpy(pixels)).cpu()
    states[torch.tensor([picture is None for picture in read])] = torch.nan
    return states


def _pixels(image: ImageSource, resolution: int, strict: bool) -> NDArray[np.uint8] | None:
    try:
        return preprocess(image, resolution)
    except ImageError as error:
        if not strict:
            return None
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "an image"
        raise InputError(f"cannot learn from {name}: {error}") from error


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
