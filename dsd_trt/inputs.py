"""What a command line names: images, a file of texts, a file of pairs."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.image import image_suffixes


@dataclass(frozen=True)
class Pair:
    """One row of a pairs file.

    Attributes:
        name: the image as the file writes it.
        image: where it lies.
        text: its text.
    """

    name: str
    image: Path
    text: str


def find_images(arguments: Iterable[str]) -> list[Path]:
    """Collect image files from files, directories (recursive) and globs, each once.

    A file named outright is taken whatever it is called; in directories and globs, only files
    whose name ends like an image's, and nothing hidden. Each argument's images are sorted.

    Raises:
        InputError: a path that does not exist, or a directory or glob without images.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        for path in _expand(argument):
            found.setdefault(str(path.absolute()), path)
    return list(found.values())


def read_texts(source: str) -> list[str]:
    """Read texts, one a line; blank lines, surrounding spaces and a byte order mark are dropped.

    Args:
        source: a UTF-8 file, or "-" for standard input.

    Raises:
        InputError: no such file, not UTF-8, or no text in it.
    """
    name = "standard input" if source == "-" else repr(source)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read texts from {name}: {error.strerror}; the last argument is their file"
        ) from None
    lines = (line.strip() for line in io.StringIO(_decode(content, name), newline=None))
    if not (texts := [line for line in lines if line]):
        raise InputError(f"{name} has no texts; write one a line")
    return texts


def read_pairs(path: Path) -> list[Pair]:
    """Read image-text pairs from CSV with a header, or from JSONL; other columns are ignored.

    Args:
        path: UTF-8 file; the images in it are named relative to its folder.

    Raises:
        InputError: it is malformed, has no pairs, or names an image that does not exist; with the
            line's number.
    """
    try:
        text = _decode(path.read_bytes(), repr(str(path)))
    except OSError as error:
        raise InputError(f"cannot read pairs from {str(path)!r}: {error.strerror}") from None
    rows = _jsonl_rows(text) if text.lstrip().startswith("{") else _csv_rows(text)
    try:
        pairs = [_pair(path.parent, line, row) for line, row in rows]
    except _LineError as error:
        raise InputError(f"{path}, line {error.line}: {error}") from None
    if not pairs:
        raise InputError(f"{path} has no pairs; write a CSV file with columns image,text")
    return pairs


def _pair(folder: Path, line: int, row: dict[str, object]) -> Pair:
    name, text = row.get("image"), row.get("text")
    if not isinstance(name, str) or not isinstance(text, str) or not name or not text.strip():
        raise _LineError(line, "image and text must both be there, as text")
    if not _is_unicode(name + text):
        raise _LineError(line, "a surrogate, which is half a character")
    image = folder / name
    if not os.path.isfile(image):  # noqa: PTH113 (Path.is_file raises on odd names)
        raise _LineError(line, f"no image file {str(image)!r}")
    return Pair(name, image, text.strip())


class _LineError(ValueError):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises on odd names)
        return _expand_glob(argument)
    if path.is_dir():
        images = sorted(_walk(path))
        if not images:
            raise InputError(f"no images in the directory {argument!r}")
        return images
    return [path]


def _expand_glob(argument: str) -> list[Path]:
    if not glob.has_magic(argument):
        raise InputError(f"no file or directory {argument!r}")
    images = []
    # Not Path.glob, which refuses absolute patterns.
    for match in map(Path, sorted(glob.glob(argument, recursive=True))):  # noqa: PTH207
        images += sorted(_walk(match)) if match.is_dir() else _images([match])
    if not images:
        raise InputError(f"no images match {argument!r}")
    return images


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from _images(Path(root, name) for name in files if not name.startswith("."))


def _images(paths: Iterable[Path]) -> list[Path]:
    suffixes = image_suffixes()
    return [path for path in paths if path.suffix.lower() in suffixes]


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} is not UTF-8 text (line {line})") from None


def _is_unicode(text: str) -> bool:
    """False where a JSON escape left half of a surrogate pair."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if missing := [column for column in ("image", "text") if column not in header]:
                    raise _LineError(
                        reader.line_num, f"no column {missing[0]!r}; the columns are image,text"
                    )
            elif len(cells) != len(header):
                raise _LineError(
                    reader.line_num,
                    f"{len(cells)} cells under {len(header)} columns; "
                    'put a text that has commas in "quotes"',
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise _LineError(reader.line_num, f"not valid CSV: {error}") from None


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for line, row in enumerate(io.StringIO(text, newline=None), start=1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except ValueError as error:
            raise _LineError(line, f"not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise _LineError(line, "not a JSON object")
        yield line, value
