"""Writing a bundle's self-check: what the reference computes of a few items, graph by graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dsd_trt.contract import Graph
from dsd_trt.engine import Engine
from dsd_trt.export.reference import Expected, Reference
from dsd_trt.manifest import Manifest, SelfCheckSpec
from dsd_trt.self_check import FILE_NAME, FP16_TOLERANCE, FP32_TOLERANCE, SelfCheck

_MARGIN = 4  # times what was measured: engines round differently
_LARGEST_TOLERANCE = 0.5


class MeasuredCheck(SelfCheck):
    """A self-check that refuses nothing: it measures how far graphs are from the reference."""

    def require(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, NDArray[Any]]
    ) -> None:
        """Take note of the differences."""
        self._measured.extend(it.relative for it in self.differences(name, graph, engine, fed))

    @property
    def largest(self) -> float:
        """Of all outputs of the graphs that were opened; NaN if one is."""
        return float(np.max(self._measured))

    @cached_property
    def _measured(self) -> list[float]:
        return []


def write_self_check(
    folder: Path, manifest: Manifest, reference: Reference, expected: Expected, *, single: bool
) -> SelfCheckSpec:
    """Write the file.

    Args:
        folder: of the bundle.
        manifest: its graphs' signatures.
        reference: that computed `expected`.
        expected: images and texts, encoded.
        single: one image and one text, instead of two of each and their pairs.
    """
    count = 1 if single else 2
    latent, states, mask = (
        torch.from_numpy(it[:count])
        for it in (expected.latent, expected.text_states, expected.token_mask)
    )
    image, text = (torch.from_numpy(it.ravel()) for it in np.indices((count, count)))
    level = torch.arange(count * count) % len(reference.scoring.levels)
    pairs = (latent[image], level, states[text], mask[text])
    with torch.no_grad():
        scored = reference.scoring(*pairs)
    known: dict[str, Sequence[Any]] = {
        "image_encoder": (expected.probe.pixels[:count], latent),
        "text_encoder": (expected.input_ids[:count], states),
        "pair_scorer": (*pairs, *scored),
    }
    if manifest.matrix is not None:
        walks = (latent, level[:count], states, mask)
        with torch.no_grad():
            known["matrix_scorer"] = (*walks, reference.matrix_scorer(*walks))
    tensors = {
        f"{name}.{spec.name}": np.ascontiguousarray(values).astype(spec.dtype)
        for name, graph in manifest.graphs.items()
        for spec, values in zip(
            (*(it for it in graph.inputs if it.batched), *graph.outputs), known[name], strict=True
        )
    }
    save_file(tensors, folder / FILE_NAME)
    return SelfCheckSpec(FILE_NAME, _least(manifest))


def write_widened(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write a self-check of FP16 graphs for the same graphs in FP32."""
    save_file(
        {
            name: it.astype(np.float32) if it.dtype == np.float16 else it
            for name, it in tensors.items()
        },
        path,
    )


def measured_tolerance(manifest: Manifest, measured: Iterable[float | None]) -> float:
    """What a bundle's graphs may differ by in its precision.

    Args:
        manifest: of the bundle.
        measured: what they did differ by, see `MeasuredCheck`.
    """
    wanted = max(_least(manifest), *(_MARGIN * it for it in measured if it is not None))
    return float(f"{min(wanted, _LARGEST_TOLERANCE):.2g}")


def _least(manifest: Manifest) -> float:
    return FP16_TOLERANCE if manifest.precision == "fp16" else FP32_TOLERANCE
