"""The journal of a run: scores saved as they are computed, so that the run can be resumed.

A line is a CRC-32 and a JSON object. The first line describes the run. The other lines hold chunks
of images, in order: parts of a chunk while it is scored, then the whole chunk.

Each part names the items it covers. If an image became readable or unreadable since, the pairs
after it fall into other parts, which this detects. A truncated last line is cut off. So is
everything from a damaged line on; it is scored again.
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
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, ImageError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.position import BINARY, write_at
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import parse_json
from dsd_trt.jobs import Scored, TextScores
from dsd_trt.lists import Outcome
from dsd_trt.spans import span

_FORMAT = "dsd-trt scores 1"
_SYNC_EVERY = 5.0  # seconds of work a power cut may lose; a kill loses none


class Journal:
    """A journal open for writing; see `open_journal`.

    Args:
        path: path of the journal's file.
        size: length of its intact lines in bytes; the rest is cut off.
        parts: parts of the unfinished chunk, by what they cover.
        pairs: number of pairs that already have a score.

    Attributes:
        path: path of the journal's file.
        pairs: number of pairs that have a score.
    """

    def __init__(self, path: Path, size: int, parts: Mapping[str, Scored], pairs: int) -> None:
        self.path: Path = path
        self.pairs: int = pairs
        self._size, self._kept, self._parts = size, size, dict(parts)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | BINARY, 0o666)
        os.ftruncate(self._file, size)
        self._synced = time.monotonic()
        self._chunks = self._read_chunks()

    def next_chunk(self) -> list[Scored] | None:
        """The next chunk that an earlier run finished; None after the last one."""
        return next(self._chunks, None)

    def require_used(self) -> None:
        """Refuse a journal that has more chunks than the run.

        Raises:
            InputError: a chunk is left.
        """
        if self.next_chunk() is not None:
            raise self.other_work()

    def other_work(self) -> InputError:
        """Error for a journal whose numbers of images or scores do not fit the run."""
        return InputError(
            f"{self.path} does not belong to this run, or was changed. Start again without --resume"
        )

    def parts(
        self, compute: Callable[[], list[Scored]], of: Sequence[Iterable[NDArray[Any]]]
    ) -> tuple[list[Scored], bool]:
        """The next parts of a chunk, which belong together: all read from the journal, or computed.

        Args:
            compute: function that scores the parts.
            of: description of each part: its latents, and the texts scored against each.

        Returns:
            The parts, and whether they came from the journal.
        """
        digests = [_digest(it) for it in of]
        known = [self._parts[it] for it in digests if it in self._parts]
        if len(known) == len(digests):
            return known, True
        parts = compute()
        assert all(isinstance(it.result, TextScores) for it in parts)
        self._write({"parts": [_plain(it) for it in parts], "of": digests})
        known_before = sum(_pairs(self._parts.pop(it)) for it in {*digests} & self._parts.keys())
        self.pairs += sum(map(_pairs, parts)) - known_before
        return parts, False

    def finish_chunk(self, images: Sequence[Scored]) -> None:
        """Write a whole chunk, which replaces its parts."""
        self._parts.clear()
        self._write({"chunk": [_plain(it) for it in images]})

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write the first line, which describes the run."""
        self._write({"format": _FORMAT, "run": dict(run)})

    def _read_chunks(self) -> Iterator[list[Scored]]:
        for _, line in _lines(self.path, self._kept):
            if isinstance(line, list):
                yield line

    def close(self) -> None:
        """Close the file, which stays for a resumed run."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, separators=(",", ":"))
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        try:
            with span("write", file=self.path.name):
                written = write_at(self._file, line, self._size)
                while written < len(line):
                    written += write_at(self._file, line[written:], self._size + written)
                if time.monotonic() - self._synced > _SYNC_EVERY:
                    os.fsync(self._file)
                    sync_folder(self.path.parent)  # a power cut could otherwise lose the name
                    self._synced = time.monotonic()
        except BaseException as error:
            os.ftruncate(self._file, self._size)  # only whole lines
            if not isinstance(error, OSError):
                raise
            raise DsdError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
        self._size += len(line)


def open_journal(path: Path, run: Mapping[str, Any], *, resume: bool) -> Journal:
    """Open a run's journal: the existing one to resume, otherwise a new one.

    Args:
        path: path of the journal's file.
        run: everything the run's results depend on, by name: bundle, inputs, settings.
        resume: whether to continue an existing journal of the same run. Without one, the run starts
            from the beginning.

    Raises:
        DsdError: the disk is full or cannot be written to; a journal that cannot be started is
            removed.
        OSError: the file cannot be opened for writing.
    """
    size, parts, pairs = 0, dict[str, Scored](), 0
    if resume and path.exists():
        for end, line in _lines(path):
            size = end
            if isinstance(line, list):
                parts = {}
                pairs += sum(map(_pairs, line))
            elif isinstance(line, _Parts):
                parts |= dict(zip(line.of, line.scored, strict=True))
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
    """Refuse to overwrite a file that is not a journal, or the beginning of one.

    Raises:
        InputError: the file is something else.
        OSError: the file cannot be read.
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
    """Contents of a journal; empty if there is none.

    Attributes:
        run: description of the run; None if it is missing.
        pairs: number of pairs that have a score.
        damaged: whether a line is damaged; a truncated last line does not count.
    """

    run: dict[str, Any] | None = None
    pairs: int = 0
    damaged: bool = False


