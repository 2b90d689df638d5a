"""What a bundle knows of lists: how far down the order of an estimate the best candidates stand.

The rule by which a list is followed and cut is `dsd_trt.lists`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dsd_trt.bundle.fields import check_size, require

RULE = 2
"""The rule of `dsd_trt.lists` that needs are measured for. The first one had no d_k."""

Kind = Literal["texts", "images"]
"""What a list is of: texts of an image, or images of a text."""


@dataclass(frozen=True)
class Measured:
    """Lists that `dsd-trt imitate` scored in full at the first noise level.

    Attributes:
        count: number of these lists.
        needs: their smallest needs, ascending, in units of the score; see `dsd_trt.lists.need_of`.
            Infinite needs are counted in `count` and not stored.
        gaps: their largest gaps, descending, in units of the score; see `dsd_trt.lists.gap_of`.
            None if they were not measured.
    """

    count: int
    needs: tuple[float, ...]
    gaps: tuple[float, ...] | None = field(default=None, metadata={"optional": True})

    def bound(self, error: float) -> float:
        """The bound below which at most a share `error` of exchangeable lists is cut too early.

        Split conformal: of the needs of all `count` lists and a new one, the new one is below the
        n-th smallest with a probability of at most n / (count + 1).

        Args:
            error: accepted share, in (0, 1).

        Returns:
            The bound; -inf, which cuts no list, where too few lists were measured for this error.
            Where the bound is beyond the stored needs, the last of these, which cuts less; inf if
            none of the lists had a finite need.
        """
        place = math.floor(error * (self.count + 1))
        if place < 1:
            return -math.inf
        return self.needs[min(place, len(self.needs)) - 1] if self.needs else math.inf

    def margin(self, error: float) -> float:
        """The gap that at most a share `error` of exchangeable lists exceeds; as for `bound`.

        Returns:
            The margin; inf where gaps were not measured, or too few for this error.
        """
        place = min(math.floor(error * (self.count + 1)), len(self.gaps or ()))
        return self.gaps[place - 1] if self.gaps and place else math.inf


@dataclass(frozen=True)
class Lists:
    """Lists that the bundle's matrix scorer makes, by its estimate of pair mode's score.

    Attributes:
        level: index of the noise level of the walk that makes a list.
        candidates: number of candidates of each measured list.
        slope: decrease of the reach T_k when the place grows by a factor of e, in units of the
            score.
        texts: measured lists of texts, by the number of best candidates, written in decimal.
        images: measured lists of images, likewise.
        rule: the rule that they were measured for; None is the first one. Those of another rule
            than `RULE` make no lists.
    """

    level: int
    candidates: int
    slope: float
    texts: Mapping[str, Measured]
    images: Mapping[str, Measured]
    rule: int | None = field(default=None, metadata={"optional": True})

    def measured(self, of: Kind, best: int) -> tuple[int, Measured] | None:
        """Lists measured for at least `best` candidates, with their own number; None without any.

        Args:
            of: what the lists are of.
            best: number of best candidates to find.
        """
        known = {int(key): it for key, it in (self.texts if of == "texts" else self.images).items()}
        enough = min((it for it in known if it >= best), default=None)
        return None if enough is None or self.rule != RULE else (enough, known[enough])


def check_lists(lists: Lists, levels: int) -> None:
    """Check constraints that types cannot express: ranges, order of the needs, names of the keys.

    Args:
        lists: lists of a bundle.
        levels: number of the bundle's noise levels.

    Raises:
        BundleError: a constraint is violated; the message names the field.
    """
    where = "matrix.lists"
    require(0 <= lists.level < levels, f"{where}.level", f"is not from 0 to {levels - 1}")
    check_size(lists.candidates, f"{where}.candidates")
    if lists.rule is not None:
        check_size(lists.rule, f"{where}.rule")
    _check_finite((lists.slope,), f"{where}.slope")
    for name, measured in (("texts", lists.texts), ("images", lists.images)):
        for key, it in measured.items():
            at = f"{where}.{name}.{key}"
            decimal = key.isascii() and key.isdecimal() and len(key) < 10
            require(decimal and key == str(int(key)), at, "is named by no number")
            check_size(int(key), at)
            check_size(it.count, f"{at}.count")
            require(
                len(it.needs) <= it.count, f"{at}.needs", f"has more than {it.count}, its count"
            )
            _check_finite(it.needs, f"{at}.needs")
            require(list(it.needs) == sorted(it.needs), f"{at}.needs", "must be ascending")
            gaps = it.gaps or ()
            require(len(gaps) <= it.count, f"{at}.gaps", f"has more than {it.count}, its count")
            _check_finite(gaps, f"{at}.gaps")
            require(list(gaps) == sorted(gaps)[::-1], f"{at}.gaps", "must be descending")
            require(min(gaps, default=0) >= 0, f"{at}.gaps", "must not be negative")


def _check_finite(numbers: tuple[float, ...], where: str) -> None:
    require(all(map(math.isfinite, numbers)), where, "must be finite")
