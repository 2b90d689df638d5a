"""Kinds of values that fields of a configuration may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_BITS = 1024  # bits of the largest integer that a float can represent


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        expected: description of the kind, for error messages.
        fits: predicate that is true for values of the kind.
    """

    expected: str
    fits: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; booleans are not."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < _MOST_BITS
    return isinstance(value, float) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and bool(value > 0)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(of, value))


def _is_counts(value: Any) -> bool:
    """Whether a value is a count for all blocks, per block, or per layer of each block."""
    return is_count(value) or _is_list(value, _is_counts)


ELSEWHERE = Kind("what the code that reads it says", lambda value: True)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
FLAG_OR_NONE = Kind("true, false or null", lambda value: value is None or isinstance(value, bool))
NAME = Kind("a name", lambda value: isinstance(value, str) and bool(value))
NAME_OR_NONE = Kind("a name or null", lambda value: value is None or NAME.fits(value))
NAMES = Kind("a list of names, one a block", lambda value: _is_list(value, NAME.fits))
NUMBER = Kind("a finite number", is_number)
POSITIVE = Kind("a finite number above 0", is_positive)
COUNT = Kind("a whole number above 0", is_count)
COUNT_OR_NONE = Kind(
    "a whole number above 0 or null", lambda value: value is None or is_count(value)
)
NOT_NEGATIVE = Kind(
    "a whole number, 0 or above", lambda value: is_count(value) or (is_number(value) and value == 0)
)
COUNT_LIST = Kind("a list of whole numbers above 0", lambda value: _is_list(value, is_count))
COUNTS = Kind("a whole number above 0, or a list of them", _is_counts)
COUNTS_OR_NONE = Kind(
    "null, or a list of whole numbers above 0", lambda value: value is None or _is_counts(value)
)