def survey(path: Path) -> Survey:
    """Read a whole journal without resuming it."""
    run: dict[str, Any] | None = None
    parts = dict[str, int]()  # pairs of each part of the unfinished chunk
    pairs = whole = 0
    try:
        for whole, line in _lines(path):  # noqa: B007 (where the last whole one ends)
            if isinstance(line, dict):
                run = line
            elif isinstance(line, _Parts):
                parts |= dict(zip(line.of, map(_pairs, line.scored), strict=True))
            else:
                pairs, parts = pairs + sum(map(_pairs, line)), {}
        with open_regular(path) as file:
            file.seek(whole)
            damaged = file.readline().endswith(b"\n")
    except OSError:
        damaged = False
    return Survey(run, pairs + sum(parts.values()), damaged)


@dataclass(frozen=True)
class _Parts:
    """Parts of a chunk that belong together, with the digests of the items they cover."""

    of: list[str]
    scored: list[Scored]


Line: TypeAlias = dict[str, Any] | list[Scored] | _Parts
"""A run's description, a chunk, or parts of a chunk."""


def _lines(path: Path, size: int | None = None) -> Iterator[tuple[int, Line]]:
    """Lines up to the first damaged one, each with the position of its end."""
    end = 0
    with open_regular(path) as file:
        for line in file:
            if (size is not None and end >= size) or (content := _parse(line, end == 0)) is None:
                return
            end += len(line)
            yield end, content


def _parse(line: bytes, first: bool) -> Line | None:
    """Content of a line; None if it is truncated, damaged, or in another format."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        content = parse_json(text.decode())
        if first:
            return dict(content["run"]) if content["format"] == _FORMAT else None
        if "parts" in content:
            parts, of = [_scored(it) for it in content["parts"]], [str(it) for it in content["of"]]
            return _Parts(of, parts) if len(of) == len(parts) else None
        return [_scored(plain) for plain in content["chunk"]] or None
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
    if scored.listed is not None:
        plain["listed"] = scored.listed
    if (tokens := scored.result.tokens) is not None:
        content = base64.b64encode(tokens.astype("<f4").tobytes()).decode()
        plain["tokens"] = [tokens.shape[1], content]
    return plain


def _scored(plain: Mapping[str, Any]) -> Scored:
    if "error" in plain:
        return Scored(ImageError(plain["error"]), plain["passes"])
    scores = np.frombuffer(base64.b64decode(plain["scores"]), "<f4").astype(np.float32)
    lost = np.isnan(scores)
    if "lost" in plain:
        lost = np.zeros(len(scores), np.bool_)
        lost[plain["lost"]] = True
    listed = plain.get("listed")
    if listed not in (None, *get_args(Outcome)):
        raise ValueError(listed)
    tokens: NDArray[np.float32] | None = None
    if "tokens" in plain:
        width, content = plain["tokens"]
        tokens = np.frombuffer(base64.b64decode(content), "<f4").astype(np.float32)
        tokens = tokens.reshape(len(scores), width)
    return Scored(TextScores(scores, lost, tokens), plain["passes"], listed)


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()[:32]


def _pairs(scored: Scored) -> int:
    """Number of pairs with a score; pruned and failed pairs do not count."""
    if isinstance(scored.result, ImageError):
        return 0
    return int(np.count_nonzero(~np.isnan(scored.result.scores)))
