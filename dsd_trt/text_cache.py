"""Text states of earlier calls, so that a text that comes again is not encoded again."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import InputError, counted
from dsd_trt.log import get_logger
from dsd_trt.pipeline import EncodedTexts

logger = get_logger(__name__)

DEFAULT_MB = 128
"""Size of a scorer's cache in MiB: 560 texts of Stable Diffusion 1.x in FP32."""


class _Row(NamedTuple):
    """One text: states (77, D) and mask (77,)."""

    states: NDArray[Any]
    mask: NDArray[np.float32]


class TextCache:
    """The states of the texts used last, up to a number of bytes, texts included.

    Threads may share it.

    It belongs to one scorer, and with it to one verified bundle on one engine. A row keeps the bits
    of the batch it was encoded in.

    Args:
        limit_mb: size in MiB; 0 keeps nothing.

    Raises:
        InputError: the size is not a number, or negative.

    Attributes:
        hits: number of texts that were found.
        misses: number of texts that had to be encoded.
    """

    def __init__(self, limit_mb: float) -> None:
        if (
            isinstance(limit_mb, bool)
            or not isinstance(limit_mb, int | float)
            or not 0 <= limit_mb < 2**40
        ):
            raise InputError(f"text_cache_mb must be a number of MiB, at least 0, got {limit_mb!r}")
        self._limit = int(limit_mb * 2**20)
        self._rows: OrderedDict[str, _Row] = OrderedDict()  # used longest ago first
        self._bytes = 0
        self._lock = threading.RLock()  # a signal handler may interrupt
        self.hits: int = 0
        self.misses: int = 0

    def __len__(self) -> int:
        """Number of texts it holds."""
        return len(self._rows)

    def __contains__(self, text: str) -> bool:
        """Whether it holds a text."""
        return text in self._rows

    def __repr__(self) -> str:
        size = f"{self._bytes / 2**20:.1f} of {self._limit / 2**20:.1f} MiB"
        hits, misses = counted(self.hits, "hit"), counted(self.misses, "miss", "misses")
        return f"TextCache({counted(len(self), 'text')}, {size}, {hits}, {misses})"

    def encode(
        self, texts: Sequence[str], encode: Callable[[Sequence[str]], EncodedTexts]
    ) -> EncodedTexts:
        """Encode texts, those it does not hold in one call.

        Args:
            texts: distinct texts to encode.
            encode: function that encodes one or more texts.
        """
        if not self._limit:
            return encode(texts)
        known: dict[str, _Row] = {}
        with self._lock:
            for text in texts:
                if (row := self._rows.get(text)) is not None:
                    self._rows.move_to_end(text)
                    known[text] = row
            self.hits += len(known)
            self.misses += len(texts) - len(known)
        logger.info("text cache: %d of %d texts are encoded already", len(known), len(texts))
        new = [text for text in texts if text not in known]
        if not new:
            return _joined([known[text] for text in texts])
        encoded = encode(new)
        self._add(new, encoded)
        if not known:
            return encoded
        known |= {
            text: _Row(*row) for text, *row in zip(new, encoded.states, encoded.mask, strict=True)
        }
        return _joined([known[text] for text in texts])

    def clear(self) -> None:
        """Drop all texts."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    def _add(self, texts: Sequence[str], encoded: EncodedTexts) -> None:
        """Keep rows, unless they would fill more than the whole cache: none would be found."""
        made = {
            text: _Row(states, mask)
            for text, states, mask, finite in zip(
                texts, encoded.states, encoded.mask, encoded.finite, strict=True
            )
            if finite  # a faulty run may do better next time
        }
        if sum(_size(text, row) for text, row in made.items()) > self._limit:
            return
        for text, view in made.items():
            row = _Row(view.states.copy(), view.mask.copy())  # a view would hold the whole batch
            with self._lock:
                if text in self._rows:  # by another thread
                    continue
                self._rows[text] = row
                self._bytes += _size(text, row)
                while self._bytes > self._limit:
                    self._bytes -= _size(*self._rows.popitem(last=False))


def _size(text: str, row: _Row) -> int:
    """Bytes of a text and its row: a long text may have more than its states."""
    return sys.getsizeof(text) + row.states.nbytes + row.mask.nbytes


def _joined(rows: Sequence[_Row]) -> EncodedTexts:
    return EncodedTexts(
        np.stack([row.states for row in rows]), np.stack([row.mask for row in rows])
    )
