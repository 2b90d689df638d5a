"""Matching of images and texts with CLIP, the common part of the baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.image.preprocess import preprocess
from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.fewshot.encoded import score_encoded
from dsd_trt.train.fewshot.encodings import Encoders, encode
from dsd_trt.train.fewshot.examples import Examples, require_choices
from dsd_trt.train.fewshot.match_probability import MatchProbability
from dsd_trt.train.left_out import ignore, refuse
from dsd_trt.train.question import Question, Report, Score

_BATCH = 64  # images, texts or pairs per forward pass


class Matcher(nn.Module):
    """Zero-shot CLIP, of which each trained baseline changes one part.

    The frozen part is computed once per image and per text, and its output is called a *state*:
    here the pooled output of a tower. A pair's score is computed from its two states.

    Args:
        clip: pretrained CLIP, which stays unchanged.

    Attributes:
        clip: pretrained CLIP, which stays unchanged.
        match: logit a f + b of a match, initialised with a = CLIP's logit scale and b = 0; it does
            not change rankings.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.vision_model = clip.model.vision_model
        self.text_model = clip.model.text_model
        self.visual_projection: nn.Linear = clip.model.visual_projection
        self.text_projection: nn.Linear = clip.model.text_projection
        self.match: MatchProbability = MatchProbability("attention")
        with torch.no_grad():
            self.match.log_a.copy_(clip.model.logit_scale)
            self.match.b.zero_()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.match.b.device

    def learned(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def image_states(self, pixels: Tensor) -> Tensor:
        """States (images, vision width) of pixels, uint8 (images, H, W, 3)."""
        inputs = self.clip.normalise(pixels.to(self.device))
        return self.vision_model(pixel_values=inputs).pooler_output

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """States of texts, (texts, text width)."""
        ids = self.clip.trim(self.clip.tokenize(texts))
        return self.text_model(input_ids=ids.to(self.device)).pooler_output

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine similarity of each pair's image and text features, (pairs,).

        Args:
            images: state of each pair's image, (pairs, ...).
            texts: state of each pair's text, (pairs, ...).
        """
        return F.cosine_similarity(self.visual_projection(images), self.text_projection(texts))


def encode_with_clip(
    matcher: Matcher, questions: Sequence[Question], left_out: Report = refuse
) -> Examples:
    """Encode the distinct images and texts of some questions with CLIP.

    Args:
        matcher: baseline whose frozen part encodes.
        questions: at least one question, each with two or more candidates.
        left_out: callback for each question left out, with its failures; by default a failure
            raises InputError.

    Returns:
        Examples with the same pairs as for DSD, whose `latents` and `text_states` are states of
        `matcher`; no token is masked.

    Raises:
        InputError: there are no questions, or one has a single candidate; without `left_out`,
            also an image that cannot be decoded or a state that is not finite.
    """
    require_choices(questions)
    return encode(encoders_of(matcher), questions).examples(questions, left_out)


def encoders_of(matcher: Matcher) -> Encoders:
    """Encoders into a matcher's states."""

    def encode_texts(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return matcher.text_states(texts).cpu(), torch.ones(len(texts), 1)

    return Encoders(
        pixels=lambda image: preprocess(image, matcher.clip.resolution),
        images=lambda pixels: matcher.image_states(pixels).cpu(),
        texts=encode_texts,
        batch=_BATCH,
    )


@torch.no_grad()
def score_all(matcher: Matcher, examples: Examples) -> Tensor:
    """Score of every pair of the examples, (pairs,)."""
    batches = zip(examples.images.split(_BATCH), examples.texts.split(_BATCH), strict=True)
    return torch.cat([pair_up(matcher, examples, x, y).cpu() for x, y in batches])


def pair_up(matcher: Matcher, examples: Examples, images: Tensor, texts: Tensor) -> Tensor:
    """Score of each pair of an image and a text, (pairs,).

    Args:
        matcher: baseline to score with.
        examples: examples encoded by `matcher`.
        images: index of each pair's image in the examples, int64 (pairs,).
        texts: index of each pair's text in the examples, int64 (pairs,).
    """
    of_images, of_texts = examples.latents[images], examples.text_states[texts]
    return matcher(of_images.to(matcher.device), of_texts.to(matcher.device))


def by_matcher(matcher: Matcher) -> Score:
    """A `Score` that scores candidates with a baseline."""

    def score(questions: Sequence[Question], left_out: Report = ignore) -> list[list[float]]:
        return score_encoded(
            encoders_of(matcher), lambda examples: score_all(matcher, examples), questions, left_out
        )

    return score
