"""A graph as a file: metadata inside, weights in the bundle's weight file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import helper

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.files.schema import to_plain

METADATA_PREFIX = "dsd_trt."


def stamp(model: onnx.ModelProto, name: str, manifest: Manifest) -> None:
    """Write what `bundle.json` says about a graph into the graph, so that it explains itself.

    Args:
        model: one of the bundle's graphs.
        name: which.
        manifest: of the bundle; its files and parity figures come after the graphs and stay out.
    """
    plain = to_plain(manifest)
    for later in ("files", "parity"):
        del plain[later]
    if manifest.adapter is not None:  # what changes with the adapter would change the graph's hash
        del plain["calibration"], plain["provenance"]["adapter_hash"]
        del plain["method"]["head_weights"], plain["method"]["denoising_weight"]
    plain["graph"] = {"name": name, **plain.pop("graphs")[name]}
    helper.set_model_props(
        model, {METADATA_PREFIX + key: json.dumps(value) for key, value in plain.items()}
    )


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a graph, its weights left where they are."""
    return onnx.load(path, load_external_data=False)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph whose weights are in their own file already."""
    path.write_bytes(model.SerializeToString())
