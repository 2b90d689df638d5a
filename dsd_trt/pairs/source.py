"""A source of pairs: what a table and a WebDataset have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dsd_trt.jobs import Scorable
from dsd_trt.results import Failure
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.table import Table


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a table, or one sample of a WebDataset.

    Attributes:
        image: name of the image, by which the source finds it; "" if there is none.
        text: the text; "" if there is none.
        error: the reason why the pair cannot be scored; None if that has to be tried.
    """

    image: str
    text: str
    error: str | None = None


class PairSource(Protocol):
    """Pairs that can be read more than once, and more than memory holds.

    Attributes:
        name: name of the source, for messages.
        embedded: column whose values are the images themselves; None if images are named.
    """

    name: str
    embedded: str | None

    @property
    def table(self) -> Table | None:
        """The table that the pairs come from; None if they come from no table."""
        ...

    @property
    def faults(self) -> Sequence[Failure]:
        """What cannot be read and is no row, such as a tar file; known once all were read."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows."""
        ...

    def files(self, names: Collection[str] | None = None) -> Iterator[str]:
        """Paths that are read: those whose file name is one of some names; None is all."""
        ...

    def rows(self) -> Iterator[TableRow]:
        """All rows in order, one per pair, to pass on."""
        ...

    def shown(self, row: TableRow) -> tuple[str, str]:
        """The image's name and the text of a row, for people."""
        ...

    def pairs(self) -> Iterator[Pair]:
        """All pairs in order."""
        ...

    def image(self, name: str) -> Scorable:
        """The image of a name.

        Raises:
            ImageError: there is no such image; the message is the reason.
        """
        ...

    def state(self, name: str) -> object:
        """What changes when an image does, as JSON: its size and time of change. None if unknown.

        Raises:
            ImageError: there is no such image.
        """
        ...
