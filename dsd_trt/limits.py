"""Limits on what one call reads and holds, each with a name: see docs/limits.md.

An environment variable of the same name sets a limit for Python, the commands and the C++ library.
Triton's `dsd_score` and `dsd_rank_texts` have parameters with these names, in lower case and
without their prefix; their defaults are lower.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from dsd_trt.errors import InputError

_PREFIX = "DSD_TRT_"
_LARGE_UNITS = {
    "bytes": (("GiB", 2**30), ("MiB", 2**20)),
    "pixels": (("million", 10**6),),
}


@dataclass(frozen=True)
class Limit:
    """A named limit.

    Attributes:
        name: name of the environment variable, without its prefix.
        default: value used if the variable is not set.
        unit: unit of the count, such as "pixels".
    """

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """Environment variable that sets the limit."""
        return _PREFIX + self.name

    def value(self) -> int:
        """Current value of the limit.

        Raises:
            InputError: the variable is not a positive whole number.
        """
        if not (given := os.environ.get(self.variable)):
            return self.default
        if given.isascii() and given.isdigit() and len(given) < 19 and int(given):
            return int(given)
        raise InputError(f"{self.variable} must be a whole number above 0, got {given!r}")

    def fault(self, count: int) -> str | None:
        """A message if a count exceeds the limit, otherwise None."""
        return None if count <= self.value() else self.refusal()

    def refusal(self) -> str:
        """Message for an input that exceeds the limit."""
        return f"more than {described(self.value(), self.unit)}; the limit is {self.variable}"


def described(count: int, unit: str) -> str:
    """A count with its unit; a large one also in a readable unit."""
    for name, size in _LARGE_UNITS.get(unit, ()):
        if count >= size:
            return f"{count} {unit} ({count / size:.3g} {name})"
    return f"{count} {unit}"


IMAGE_BYTES = Limit("MAX_IMAGE_BYTES", 2**30, "bytes")
IMAGE_PIXELS = Limit("MAX_IMAGE_PIXELS", 178_956_970, "pixels")
TEXT_CHARACTERS = Limit("MAX_TEXT_CHARACTERS", 1_000_000, "characters")
IMAGES = Limit("MAX_IMAGES", 10_000_000, "images")
TEXTS = Limit("MAX_TEXTS", 1_000_000, "texts")
PAIRS = Limit("MAX_PAIRS", 1_000_000_000, "pairs")
COMPILED_BYTES = Limit("MAX_COMPILED_BYTES", 2**34, "bytes")
"""Size of the models that OpenVINO compiled and that are kept for the next start."""
FILE_BYTES = Limit("MAX_FILE_BYTES", 2**29, "bytes")
"""Size of a file held in memory that is not an image: texts, pairs, a table, a manifest."""
