"""The files that hold an ONNX graph's tensors, found in its protobuf without `onnx`."""

from __future__ import annotations

from bisect import bisect_left

from dsd_trt.files.protobuf import BYTES, read_tag, read_varint, skip

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
                tag, at = read_tag(model, at - 1, end)
            wire = tag & 7
            if wire == BYTES:
                size, at = read_varint(model, at, end)
                if size > end - at:
                    raise ValueError("it is cut short")
                if child := children.get(tag >> 3):
                    seen_graph = seen_graph or child == "graph"
                    if words[bisect_left(words, at)] < at + size:
                        waiting.append((child, at, at + size))
                at += size
            else:
                at = skip(model, wire, at, end)
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
        tag, start = read_tag(model, at, end)
        at = skip(model, tag & 7, start, end)
        if tag & 7 == BYTES:
            last[tag >> 3] = model[read_varint(model, start, end)[1] : at]
    if last[_KEY] != _LOCATION:
        return set()
    return {last[_VALUE].decode(errors="surrogateescape")}
