"""The bundle's weight file: the weights of all graphs, each distinct tensor once."""

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
    """Writer of the weight file that a bundle's graphs share.

    Equal tensors are stored once, across all graphs. FP32 tensors that FP16 represents without
    loss are stored in FP16; checkpoints published in FP16 consist of them. The file is hashed
    while it is written, so it is never read again for that.

    Args:
        folder: folder of the ONNX files, where the weight file is created.
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
            name: name of the tensor in its graph.
            values: values of the tensor, of any shape and type.

        Returns:
            The graph's reference to the stored tensor, with the stored type.
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
        """Hash and size of the file for `bundle.json`."""
        return FileEntry(self._hash.hexdigest(), self._size)

    def _place(self, content: memoryview) -> int:
        """Offset of some content in the file; it is appended unless it is there already."""
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
    """FP32 values as FP16 if every value survives bit for bit; all others unchanged."""
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    same = np.array_equal(half.astype(np.float32).view(np.uint32), values.view(np.uint32))
    return half if same else values
