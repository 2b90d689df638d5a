"""The journal of a run: what was scored, written as it goes, so that a stopped run can go on.

A line is a CRC-32 and a JSON object. The first line says which run it is of. The others are of
chunks of images, in order: a part of a chunk while it is scored, and the whole chunk at its end.
A part says what it is of: an image that could be read then and cannot be now, or the other way
round, moves every pair behind it.
A last line that a kill cut short is cut off, and so is whatever follows a damaged one: it is scored
again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, ImageError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import parse_json
from dsd_trt.jobs import Row, Scored

_FORMAT = "dsd-trt scores 1"
_SYNC_EVERY = 5.0  # seconds: what a power cut may cost; a kill costs nothing that was written


class Journal:
    """A journal that is being written; `open_journal` opens one.

    Args:
        path: of its file.
        size: of its whole lines, in bytes; the rest is cut off.
        parts: of the chunk that was being scored, by what they are of.
        pairs: that have a score already.

    Attributes:
        path: of its file.
        pairs: that have a score.
    """

    def __init__(self, path: Path, size: int, parts: Mapping[str, Scored], pairs: int) -> None:
        self.path, self.pairs = path, pairs
        self._size, self._kept, self._parts = size, size, dict(parts)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.ftruncate(self._file, size)
        self._synced = time.monotonic()

    def chunks(self) -> Iterator[list[Scored]]:
        """Chunks that were finished before, one after another."""
        for _, line in _lines(self.path, self._kept):
            if isinstance(line, list):
                yield line

    def other_work(self) -> InputError:
        """What to raise where its images or scores are not as many as the run has."""
        return InputError(
            f"{self.path} holds other work than this run has, and was changed. Start again without "
            "--resume"
        )

    def part(
        self, compute: Callable[[], Scored], of: Iterable[NDArray[Any]]
    ) -> tuple[Scored, bool]:
        """The next part of a chunk: as it was scored before, else as it is now.

        Args:
            compute: scores it.
            of: what is scored: latents, and which texts against which of them.

        Returns:
            The part, and whether it is known from before.
        """
        digest = _digest(of)
        if (known := self._parts.get(digest)) is not None:
            return known, True
        part = compute()
        assert isinstance(part.result, Row)
        self._write({"part": _plain(part), "of": digest})
        self.pairs += _pairs(part)
        return part, False

    def finish_chunk(self, images: Sequence[Scored]) -> None:
        """Write a whole chunk, in which its parts are."""
        self._parts.clear()
        self._write({"chunk": [_plain(it) for it in images]})

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write the first line."""
        self._write({"format": _FORMAT, "run": dict(run)})

    def close(self) -> None:
        """Close the file; it stays, for a run that goes on."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, separators=(",", ":"))
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        try:
            written = os.pwrite(self._file, line, self._size)
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._size + written)
            if time.monotonic() - self._synced > _SYNC_EVERY:
                os.fsync(self._file)
                sync_folder(self.path.parent)  # or its name could be lost
                self._synced = time.monotonic()
        except BaseException as error:
            os.ftruncate(self._file, self._size)  # whole lines alone
            if not isinstance(error, OSError):
                raise
            raise DsdError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
        self._size += len(line)


def open_journal(path: Path, run: Mapping[str, Any], *, resume: bool) -> Journal:
    """Open the journal of a run, the one that is there if the run is to go on.

    Args:
        path: of its file.
        run: what the run's results depend on, by name: bundle, inputs, settings.
        resume: whether to go on, with a journal of the same run; where there is none the run starts
            anew.

    Raises:
        DsdError: the disk is full, or the like; what cannot even be begun is removed.
        OSError: the file cannot be written.
    """
    size, parts, pairs = 0, dict[str, Scored](), 0
    if resume and path.exists():
        for end, line in _lines(path):
            size = end
            if isinstance(line, list):
                parts = {}
                pairs += sum(map(_pairs, line))
            elif isinstance(line, _Part):
                parts[line.of] = line.scored
    journal = Journal(path, size, parts, pairs + sum(map(_pairs, parts.values())))
    if not size:
        try:
            journal.begin(run)
        except BaseException:
            journal.close()
            path.unlink(missing_ok=True)
            raise
    return journal


def require_ours(path: Path) -> None:
    """Refuse to write over a file that is no journal, nor the beginning of one.

    Raises:
        InputError: it is something else.
        OSError: it cannot be read.
    """
    start = f' {{"format":"{_FORMAT}"'.encode()
    try:
        with open_regular(path) as file:
            head = file.read(8 + len(start))
    except FileNotFoundError:
        return
    if head[:8].strip(b"0123456789abcdef") or not start.startswith(head[8:]):
        raise InputError(
            f"{path} is no journal of dsd-trt, and would be written over: move it, or give another "
            "file to write, -o FILE"
        )


@dataclass(frozen=True)
class Survey:
    """What a journal holds; nothing where there is none.

    Attributes:
        run: which it is of; None if it does not say.
        pairs: how many have a score.
        damaged: whether a line is; a last one that was cut short is not.
    """

    run: dict[str, Any] | None = None
    pairs: int = 0
    damaged: bool = False


def survey(path: Path) -> Survey:
    """Read a journal through, without going on with it."""
    run: dict[str, Any] | None = None
    pairs = parts = whole = 0
    try:
        for whole, line in _lines(path):  # noqa: B007 (where the last whole one ends)
            if isinstance(line, dict):
                run = line
            elif isinstance(line, _Part):
                parts += _pairs(line.scored)
            else:
                pairs, parts = pairs + sum(map(_pairs, line)), 0
        with open_regular(path) as file:
            file.seek(whole)
            return Survey(run, pairs + parts, damaged=file.readline().endswith(b"\n"))
    except OSError:
        return Survey(run, pairs + parts)


@dataclass(frozen=True)
class _Part:
    """A part of a chunk, and the digest of what it is of."""

    of: str
    scored: Scored


Line: TypeAlias = dict[str, Any] | list[Scored] | _Part
"""Which run it is, a chunk, or a part of one."""


def _lines(path: Path, size: int | None = None) -> Iterator[tuple[int, Line]]:
    """Whole lines up to the first damaged one, each with the place where it ends."""
    end = 0
    with open_regular(path) as file:
        for line in file:
            if (size is not None and end >= size) or (content := _parse(line, end == 0)) is None:
                return
            end += len(line)
            yield end, content


def _parse(line: bytes, first: bool) -> Line | None:
    """What a line says; None if it is cut short or damaged, or of another format."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        content = parse_json(text.decode())
        if first:
            return dict(content["run"]) if content["format"] == _FORMAT else None
        if "part" in content:
            return _Part(str(content["of"]), _scored(content["part"]))
        return [_scored(plain) for plain in content["chunk"]]
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _plain(scored: Scored) -> dict[str, Any]:
    if isinstance(scored.result, ImageError):
        return {"error": str(scored.result), "passes": scored.passes}
    scores, lost = scored.result.scores, scored.result.lost
    plain: dict[str, Any] = {
        "scores": base64.b64encode(scores.astype("<f4").tobytes()).decode(),
        "passes": scored.passes,
    }
    if (lost != np.isnan(scores)).any():
        plain["lost"] = np.flatnonzero(lost).tolist()
    return plain


def _scored(plain: Mapping[str, Any]) -> Scored:
    if "error" in plain:
        return Scored(ImageError(plain["error"]), plain["passes"])
    scores = np.frombuffer(base64.b64decode(plain["scores"]), "<f4").astype(np.float32)
    lost = np.isnan(scores)
    if "lost" in plain:
        lost = np.zeros(len(scores), np.bool_)
        lost[plain["lost"]] = True
    return Scored(Row(scores, lost), plain["passes"])


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()[:32]


def _pairs(scored: Scored) -> int:
    """How many have a score: not those that were given up on, or could not be scored."""
    if isinstance(scored.result, ImageError):
        return 0
    return int(np.count_nonzero(~np.isnan(scored.result.scores)))
