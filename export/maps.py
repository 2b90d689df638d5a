"""The maps graph: the pair scorer's nodes up to the maps that are pooled, and none of its own.

It is cut from the traced pair scorer, so its maps are those of the very score: prompts are folded
in, later layers see the text, and the forward pass ends with the last scored layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from dsd_trt.attention import pooled_tokens
from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle, file_entry, with_maps, write_manifest
from dsd_trt.bundle.manifest import FileEntry, Manifest
from dsd_trt.bundle.maps import FILE_NAME, NAME, Maps, maps_graph, output_name, places_of
from dsd_trt.bundle.method import Method
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.engine.onnxruntime.cpu import CPU
from dsd_trt.engine.self_check import SelfCheck
from dsd_trt.errors import ModelError
from dsd_trt.export.graph_index import GraphIndex, attribute
from dsd_trt.export.onnx_file import drop_unread, load_graph, save_graph, stamp_graph
from dsd_trt.files.unfinished import unfinished_name

TOLERANCE = 1e-5
"""Accepted difference between the pair scorer's token scores and pooled maps, in FP32."""


def cut_maps(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Maps]:
    """Cut the maps graph from the pair scorer's.

    Args:
        model: pair scorer as `trace` returns it, or as a bundle has it; unchanged.
        manifest: manifest of the bundle.

    Returns:
        The maps graph, and its description.

    Raises:
        ModelError: the pair scorer does not compute the maps of its scored layers.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    method, graph = manifest.method, made.graph
    found = _pooled_maps(graph, manifest.tokenizer.max_length)
    heads = [len(weights) for weights in method.head_weights.values]
    if [count for _, count, _ in found] != heads:
        raise ModelError(
            f"heads of the pair scorer's maps: {[it[1] for it in found]}; of its layers: {heads}. "
            "A maps graph cannot be cut from it: export without --maps"
        )
    _rename(graph, [name for name, *_ in found], method)
    try:
        places = places_of([tokens for *_, tokens in found], manifest.latent_shape)
    except ValueError as error:
        raise ModelError(f"{error}: export without --maps") from None
    maps = Maps(FILE_NAME, tuple(places))
    signature = maps_graph(maps, method, manifest.graphs["pair_scorer"])
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, list(spec.shape))
        for spec in signature.outputs
    )
    drop_unread(graph)
    for node in graph.node:
        node.ClearField("name")  # nothing reads them, and they are a part of the file's size
    stamp_graph(made, NAME, signature)
    return made, maps


def add_maps(bundle: Bundle) -> Bundle:
    """Add the maps graph to a bundle, which keeps all its other files and their bytes.

    Args:
        bundle: a verified bundle without one.

    Raises:
        ModelError: it cannot be cut from the pair scorer, or gives other scores, or the bundle has
            no self-check to compare them with; the folder is unchanged.
    """
    path = bundle.path(bundle.manifest.graphs["pair_scorer"].file)
    model, maps = cut_maps(load_graph(path), bundle.manifest)
    unchecked = bundle.path(unfinished_name(maps.file))
    try:
        save_graph(model, unchecked)
        entry = file_entry(unchecked)
        require_same_score(_with(bundle, replace(maps, file=unchecked.name), entry))
        unchecked.replace(bundle.path(maps.file))
    finally:
        unchecked.unlink(missing_ok=True)
    return write_manifest(bundle.folder, _with(bundle, maps, entry).manifest)


def _with(bundle: Bundle, maps: Maps, entry: FileEntry) -> Bundle:
    """The bundle, described as one with this maps graph."""
    files = dict(sorted({**bundle.manifest.files, maps.file: entry}.items()))
    return replace(bundle, manifest=replace(bundle.manifest, maps=maps, files=files))


def require_same_score(bundle: Bundle) -> None:
    """Refuse a maps graph whose pooled maps are not the pair scorer's token scores.

    Both run on ONNX Runtime on the processor, on the items of the bundle's self-check.

    Args:
        bundle: bundle with a maps graph and a self-check.

    Raises:
        ModelError: they differ by more than rounding, or the bundle has no self-check.
    """
    if (check := SelfCheck.read(bundle)) is None:
        raise ModelError(
            f"bundle {bundle.folder} has no self-check to compare the maps with: export it again, "
            "which writes one: dsd-trt export --maps"
        )
    CPU.require()
    files, method = with_maps(with_real_files(bundle)), bundle.manifest.method
    inputs = bundle.manifest.graphs["pair_scorer"].inputs
    feeds = {it.name: check.tensors[f"pair_scorer.{it.name}"][:1] for it in inputs if it.batched}
    feeds |= adapter_feed(bundle)
    found = []
    for name in ("pair_scorer", NAME):
        engine = CPU.open(files, name)
        try:
            found.append(engine.run(feeds))
        finally:
            engine.close()
    scored, maps = found
    pooled = pooled_tokens(list(maps.values()), method, feeds["token_mask"])
    difference = float(np.abs(pooled - scored["token_scores"]).max())
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the pooled maps differ from the token scores by {difference:.2g}, where "
            f"{TOLERANCE:g} is allowed: the maps graph would explain another score"
        )


def _pooled_maps(graph: onnx.GraphProto, tokens: int) -> list[tuple[str, int, int]]:
    """Name, heads and image tokens of each map over text tokens that more than a product reads.

    The maps of a layer that is not scored are read by the product with its values alone.
    """
    index, found = GraphIndex(graph), []
    for node in graph.node:
        if node.op_type != "Softmax" or attribute(node, "axis", -1) not in (-1, 3):
            continue
        shape = index.shape(node.output[0])
        if len(shape) != 4 or shape[3] != tokens:
            continue
        if any(it.op_type not in ("MatMul", "Cast") for it in index.readers(node.output[0])):
            _, heads, places, _ = shape
            found.append((node.output[0], int(heads), int(places)))
    return found


def _rename(graph: onnx.GraphProto, names: Sequence[str], method: Method) -> None:
    new = dict(zip(names, map(output_name, method.score_layers), strict=True))
    for node in graph.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = new.get(name, name)
    for value in graph.value_info:
        value.name = new.get(value.name, value.name)


def write_maps(model: onnx.ModelProto, manifest: Manifest, folder: Path) -> Maps:
    """Cut the maps graph from a traced pair scorer, and write it into the bundle's folder."""
    made, maps = cut_maps(model, manifest)
    save_graph(made, folder / maps.file)
    return maps
