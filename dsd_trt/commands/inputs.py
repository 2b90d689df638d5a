"""Inputs named on the command line: images, a file of texts, a file of pairs."""

from __future__ import annotations

import io
import itertools
import shlex
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import ImageError, InputError, one_line
from dsd_trt.files.regular import read_bounded
from dsd_trt.files.rows import LineError, decode, text_fault
from dsd_trt.image.files import find_images
from dsd_trt.index.files import is_index
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.index.tar_image import TarFile, TarImage
from dsd_trt.index.tar_names import SUFFIXES, is_tar
from dsd_trt.results import Failure
from dsd_trt.tables.columns import ColumnNames, Role, is_header
from dsd_trt.tables.table import Table


@dataclass(frozen=True)
class Pair:
    """One row of a pairs file.

    Attributes:
        name: image path as written in the file.
        image: path of the image file.
        text: text of the pair.
    """

    name: str
    image: Path
    text: str


def images_named(
    arguments: Sequence[str],
) -> tuple[Sequence[Path | IndexedImage | TarImage], tuple[Failure, ...]]:
    """Collect image files as `find_images` does; an index and a tar file stand for their images.

    Returns:
        The images, and failures for paths that may hide more images but cannot be read.

    Raises:
        InputError: a path cannot be used, as for `find_images`; or an index is damaged or empty.
        MissingExtraError: the packages that read an index are not installed.
    """
    images: list[Path | IndexedImage | TarImage] = []
    unreadable: list[Failure] = []
    for indexes, group in itertools.groupby(arguments, is_index):
        if not indexes:
            found = find_images(group, SUFFIXES)
            for path in found.images:
                if is_tar(path):
                    _add_tar(path, images, unreadable)
                else:
                    images.append(path)
            unreadable += found.unreadable
            continue
        for argument in group:
            if not (index := Index.open(argument)):
                raise InputError(f"the index {argument!r} has no images")
            if len(arguments) == 1:
                return index, ()  # a lone index need not be held in memory
            images += index
    return images, tuple(unreadable)


def _add_tar(
    path: Path, images: list[Path | IndexedImage | TarImage], unreadable: list[Failure]
) -> None:
    """Add the images of a tar file, which stay there; what is damaged in it is a failure."""
    try:
        listed = TarFile.at(path).listing()
    except (OSError, ImageError) as error:
        unreadable.append(Failure(str(path), getattr(error, "strerror", None) or str(error)))
        return
    images += listed.images
    if listed.fault:
        unreadable.append(Failure(str(path), listed.fault))


def read_texts(source: str) -> list[str]:
    """Read one text per line; blank lines, surrounding spaces and a byte order mark are dropped.

    Args:
        source: path of a UTF-8 file, or "-" for standard input.

    Raises:
        InputError: there is no such file, it is not UTF-8, or it has no text.
    """
    name = "standard input" if source == "-" else repr(source)
    try:
        if source == "-":
            content = read_bounded(sys.stdin.buffer, name)
        else:
            with Path(source).open("rb") as stream:  # may be a pipe, such as <(command)
                content = read_bounded(stream, source)
    except OSError as error:
        raise InputError(
            f"cannot read texts from {name}: {error.strerror}; the last argument is their file, or "
            "- for standard input, as in: echo 'a red circle' | dsd-trt score IMAGES -"
        ) from None
    try:
        text = decode(content, name)
    except InputError as error:
        raise InputError(f"{error}; the last argument is the file of texts") from None
    lines = (line.strip() for line in io.StringIO(text, newline=None))
    if not (texts := [line for line in lines if line]):
        raise InputError(f"{name} has no texts; write one per line")
    if texts[0].startswith(("['", '["')) or texts[0] == "[":
        raise InputError(
            f"{name} is a list of JSON; write its texts on a line each, without quotes"
        )
    if is_header(texts[0]):
        raise InputError(
            f"{name} is a table, and the file of texts has nothing but a text per line. To score "
            f"the table's pairs: dsd-trt score --pairs {shlex.quote(source)}"
        )
    return texts


def read_pairs(path: Path) -> list[Pair]:
    """Read image-text pairs from a table, all of them sound; other columns are ignored.

    Args:
        path: path of a table; its image paths are relative to its folder.

    Raises:
        InputError: the file is malformed, has no pairs, or names a missing image; the message has
            the line number.
    """
    table = Table.open(path)
    roles: tuple[Role, ...] = ("image", "text")
    for role in roles:
        ColumnNames().required(table, role)
    pairs = []
    for row in table.sound_rows():
        try:
            pairs.append(read_pair(path.parent, 0, dict(row.values), special=True))
        except LineError as error:
            raise table.fault(row, error) from None
    if not pairs:
        raise InputError(f"{path} has no rows")
    return pairs


def read_pair(folder: Path, line: int, row: dict[str, object], *, special: bool = False) -> Pair:
    """Convert a row with image and text to a pair.

    Args:
        folder: folder that image paths are relative to.
        line: line number of the row, from 1.
        row: values of the row by column name.
        special: whether to accept pipes and other special files, which scoring then reports.

    Raises:
        LineError: a value is missing, or there is no such image.
    """
    name, text = row.get("image"), row.get("text")
    if not isinstance(name, str) or not isinstance(text, str) or not name or not text.strip():
        raise LineError(line, "image and text must both be there, as text")
    if fault := text_fault(name) or text_fault(text):
        raise LineError(line, fault)
    image = folder / name
    try:
        mode = image.stat().st_mode
    except (OSError, ValueError):  # missing, or not a valid name
        mode = 0
    if not stat.S_ISREG(mode) and not (special and mode and not stat.S_ISDIR(mode)):
        raise LineError(line, f"no image file {one_line(repr(str(image)), 600)}")
    return Pair(name, image, text.strip())
