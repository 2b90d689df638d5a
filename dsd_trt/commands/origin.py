"""Where records come from: what formats of files show beside them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dsd_trt.commands.layout import MATRIX, Layout

if TYPE_CHECKING:
    from dsd_trt.image.preprocess import ImageSource
    from dsd_trt.results import Failure


class RecordImages(Protocol):
    """The images of records, by a record's place."""

    def key(self, place: int) -> Hashable:
        """What is equal for places with the same image."""
        ...

    def source(self, place: int) -> ImageSource | None:
        """The image at a place; None if its pixels are not at hand."""
        ...


@dataclass(frozen=True)
class Origin:
    """What records come from.

    Attributes:
        layout: columns of the output.
        grid: whether the records are every image against every text.
        facts: function that returns what scores depend on, by name: bundle, mode, engine,
            versions.
        images: images of the records; None where they are not at hand.
        failures: function that returns what could not be scored and has no record, once all
            records are read.
    """

    layout: Layout = MATRIX
    grid: bool = False
    facts: Callable[[], Mapping[str, str]] = dict
    images: RecordImages | None = None
    failures: Callable[[], Sequence[Failure]] = lambda: ()
