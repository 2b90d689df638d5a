"""Few-shot examples: the pairs of questions, as encoded images and texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsd_trt.errors import InputError
from dsd_trt.train.data.likeness import may_describe_the_same
from dsd_trt.train.question import Question


@dataclass(frozen=True)
class Examples:
    """Encoded questions; candidate c of question q is pair `starts[q] + c`.

    Attributes:
        latents: clean latent z of each image, then those of its augmented copies: copy c of image
            i is at c * images + i, ((1 + copies) * images, C, h, w). Images and texts may be more
            than those of the questions.
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
        """Number of latents' images, augmented copies not counted."""
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
