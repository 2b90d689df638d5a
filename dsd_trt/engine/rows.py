"""Rows of an array, which an engine may gather where it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.engine import Engine


@dataclass(frozen=True)
class Rows:
    """Rows `source[places]`, not gathered yet.

    A GPU engine keeps the source on the device from batch to batch, and copies rows there.

    Attributes:
        source: array of all rows, (count, ...); must not change while an engine may have a copy.
        places: indices of the rows, (rows,).
    """

    source: NDArray[Any]
    places: NDArray[np.intp]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the gathered rows."""
        return (len(self.places), *self.source.shape[1:])

    def gathered(self) -> NDArray[Any]:
        """The rows as an array, in the host's memory."""
        return self.source[self.places]

    def runs(self) -> list[tuple[int, int, int]]:
        """The rows as few contiguous copies: (first row of the source, row here, rows) each."""
        if not len(self.places):
            return []
        cuts = np.flatnonzero(np.diff(self.places) != 1) + 1
        starts, ends = [0, *cuts.tolist()], [*cuts.tolist(), len(self.places)]
        return [
            (int(self.places[start]), start, end - start)
            for start, end in zip(starts, ends, strict=True)
        ]


def rows_for(engine: Engine, source: NDArray[Any], places: NDArray[np.intp]) -> Any:
    """The rows in the form that an engine takes: `Rows` if it gathers, otherwise an array."""
    rows = Rows(source, places)
    return rows if getattr(engine, "gathers", False) else rows.gathered()
