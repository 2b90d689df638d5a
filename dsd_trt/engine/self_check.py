"""The self-check: each graph computes a few items whose results are known, when it is opened.

Hashes say that files are what `bundle.json` names. Whether this engine, plan, driver and processor
compute from them what the PyTorch model computed when the bundle was exported, they cannot say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Engine, EngineDescription
from dsd_trt.errors import BundleError, EngineError
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import SchemaError
from dsd_trt.files.tensor_file import read_tensors

Array = NDArray[Any]

FILE_NAME = "self_check.safetensors"
FP32_TOLERANCE = 2e-4  # relative to an output's largest number; engines differ by 1e-6 to 1e-5
FP16_TOLERANCE = 1e-2  # or TF32's, which has as many digits; the embedded scorer's is 9e-4
_BF16_TOLERANCE = 5e-2  # the embedded scorer's is 1.2e-2
_CPU = "CPU"
_LEAST = 1e-2  # of an output's largest number: of smaller ones FP32 keeps fewer digits
ADVICE = (
    "The bundle's weights, a plan, a driver or the processor is not what it was. Copy the bundle "
    "again, build its plans again (dsd-trt build), or try another engine; --no-self-check scores "
    "all the same"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """The number of an output that is farthest from what is expected.

    Attributes:
        place: the tensor and where in it, such as "score[3]".
        got: what was computed.
        expected: what the reference computed.
        relative: their difference over the largest number expected of the output; NaN where `got`
            is.
    """

    place: str
    got: float
    expected: float
    relative: float


@dataclass(frozen=True)
class SelfCheck:
    """Inputs and outputs of a bundle's graphs.

    Attributes:
        tensors: by GRAPH.TENSOR, of the types and shapes that the contract has; a few items of a
            small model, one of a large one.
        tolerance: see `SelfCheckSpec`.
    """

    tensors: Mapping[str, Array]
    tolerance: float

    @classmethod
    def read(cls, bundle: Bundle) -> Self | None:
        """A bundle's; None where it has none, which is logged.

        Raises:
            BundleError: the file does not fit the bundle's graphs.
        """
        if (spec := bundle.manifest.self_check) is None:
            logger.info("bundle %s has no self-check; export it again for one", bundle.folder)
            return None
        try:
            with open_regular(bundle.path(spec.file)) as file:
                tensors = read_tensors(file)
            for name, graph in bundle.manifest.graphs.items():
                _require_fit(name, graph, tensors)
        except (OSError, ValueError) as error:
            raise BundleError(f"bundle {bundle.folder}: file {spec.file!r}: {error}") from None
        return cls(tensors, spec.tolerance)

    def require(self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, Array]) -> None:
        """Refuse an engine that computes anything else than the reference did.

        Args:
            name: of the graph.
            graph: its signature.
            engine: that has compiled it.
            fed: what the pair scorer is fed beside the pairs.

        Raises:
            EngineError: it does, or it fails; with both numbers.
        """
        allowed = tolerance_of(engine.description, self.tolerance)
        for it in self.differences(name, graph, engine, fed):
            if not it.relative <= allowed:
                raise EngineError(
                    f"{engine.description}: self-check of the {name.replace('_', ' ')}: {it.place} "
                    f"is {it.got:.6g} instead of {it.expected:.6g} (allowed is a difference of "
                    f"{allowed:g} of the largest). {ADVICE}"
                )

    def differences(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, Array]
    ) -> Iterator[Difference]:
        """The largest of each output that the engine gives; arguments as for `require`."""
        for key, got in self.computed(name, graph, engine, fed).items():
            if got.shape != (expected := self.tensors[f"{name}.{key}"]).shape:
                raise EngineError(f"self-check: {key} is {got.shape}, expected {expected.shape}")
            yield _largest(key, got, expected)

    def computed(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a graph; arguments as for `require`.

        On a GPU and through a server an item at a time, since plans may take no more.
        """
        items = {it.name: self.tensors[f"{name}.{it.name}"] for it in _own_inputs(graph)}
        same = fed if name == "pair_scorer" else {}
        if not graph.batched or engine.description.device.startswith(_CPU):
            return engine.run({**items, **same})
        runs = [
            engine.run({**{key: it[i : i + 1] for key, it in items.items()}, **same})
            for i in range(len(next(iter(items.values()))))
        ]
        return {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}


def tolerance_of(used: EngineDescription, tolerance: float) -> float:
    """What may differ on an engine, relative to the largest number of an output.

    Args:
        used: the engine.
        tolerance: of the bundle's own precision.
    """
    if "bf16" in used.precision:
        return max(tolerance, _BF16_TOLERANCE)
    if not used.device.startswith(_CPU):  # GPUs multiply FP32 in TF32
        return max(tolerance, FP16_TOLERANCE)
    return tolerance


def _own_inputs(graph: Graph) -> list[TensorSpec]:
    """Inputs that are an item's, and not an adapter."""
    return [it for it in graph.inputs if it.batched]


def _largest(name: str, got: Array, expected: Array) -> Difference:
    values, wanted = got.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(values - wanted)
    place = np.unravel_index(np.argmax(difference), difference.shape)  # of a NaN, if there is one
    return Difference(
        f"{name}{[int(i) for i in place]}",
        float(values[place]),
        float(wanted[place]),
        float(difference[place]) / max(float(np.abs(wanted).max()), _LEAST),
    )


def _require_fit(name: str, graph: Graph, tensors: Mapping[str, Array]) -> None:
    """Compare what is stored of a graph with its signature.

    Raises:
        SchemaError: names the tensor.
    """
    sizes: dict[str, int] = {}
    for spec in (*_own_inputs(graph), *graph.outputs):
        key = f"{name}.{spec.name}"
        if key not in tensors:
            raise SchemaError(f"tensor {key!r} is missing")
        found = tensors[key]
        fits = found.dtype == spec.dtype and len(found.shape) == len(spec.shape)
        for size, wanted in zip(found.shape, spec.shape, strict=False):
            known = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            fits = fits and size == known and size > 0
        if not fits:
            raise SchemaError(f"tensor {key!r} is {found.dtype} {found.shape}, and not {spec}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise SchemaError(f"tensor {key!r} is not finite")
