"""Headers of safetensors files, checked before the library reads the file.

Of two tensors with one name, the library silently uses the last. It also accepts metadata of any
type.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import counted
from dsd_trt.files.schema import SchemaError, from_plain, parse_json

MAX_HEADER = 100_000_000  # bytes, set by the format
_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
_NUMPY: Mapping[str, str] = {"U8": "u1", "I32": "<i4", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class TensorHeader:
    """Header entry of one tensor.

    Attributes:
        dtype: type of the tensor in the format's notation, such as "F32".
        shape: sizes of the dimensions, each at least 0.
        data_offsets: first byte and end of the tensor, relative to the data section.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, ...]


def read_tensor_headers(file: BinaryIO) -> dict[str, TensorHeader]:
    """All tensors of a safetensors file by name, in the order of their bytes.

    Raises:
        ValueError: the file violates the format: truncated, longer than its tensors, duplicate
            names, or bytes that are missing, shared or unused. The message names the tensor.
        OSError: the file cannot be read.
    """
    plain, begin, size = _read_header(file)
    from_plain(_Metadata, {"entries": plain.pop("__metadata__", {})}, "__metadata__")
    found = {name: from_plain(TensorHeader, entry, name) for name, entry in plain.items()}
    found = dict(sorted(found.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, tensor in found.items():
        if tensor.dtype not in _SIZES:
            raise SchemaError(f"field '{name}.dtype' is {tensor.dtype!r}, which is not known")
        if any(side < 0 for side in tensor.shape):
            raise SchemaError(f"field '{name}.shape' has a negative size")
        wanted = end, end + math.prod(tensor.shape) * _SIZES[tensor.dtype]
        if tensor.data_offsets != wanted:
            raise SchemaError(f"field '{name}.data_offsets' must be {list(wanted)}")
        end = wanted[1]
    if begin + end != size:
        raise ValueError(f"its tensors end at {begin + end} of {counted(size, 'byte')}")
    return found


def read_tensors(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file of U8, I32, F16 and F32, read without the library.

    Raises:
        ValueError: the file violates the format, as for `read_tensor_headers`, or has a tensor of
            another type.
        OSError: the file cannot be read.
    """
    headers = read_tensor_headers(file)
    file.seek(0)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    found: dict[str, NDArray[Any]] = {}
    for name, tensor in headers.items():
        if (kind := _NUMPY.get(tensor.dtype)) is None:
            raise SchemaError(f"field '{name}.dtype' is {tensor.dtype!r}, not {', '.join(_NUMPY)}")
        begin, end = tensor.data_offsets
        values = np.frombuffer(file.read(end - begin), kind).reshape(tensor.shape)
        found[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
    return found


def require_unique(file: BinaryIO) -> None:
    """Refuse a safetensors file with two tensors of one name.

    Raises:
        ValueError: a name occurs twice, or the file is truncated; the message names the tensor.
    """
    _read_header(file)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The header, the start of the data, and the file's size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise ValueError(
            f"its header of {counted(length, 'byte')} is longer than the file's {size}"
        )
    plain = parse_json(file.read(length).decode())  # includes UnicodeDecodeError
    if not isinstance(plain, dict):
        raise ValueError("its header is no JSON object")
    return plain, 8 + length, size


@dataclass(frozen=True)
class _Metadata:
    entries: Mapping[str, str]
