"""Scoring of questions by models that encode images and texts first: PyTorch models and CLIP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from dsd_trt.results import Failure
from dsd_trt.train.fewshot.encodings import Encoders, encode
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.left_out import name_image
from dsd_trt.train.question import Question, Report


def score_encoded(
    encoders: Encoders,
    score_all: Callable[[Examples], Tensor],
    questions: Sequence[Question],
    left_out: Report,
    unconditional: Tensor | None = None,
) -> list[list[float]]:
    """Score the candidates of some questions.

    Args:
        encoders: encoders of images and texts.
        score_all: function from examples to the score of each of their pairs, (pairs,).
        questions: questions whose candidates are scored.
        left_out: callback for each question that cannot be scored, with its failures.
        unconditional: states of the unconditional text, (1, 77, D); None is zeros.

    Returns:
        One score per candidate of each question; NaN for all candidates of a question left out.
    """
    unread: dict[int, Sequence[Failure]] = {}  # by the question's identity

    def note(question: Question, failures: Sequence[Failure]) -> None:
        unread[id(question)] = failures

    examples = encode(encoders, questions, unconditional).examples(questions, note)
    scores = score_all(examples).tolist() if examples else []
    bounds = itertools.pairwise(examples.starts.tolist())
    rows = []
    for question in questions:
        failures = unread.get(id(question))
        row = [math.nan] * len(question.candidates)
        if failures is None:
            first, last = next(bounds)
            row = scores[first:last]
            failures = [
                Failure(name_image(image, question), "its score is NaN or infinite", text)
                for (image, text), score in zip(question.candidates, row, strict=True)
                if not math.isfinite(score)
            ]
        if failures:
            left_out(question, failures)
            row = [math.nan] * len(row)
        rows.append(row)
    return rows
