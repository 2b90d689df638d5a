"""Write a bundle's self-check: the reference's inputs and outputs for a few items per graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Manifest, SelfCheckSpec
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.engine import Engine
from dsd_trt.engine.onnxruntime.cpu import CPU
from dsd_trt.engine.self_check import FILE_NAME, FP16_TOLERANCE, FP32_TOLERANCE, SelfCheck
from dsd_trt.errors import ModelError
from dsd_trt.export.reference import Expected, Reference


class MeasuredCheck(SelfCheck):
    """A self-check that refuses nothing and records the differences from the reference."""

    def require(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, NDArray[Any]]
    ) -> None:
        """Record the relative differences of a graph's outputs."""
        self._measured.extend(it.relative for it in self.differences(name, graph, engine, fed))

    @property
    def largest(self) -> float:
        """Largest relative difference over all graphs opened so far; NaN if any is NaN."""
        return float(np.max(self._measured))

    @cached_property
    def _measured(self) -> list[float]:
        return []


def write_self_check(
    folder: Path, manifest: Manifest, reference: Reference, expected: Expected, *, single: bool
) -> SelfCheckSpec:
    """Write the bundle's self-check file.

    Args:
        folder: folder of the bundle being written.
        manifest: manifest of the bundle, for the signatures of its graphs.
        reference: FP32 reference that computed `expected`.
        expected: outputs of the reference on a probe.
        single: whether to use one text at one noise level instead of two over all levels, because
            opening a bundle costs a pass of the U-Net for each.

    Returns:
        The file's name and the least tolerance of the bundle's precision.
    """
    texts, levels = (1, 1) if single else (2, len(reference.scoring.levels))
    latent = torch.from_numpy(expected.latent[:1])
    states, mask = (
        torch.from_numpy(it[:texts]) for it in (expected.text_states, expected.token_mask)
    )
    level = torch.arange(max(texts, levels)) % levels  # (passes,)
    text = torch.arange(len(level)) % texts  # (passes,)
    pairs = (latent.expand(len(level), -1, -1, -1), level, states[text], mask[text])
    with torch.no_grad(), reference.threads():
        scored = reference.scoring(*pairs)
    known: dict[str, Sequence[Any]] = {
        "image_encoder": (expected.probe.pixels[:1], latent),
        "text_encoder": (expected.input_ids[:texts], states),
        "pair_scorer": (*pairs, *scored),
    }
    if manifest.matrix is not None:
        walks = (latent, level[:1], states, mask)
        with torch.no_grad():
            known["matrix_scorer"] = (*walks, reference.matrix_scorer(*walks))
    tensors = {
        f"{name}.{spec.name}": np.ascontiguousarray(values).astype(spec.dtype)
        for name, graph in manifest.graphs.items()
        for spec, values in zip(
            (*(it for it in graph.inputs if it.batched), *graph.outputs), known[name], strict=True
        )
    }
    _write(folder / FILE_NAME, tensors)
    return SelfCheckSpec(FILE_NAME, least_tolerance(manifest))


def write_widened(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write an FP16 self-check for the same graphs in FP32.

    Args:
        tensors: inputs and outputs of the FP16 graphs, by "GRAPH.TENSOR".
        path: file to write, in safetensors format.
    """
    wide = {
        name: it.astype(np.float32) if it.dtype == np.float16 else it
        for name, it in tensors.items()
    }
    _write(path, wide)


def write_adapted(path: Path, bundle: Bundle, adapted: Mapping[str, NDArray[Any]]) -> None:
    """Write a bundle's self-check for another adapter.

    There is no PyTorch model to ask. The pair scorer's outputs come from ONNX Runtime on the
    processor, which has just reproduced the reference's outputs with the previous adapter.

    Args:
        path: file to write, in safetensors format.
        bundle: bundle with the previous adapter and a self-check.
        adapted: adapter input of the new adapter, as the pair scorer is fed it.

    Raises:
        EngineError: ONNX Runtime is not installed, or fails the self-check.
        ModelError: a score with the new adapter is not finite.
    """
    check = SelfCheck.read(bundle)
    assert check is not None
    name = "pair_scorer"
    graph = bundle.manifest.graphs[name]
    CPU.require()
    engine = CPU.open(with_real_files(bundle), name)
    try:
        check.require(name, graph, engine, adapter_feed(bundle))
        scored = check.computed(name, graph, engine, adapted)
    finally:
        engine.close()
    if not all(np.isfinite(it).all() for it in scored.values()):
        raise ModelError("with this adapter scores are NaN or infinite. Train it again")
    _write(path, {**check.tensors, **{f"{name}.{key}": it for key, it in scored.items()}})


def _write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    # Not with `save_file`, which makes files that only their owner can read.
    path.write_bytes(save(dict(tensors)))


def least_tolerance(manifest: Manifest) -> float:
    """Relative difference that correct engines may have in a bundle's precision."""
    return FP16_TOLERANCE if manifest.precision == "fp16" else FP32_TOLERANCE
