"""ONNX files of a bundle: metadata inside, weights in the bundle's weight file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import helper

from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.files.schema import to_plain

METADATA_PREFIX = "dsd_trt."


def stamp(model: onnx.ModelProto, name: str, manifest: Manifest) -> None:
    """Write the manifest into a graph's metadata, so that the ONNX file describes itself.

    Args:
        model: one of the bundle's graphs, changed in place.
        name: name of the graph in the manifest, such as "pair_scorer".
        manifest: manifest of the bundle; file hashes, parity figures and calibrations, which do
            not exist yet, are left out.
    """
    plain = to_plain(manifest)
    for later in ("files", "parity", "calibration"):  # a calibration may be fitted at any time
        del plain[later]
    if manifest.matrix is not None:
        del plain["matrix"]["calibration"]
    if manifest.adapter is not None:  # replacing the adapter must not change the graph's hash
        del plain["provenance"]["adapter_hash"]
        del plain["method"]["head_weights"], plain["method"]["denoising_weight"]
    plain["graph"] = {"name": name, **plain.pop("graphs")[name]}
    helper.set_model_props(
        model, {METADATA_PREFIX + key: json.dumps(value) for key, value in plain.items()}
    )


def stamp_graph(model: onnx.ModelProto, name: str, graph: Graph) -> None:
    """Write another graph's signature into the metadata of a stamped graph, changed in place."""
    key = METADATA_PREFIX + "graph"
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = json.dumps({"name": name, **to_plain(graph)})


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes, constants and types of values that nothing reads any more."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output):
            read.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for values in (graph.initializer, graph.value_info):
        still = [it for it in values if it.name in read]
        del values[:]
        values.extend(still)


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without its weights."""
    return onnx.load(path, load_external_data=False)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph whose weights are in the weight file already."""
    path.write_bytes(model.SerializeToString())
