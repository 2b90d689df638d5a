"""Scores as programs read them, and where any result is written."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files import followed, is_device, write_whole
from dsd_trt.image_files import printable
from dsd_trt.unfinished import unfinished_name


@dataclass(frozen=True)
class Record:
    """One scored pair."""

    image: str
    text: str
    score: float
    probability: float


def to_records(
    pairs: Iterable[tuple[str, str]],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
) -> list[Record]:
    """Records of the pairs that could be scored.

    Args:
        pairs: image and text of each score, in order.
        scores: of any shape, NaN where there is none.
        probabilities: of the same shape.
    """
    return [
        Record(printable(image), text, _shortest(score), _shortest(probability))
        for (image, text), score, probability in zip(
            pairs, scores.ravel(), probabilities.ravel(), strict=True
        )
        if not np.isnan(score)
    ]


def by_image(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Every image's records, images in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image, []).append(record)
    return groups


def top_texts(records: Sequence[Record], k: int) -> list[Record]:
    """The k best texts of every image, best first; images stay in order."""
    return [
        record
        for of_image in by_image(records).values()
        for record in sorted(of_image, key=lambda record: -record.score)[:k]
    ]


def to_json(records: Sequence[Record]) -> str:
    """One list, a record a line."""
    rows = ",\n".join(f"  {_object(record)}" for record in records)
    return f"[\n{rows}\n]\n" if rows else "[]\n"


def to_jsonl(records: Sequence[Record]) -> str:
    """One object a line."""
    return "".join(f"{_object(record)}\n" for record in records)


def to_csv(records: Sequence[Record]) -> str:
    """A header, then one record a row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("image", "text", "score", "probability"))
    writer.writerows((r.image, r.text, r.score, r.probability) for r in records)
    return buffer.getvalue()


def refuse_unwritable(path: str) -> None:
    """Find out before the work that its result could not be written.

    Raises:
        InputError: nothing can be written there.
    """
    if path == "-":
        return
    try:
        if is_device(Path(path)):
            return
        target = followed(Path(path))
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # its name may be too long
        unfinished = target.with_name(unfinished_name(target.name))
        unfinished.open("w").close()
        unfinished.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path!r}: {error.strerror}") from None


def write_output(path: str, content: str) -> None:
    """Write to a file, whole or not at all, or to stdout for "-".

    Raises:
        DsdError: the disk is full, or the like; an older file of that name is left as it was.
    """
    if path != "-":
        write_whole(Path(path), content)
        return
    try:
        sys.stdout.write(content)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: no error of ours
        raise
    except OSError as error:
        raise DsdError(f"cannot write standard output: {error.strerror}") from None


def _shortest(number: np.float32) -> float:
    """The number with the fewest digits that is read back as the same float32."""
    return float(str(number))


def _object(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False)
