"""Headers of safetensors files against those that the library reads, and what it reads wrongly."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import deserialize
from safetensors.numpy import load, save

from dsd_trt.files.tensor_file import read_tensor_headers, read_tensors, require_unique

TENSORS: dict[str, NDArray[Any]] = {
    "a": np.ones((2, 3), np.float32),
    "empty": np.ones((0, 4), np.float16),
    "scalar": np.ones((), np.int64),
    "b": np.arange(5, dtype=np.uint8),
}


def file_of(header: str, data: bytes) -> BytesIO:
    text = header.encode()
    return BytesIO(len(text).to_bytes(8, "little") + text + data)


def test_headers_are_those_that_the_library_reads() -> None:
    content = save(TENSORS, {"format": "pt"})
    expected = {name: (it["dtype"], tuple(it["shape"])) for name, it in deserialize(content)}
    found = read_tensor_headers(BytesIO(content))
    assert {name: (it.dtype, it.shape) for name, it in found.items()} == expected
    assert read_tensor_headers(file_of("{}  ", b"")) == {}


def test_tensors_are_those_that_the_library_reads() -> None:
    stored: dict[str, NDArray[Any]] = {
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "ids": np.array([[-1, 2**31 - 1]], np.int32),
        "half": np.array([1.5, -65504.0], np.float16),
        "score": np.array([0.1, -3e38], np.float32),
        "empty": np.ones((0, 4), np.float32),
    }
    content = save(stored)
    found, expected = read_tensors(BytesIO(content)), load(content)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert np.array_equal(found[name], values)
    with pytest.raises(ValueError, match=r"'scalar\.dtype' is 'I64', not U8"):
        read_tensors(BytesIO(save(TENSORS)))


def entry(dtype: str, shape: list[int], *offsets: int) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


@pytest.mark.parametrize(
    ("header", "size", "complaint"),
    [
        (f'{{"a": {entry("U8", [1], 0, 1)}, "a": {entry("U8", [2], 0, 2)}}}', 2, "'a' twice"),
        (f'{{"a": {entry("F32", [2], 0, 4)}}}', 4, r"'a\.data_offsets' must be \[0, 8\]"),
        (f'{{"a": {entry("U8", [2], 1, 3)}}}', 3, r"'a\.data_offsets' must be \[0, 2\]"),
        (f'{{"a": {entry("U8", [2], 0, 2)}}}', 3, "its tensors end at"),
        (f'{{"a": {entry("U8", [-2], 0, -2)}}}', 0, r"'a\.shape' has a negative size"),
        (f'{{"a": {entry("X9", [2], 0, 2)}}}', 2, "'X9', which is not known"),
        (f'{{"a": {entry("U8", [2**62, 2**62], 0, 0)}}}', 0, r"'a\.data_offsets' must be"),
        (
            f'{{"a": {entry("U8", [1], 0, 1)}, "b": {entry("U8", [1], 0, 1)}}}',
            2,
            r"'b\.data_offsets' must be \[1, 2\]",
        ),
        ('{"a": {"dtype": "U8", "shape": [1]}}', 1, r"'a\.data_offsets' is missing"),
        ('{"__metadata__": {"a": 1}}', 0, "__metadata__"),
        ("[]", 0, "no JSON object"),
        ("{", 0, "Expecting"),
    ],
)
def test_what_is_no_such_file_is_refused(header: str, size: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_tensor_headers(file_of(header, bytes(size)))


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8 + b"{}", b"\3" + bytes(7) + b"{}"]
)
def test_a_file_shorter_than_its_header_is_refused(content: bytes) -> None:
    for read in (read_tensor_headers, require_unique):
        with pytest.raises(ValueError, match="is longer than the file"):
            read(BytesIO(content))


def test_the_library_takes_the_last_of_two_tensors_of_one_name() -> None:
    header = f'{{"a": {entry("U8", [1], 0, 1)}, "a": {entry("U8", [2], 0, 2)}}}'
    content = file_of(header, b"xy")
    (name, tensor), = deserialize(content.getvalue())  # fmt: skip
    assert (name, tensor["shape"]) == ("a", [2])  # or `require_unique` has nothing to do
    with pytest.raises(ValueError, match="the key 'a' twice"):
        require_unique(content)
