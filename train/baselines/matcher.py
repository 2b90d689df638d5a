"""How well images and texts go together by CLIP: what the baselines share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.image.preprocess import preprocess
from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.fewshot.encoded import score_encoded
from dsd_trt.train.fewshot.examples import Encoders, Examples, encode, require_choices
from dsd_trt.train.fewshot.match_probability import MatchProbability
from dsd_trt.train.left_out import ignore, refuse
from dsd_trt.train.question import Question, Report, Score

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


def encode_with_clip(
    matcher: Matcher, questions: Sequence[Question], left_out: Report = refuse
) -> Examples:
    """Compute the state of every image and every text of some questions, each once.

    Args:
        matcher: whose states.
        questions: at least one.
        left_out: as for `dsd_trt.train.fewshot.examples.encode`.

    Returns:
        The same examples as for DSD, pair by pair, whose `latents` and `text_states` are states of
        `matcher`; no token is masked.

    Raises:
        InputError: no questions, one without a wrong candidate, or as for `encode`.
    """
    require_choices(questions)
    return encode(encoders_of(matcher), questions, left_out=left_out)


def encoders_of(matcher: Matcher) -> Encoders:
    """What computes a matcher's states."""

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
    """Score of every pair, (pairs,)."""
    batches = zip(examples.images.split(_BATCH), examples.texts.split(_BATCH), strict=True)
    return torch.cat([pair_up(matcher, examples, x, y).cpu() for x, y in batches])


def pair_up(matcher: Matcher, examples: Examples, images: Tensor, texts: Tensor) -> Tensor:
    """Score pairs of the examples' images and texts, given by number, (pairs,)."""
    of_images, of_texts = examples.latents[images], examples.text_states[texts]
    return matcher(of_images.to(matcher.device), of_texts.to(matcher.device))


def by_matcher(matcher: Matcher) -> Score:
    """Score candidates with CLIP as it is, or with a baseline."""

    def score(questions: Sequence[Question], left_out: Report = ignore) -> list[list[float]]:
        return score_encoded(
            encoders_of(matcher), lambda examples: score_all(matcher, examples), questions, left_out
        )

    return score
