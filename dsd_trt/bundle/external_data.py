"""The files that hold an ONNX graph's tensors, found in its protobuf without `onnx`."""

from __future__ import annotations

from bisect import bisect_left

_MODEL = "model"
_CHILDREN: dict[str, dict[int, str]] = {  # message types by field number, from onnx.proto
    _MODEL: {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # fields of an `external_data` entry
_LOCATION = b"location"  # key of the entry that names the file
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)  # wire types


def external_files(model: bytes) -> set[str]:
    """Names of all files that a graph reads tensors from.

    Covers subgraphs, attributes, sparse tensors, functions and training graphs.

    Args:
        model: content of the ONNX file.

    Raises:
        ValueError: the content is not an ONNX graph.
    """
    found: set[str] = set()
    seen_graph = False
    # A part without the word names no file. This skips nearly all of a graph's nodes, which
    # would take longer than the rest of loading a small bundle.
    words = _occurrences(model, _LOCATION)
    waiting = [(_MODEL, 0, len(model))]
    while waiting:
        kind, at, end = waiting.pop()
        if kind == "entry":
            found |= _location(model, at, end)
            continue
        children = _CHILDREN[kind]
        while at < end:
            tag = model[at]
            at += 1
            if tag & 0x80:
                tag, at = _tag(model, at - 1, end)
            wire = tag & 7
            if wire == _BYTES:
                size, at = _varint(model, at, end)
                if size > end - at:
                    raise ValueError("it is cut short")
                if child := children.get(tag >> 3):
                    seen_graph = seen_graph or child == "graph"
                    if words[bisect_left(words, at)] < at + size:
                        waiting.append((child, at, at + size))
                at += size
            else:
                at = _skip(model, wire, at, end)
    if not seen_graph:
        raise ValueError("it holds no graph")
    return found


def _occurrences(model: bytes, word: bytes) -> list[int]:
    """Positions of a word, in order; the last one is past the end."""
    places, at = [], model.find(word)
    while at >= 0:
        places.append(at)
        at = model.find(word, at + len(word))
    return [*places, len(model)]


def _location(model: bytes, at: int, end: int) -> set[str]:
    """Value of an `external_data` entry, if its key is "location"."""
    last = {_KEY: b"", _VALUE: b""}  # if a field occurs twice, the last one counts
    while at < end:
        tag, start = _tag(model, at, end)
        at = _skip(model, tag & 7, start, end)
        if tag & 7 == _BYTES:
            last[tag >> 3] = model[_varint(model, start, end)[1] : at]
    if last[_KEY] != _LOCATION:
        return set()
    return {last[_VALUE].decode(errors="surrogateescape")}


def _skip(model: bytes, wire: int, at: int, end: int) -> int:
    """End of the field whose value begins at `at`."""
    depth = 0  # groups, which ONNX does not use and protobuf's readers skip
    while True:
        if wire == _VARINT:
            at = _varint(model, at, end)[1]
        elif wire == _BYTES:
            size, at = _varint(model, at, end)
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _GROUP:
            depth += 1
        elif wire == _GROUP_END and depth:
            depth -= 1
        else:
            raise ValueError(f"it has a field of wire type {wire}")
        if at > end:
            raise ValueError("it is cut short")
        if not depth:
            return at
        tag, at = _tag(model, at, end)
        wire = tag & 7


def _tag(model: bytes, at: int, end: int) -> tuple[int, int]:
    """Field number and wire type, cut to 32 bits as the engines' readers do."""
    tag, at = _varint(model, at, end)
    return tag & 0xFFFFFFFF, at


def _varint(model: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is cut short")
