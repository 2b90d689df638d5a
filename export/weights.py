"""The weights of a bundle's graphs: one file, every tensor in it once."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import FileEntry

WEIGHTS_NAME = "weights.data"
SMALL = 1024  # bytes; smaller constants stay in the ONNX file
_ALIGNMENT = 4096  # a page, so that engines can map the file rather than read it


class WeightFile:
    """Where graphs that are being written leave their weights.

    Equal tensors are stored once, whichever graphs they are of. FP32 tensors that FP16 holds
    without loss, as those of checkpoints published in FP16, are stored in FP16. The file is hashed
    as it is written, and never read for that.

    Args:
        folder: of the ONNX files; the weights become a file of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[tuple[int, int], list[int]] = {}  # offsets by size and CRC-32
        self._size, self._hash = 0, hashlib.sha256()
        self._file: BinaryIO = (folder / WEIGHTS_NAME).open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def store(self, name: str, values: NDArray[Any]) -> ir.ExternalTensor:
        """Store a tensor.

        Args:
            name: of the tensor.
            values: its values.

        Returns:
            What refers to it in a graph; its type is what it is stored in.
        """
        values = np.ascontiguousarray(_lossless_half(values))
        return ir.ExternalTensor(
            WEIGHTS_NAME,
            self._place(values.data.cast("B")),
            values.nbytes,
            ir.DataType.from_numpy(values.dtype),
            shape=ir.Shape(values.shape),
            name=name,
            base_dir=self._folder,
        )

    @property
    def entry(self) -> FileEntry:
        """What `bundle.json` says of the file."""
        return FileEntry(self._hash.hexdigest(), self._size)

    def _place(self, content: memoryview) -> int:
        """Where some content lies; it is written unless it is there already."""
        known = self._stored.setdefault((len(content), zlib.crc32(content)), [])
        for start in known:
            self._file.seek(start)
            if self._file.read(len(content)) == content:
                return start
        self._file.seek(self._size)
        self._append(b"\0" * (-self._size % _ALIGNMENT))
        known.append(self._size)
        self._append(content)
        return known[-1]

    def _append(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)


def _lossless_half(values: NDArray[Any]) -> NDArray[Any]:
    """FP32 values in FP16 where every one of them survives it, bit for bit; others as they are."""
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    same = np.array_equal(half.astype(np.float32).view(np.uint32), values.view(np.uint32))
    return half if same else values
