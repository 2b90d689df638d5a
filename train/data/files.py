"""The files of a data set: finding them, or saying where they come from, and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson

from dsd_trt.errors import InputError
from dsd_trt.files.regular import open_regular, read_regular
from dsd_trt.files.rows import LineError, csv_rows, decode

DSD = "the repository that the paper's authors released, eric-ai-lab/DSD on GitHub"


def find_file(name: str, folders: Sequence[Path], origin: str) -> Path:
    """The file of that name in the first of the folders that has it.

    Args:
        name: of the file, without a folder.
        folders: where to look, in order.
        origin: where the file can be had, for the message.

    Raises:
        InputError: none of the folders has it.
    """
    for folder in folders:
        path = folder / name
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on odd names)
            return path
    places = " or ".join(repr(str(folder)) for folder in folders)
    raise InputError(f"no file {name!r} in {places}; it comes from {origin}")


def find_coco_image(name: str, root: Path, part: str) -> Path:
    """An image of COCO's 2014 edition.

    Args:
        name: of the file.
        root: holds the folder `<part>2014`, `images/<part>2014` or `images`.
        part: "train" or "val".

    Raises:
        InputError: it is not there.
    """
    folders = [root / f"{part}2014", root / "images" / f"{part}2014", root / "images"]
    return find_file(name, folders, f"the COCO site (cocodataset.org), 2014 {part} images")


def read_text(path: Path) -> str:
    """All of a UTF-8 file, without its byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return decode(read_regular(path), repr(str(path)))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of every row of a CSV file with a header.

    Raises:
        InputError: it is malformed, with the line, or lacks one of `columns`.
    """
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is empty; the columns are {','.join(columns)}")
    try:
        for line, row in csv_rows(text, columns):
            yield line, {column: str(cell) for column, cell in row.items()}
    except LineError as error:
        raise InputError(f"{path}, line {error.line}: {error}") from None


def stream_json(path: Path, key: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The named fields of each object in a list that is never held as a whole.

    Args:
        path: a JSON file, an object.
        key: of the list in it.
        fields: what every object of the list must have.

    Raises:
        InputError: not valid JSON, no such list or nothing in it, or an object lacks a field.
    """
    count = 0
    with open_regular(path) as file:
        try:
            for entry in ijson.items(file, f"{key}.item", use_float=True):
                yield tuple(entry[field] for field in fields)
                count += 1
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
        except (KeyError, TypeError):
            wanted = ", ".join(fields)
            raise InputError(f"{path}: {key}[{count}] is not an object with {wanted}") from None
    if not count:
        raise InputError(f"{path} has no list {key!r}, or an empty one")
