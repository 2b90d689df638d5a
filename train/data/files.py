"""The files of a data set: finding them, naming the origin of missing ones, and reading them."""

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
    """Path of a file in the first folder that has it.

    Args:
        name: file name without a folder.
        folders: folders to search, in order.
        origin: place the file can be obtained from, for the message.

    Raises:
        InputError: none of the folders has the file.
    """
    for folder in folders:
        path = folder / name
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on odd names)
            return path
    places = " or ".join(repr(str(folder)) for folder in folders)
    raise InputError(f"no file {name!r} in {places}; it comes from {origin}")


def find_coco_image(name: str, root: Path, part: str) -> Path:
    """Path of an image of COCO 2014.

    Args:
        name: file name of the image.
        root: folder with the subfolder `<part>2014`, `images/<part>2014` or `images`.
        part: part of COCO 2014, "train" or "val".

    Raises:
        InputError: the image is not in any of the folders.
    """
    folders = [root / f"{part}2014", root / "images" / f"{part}2014", root / "images"]
    return find_file(name, folders, f"the COCO site (cocodataset.org), 2014 {part} images")


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, without its byte order mark.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        return decode(read_regular(path), repr(str(path)))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a CSV file with a header.

    Args:
        path: path of a UTF-8 CSV file.
        columns: required columns, in any order.

    Raises:
        InputError: the file is malformed, with the line in the message, or lacks a column.
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
    """Stream the named fields of each object in a list of a JSON file.

    Args:
        path: path of a JSON file whose top level is an object.
        key: key of the list in that object.
        fields: required fields of each object in the list.

    Raises:
        InputError: the file is not valid JSON, the list is missing or empty, or an object lacks
            a field.
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
