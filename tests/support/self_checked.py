"""The stand-in model's self-check, computed in numpy from its closed form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
from bundles import LENGTH, LEVEL_BIAS, PAD, PROJECTION, RESOLUTION
from numpy.typing import NDArray
from onnx import numpy_helper

from dsd_trt.bundle.folder import Bundle, file_entry, write_manifest
from dsd_trt.bundle.manifest import MANIFEST_NAME, SelfCheckSpec
from dsd_trt.engine.self_check import FILE_NAME
from dsd_trt.files.schema import to_plain

TOLERANCE = {"fp32": 2e-4, "fp16": 1e-2}


def known_tensors(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Inputs and outputs of every graph for two images, two texts and three of their pairs."""
    manifest, rng = bundle.manifest, np.random.default_rng(5)
    half = RESOLUTION // 2
    pixels = rng.integers(0, 256, (2, RESOLUTION, RESOLUTION, 3), np.uint8)
    quarters = pixels.reshape(2, 2, half, 2, half, 3).mean(axis=(2, 4)) / 255  # (2, 2, 2, C)
    latent = quarters.transpose(0, 3, 1, 2)
    ids = np.full((2, LENGTH), PAD, np.int32)
    bos, eos = bundles.BOS, bundles.EOS  # read here, because tests replace them
    ids[0, :4], ids[1, :3] = (bos, 5, 8, eos), (bos, 10, eos)
    mask = np.zeros((2, LENGTH), np.float32)
    mask[0, 1:4], mask[1, 1:3] = 1, 1
    states = bundles.TABLE[ids].astype(np.float64)
    image, text, level = np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([2, 0, 1], np.int32)

    def logits(i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.float64]:
        direction = latent[i].mean(axis=(2, 3)) @ PROJECTION  # (items, D)
        products: NDArray[np.float64] = (states[j] * direction[:, None]).sum(axis=2)
        return products

    token_scores = 1 / (1 + np.exp(-logits(image, text) - LEVEL_BIAS[level][:, None]))
    counted = mask[text]
    known: dict[str, Any] = {
        "image_encoder.pixels": pixels,
        "image_encoder.latent": latent,
        "text_encoder.input_ids": ids,
        "text_encoder.text_states": states,
        "pair_scorer.latent": latent[image],
        "pair_scorer.level": level,
        "pair_scorer.text_states": states[text],
        "pair_scorer.token_mask": counted,
        "pair_scorer.score": (token_scores * counted).sum(axis=1) / counted.sum(axis=1),
        "pair_scorer.token_scores": token_scores,
        "pair_scorer.denoising_error": 2 - token_scores.mean(axis=1),
    }
    if manifest.matrix is not None:
        i, j = np.indices((2, 2)).reshape(2, 4)
        of_level = LEVEL_BIAS[level[:2]]
        cells = np.tanh(logits(i, j) + of_level[i][:, None])  # (4, 77)
        score = (cells * mask[j]).sum(axis=1) / mask[j].sum(axis=1)
        known |= {
            "matrix_scorer.latent": latent,
            "matrix_scorer.level": level[:2],
            "matrix_scorer.text_states": states,
            "matrix_scorer.token_mask": mask,
            "matrix_scorer.score": score.reshape(2, 2),
        }
    return {
        f"{name}.{spec.name}": np.ascontiguousarray(known[f"{name}.{spec.name}"], spec.dtype)
        for name, graph in manifest.graphs.items()
        for spec in (*graph.inputs, *graph.outputs)
    }


def add_self_check(bundle: Bundle, changes: Mapping[str, NDArray[Any] | None] = {}) -> Bundle:
    """Add a self-check to a bundle of the stand-in model.

    Args:
        bundle: bundle without a self-check.
        changes: tensors by "GRAPH.TENSOR" that replace the correct ones; None removes a tensor.
    """
    tensors = {**known_tensors(bundle), **changes}
    kept = {name: it for name, it in tensors.items() if it is not None}
    bundle.path(FILE_NAME).write_bytes(tensor_file(kept))
    manifest = bundle.manifest
    spec = SelfCheckSpec(FILE_NAME, TOLERANCE[manifest.precision])
    files = {**manifest.files, FILE_NAME: file_entry(bundle.path(FILE_NAME))}
    return write_manifest(bundle.folder, replace(manifest, self_check=spec, files=files))


def tensor_file(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Content of a safetensors file, without the library, which Triton's environment lacks."""
    header, data = dict[str, Any](), b""
    for name, it in tensors.items():
        offsets = [len(data), len(data) + it.nbytes]
        kind = f"{it.dtype.kind.upper()}{8 * it.itemsize}"  # such as "F32"
        header[name] = {"dtype": kind, "shape": list(it.shape), "data_offsets": offsets}
        data += it.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def fit_hash(folder: Path, name: str) -> None:
    """Update a file's hash and size in `bundle.json`."""
    path = folder / MANIFEST_NAME
    plain = json.loads(path.read_text("utf-8"))
    plain["files"][name] = to_plain(file_entry(folder / name))
    path.write_text(json.dumps(plain), "utf-8")


def change_weight(folder: Path, graph: str, weight: str | None = None) -> None:
    """Change a constant of a graph, and update the graph's hash."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    if weight is None:  # the image encoder has a scale in place of weights
        (white,) = (node for node in model.graph.node if node.output[0] == "white")
        white.attribute[0].f = 250.0
    else:
        (tensor,) = (it for it in model.graph.initializer if it.name == weight)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[-1 if graph == "matrix_scorer" else 2] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, path)
    fit_hash(folder, path.name)
