"""Words of a text, joined again from the tokens that the tokenizer split them into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

START, END, PADDING = "<start>", "<end>", "<padding>"
"""Names of what counts in a score and is no word of the text."""


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Attributes:
        text: the token as the tokenizer writes it, such as "star</w>" at the end of a word.
        place: position among the tokens of the padded text, from 0; BOS is at 0.
        score: score of the token, of which f is the mean over counted tokens (Eq. 4); NaN where
            none was computed.
    """

    text: str
    place: int
    score: float = float("nan")


@dataclass(frozen=True)
class Word:
    """One word of a text, with the tokens that it was split into.

    Attributes:
        text: the word as it is written in the text, or "<start>", "<end>" or "<padding>".
        tokens: its tokens that count in the score, in order; at least one.
        special: whether it is no word of the text: its start, its end, or the padding.
        heat: where in the image it was found, float32 (h, w); None without an explanation.
    """

    text: str
    tokens: tuple[Token, ...]
    special: bool = False
    heat: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def score(self) -> float:
        """Mean of the scores of its tokens; NaN where none were computed."""
        return float(np.mean([it.score for it in self.tokens]))

    @property
    def places(self) -> list[int]:
        """Positions of its tokens among those of the padded text."""
        return [it.place for it in self.tokens]

    def to_plain(self) -> dict[str, Any]:
        """Word, score and tokens as values that `json.dumps` accepts; None in place of NaN."""
        return {
            "word": self.text,
            "score": plain_number(self.score),
            "tokens": [{"token": it.text, "score": plain_number(it.score)} for it in self.tokens],
        }


def scored_words(words: Sequence[Word], scores: NDArray[Any]) -> tuple[Word, ...]:
    """The same words, with the scores of their tokens.

    Args:
        words: words of one text.
        scores: score of every token of the padded text, (77,).
    """
    return tuple(
        replace(it, tokens=tuple(replace(t, score=float(scores[t.place])) for t in it.tokens))
        for it in words
    )


def plain_number(score: float) -> float | None:
    """The decimal number with the fewest digits that is the same in FP32; None for NaN."""
    return None if np.isnan(score) else float(str(np.float32(score)))
