"""The self-check: when a graph is opened, it must reproduce known results for a few items.

Hashes prove that files are those `bundle.json` names. They do not prove that this engine, plan,
driver and processor compute the results that the PyTorch model gave at export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dsd_trt.attention import pooled_tokens
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.maps import NAME as MAPS
from dsd_trt.bundle.method import Method
from dsd_trt.engine import Engine, EngineDescription
from dsd_trt.errors import BundleError, EngineError
from dsd_trt.files.regular import open_regular
from dsd_trt.files.schema import SchemaError
from dsd_trt.files.tensor_file import read_tensors
from dsd_trt.log import get_logger

Array = NDArray[Any]

FILE_NAME = "self_check.safetensors"
FP32_TOLERANCE = 2e-4  # relative to an output's largest number; engines differ by 1e-6 to 1e-5
FP16_TOLERANCE = 1e-2  # also TF32, which has as many digits; the demonstration differs by 9e-4
_FP32_ON_GPU = 1e-3  # without TF32; cuDNN's transforms of convolutions lose a digit of FP32's
_BF16_TOLERANCE = 5e-2  # the demonstration differs by 1.2e-2
_CPU = "CPU"
_LEAST = 1e-2  # relative to an output's largest number; FP32 keeps fewer digits of smaller ones
ADVICE = (
    "The bundle's weights, a plan, a driver or the processor is not what it was. Copy the bundle "
    "again, build its plans again (dsd-trt build), or try another engine. To score all the same: "
    "dsd-trt score --no-self-check, and to serve it: dsd-trt triton --no-self-check"
)

logger = get_logger(__name__)


@dataclass(frozen=True)
class Difference:
    """The number of an output with the largest deviation from its expected value.

    Attributes:
        place: tensor and index of the number, such as "score[3]".
        got: value that was computed.
        expected: value that the reference computed.
        relative: absolute difference divided by the largest expected number of the output; NaN if
            `got` is NaN.
    """

    place: str
    got: float
    expected: float
    relative: float


@dataclass(frozen=True)
class SelfCheck:
    """Reference inputs and outputs of a bundle's graphs.

    Attributes:
        tensors: arrays by GRAPH.TENSOR, with the types and shapes of the contract: a few items for
            a small model, one for a large one.
        tolerance: relative tolerance of the bundle's precision, see `SelfCheckSpec`.
    """

    tensors: Mapping[str, Array]
    tolerance: float

    @classmethod
    def read(cls, bundle: Bundle) -> Self | None:
        """Read a bundle's self-check; None if it has none, which is logged.

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
        """Refuse an engine whose results differ from the reference's.

        Args:
            name: name of the graph, such as "pair_scorer".
            graph: declared inputs and outputs of the graph.
            engine: engine that has compiled the graph.
            fed: inputs of the pair scorer besides the pairs, such as an adapter.

        Raises:
            EngineError: a result differs, or the engine fails; the message has both numbers.
        """
        for it in self.differences(name, graph, engine, fed):
            self._require(engine, name, it)

    def _require(self, engine: Engine, name: str, it: Difference) -> None:
        allowed = tolerance_of(engine.description, self.tolerance)
        if not it.relative <= allowed:
            raise EngineError(
                f"{engine.description}: self-check of the {name.replace('_', ' ')}: {it.place} "
                f"is {it.got:.6g} instead of {it.expected:.6g} (allowed is a difference of "
                f"{allowed:g} of the largest). {ADVICE}"
            )

    def require_maps(
        self, method: Method, graph: Graph, engine: Engine, fed: Mapping[str, Array]
    ) -> None:
        """Refuse an engine whose maps do not pool to the reference's token scores.

        Args:
            method: method of the bundle.
            graph: declared inputs and outputs of the maps graph.
            engine: engine that has compiled the graph.
            fed: inputs of the pair scorer besides the pairs, such as an adapter.

        Raises:
            EngineError: a score differs, or the engine fails; the message has both numbers.
        """
        maps = self.computed("pair_scorer", graph, engine, fed)
        mask, expected = (
            self.tensors[f"pair_scorer.{it}"] for it in ("token_mask", "token_scores")
        )
        in_order = [maps[spec.name] for spec in graph.outputs]
        self._require(
            engine, MAPS, _largest("score", pooled_tokens(in_order, method, mask), expected)
        )

    def differences(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, Array]
    ) -> Iterator[Difference]:
        """The largest deviation of each output of the engine; arguments as for `require`."""
        for key, got in self.computed(name, graph, engine, fed).items():
            if got.shape != (expected := self.tensors[f"{name}.{key}"]).shape:
                raise EngineError(f"self-check: {key} is {got.shape}, expected {expected.shape}")
            yield _largest(key, got, expected)

    def computed(
        self, name: str, graph: Graph, engine: Engine, fed: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Outputs of a graph; arguments as for `require`.

        On a GPU and through a server, items run one at a time, because plans may accept no more.
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
    """Accepted deviation on an engine, relative to the largest number of an output.

    Args:
        used: description of the engine, with its precision.
        tolerance: relative tolerance of the bundle's own precision.
    """
    if "bf16" in used.precision:
        return max(tolerance, _BF16_TOLERANCE)
    if used.device.startswith(_CPU):
        return tolerance
    if used.engine.startswith("onnxruntime"):  # there TF32 is off
        return max(tolerance, _FP32_ON_GPU)
    return max(tolerance, FP16_TOLERANCE)  # plans, and servers of them, may multiply in TF32


def _own_inputs(graph: Graph) -> list[TensorSpec]:
    """Inputs that belong to an item, unlike an adapter."""
    return [it for it in graph.inputs if it.batched]


def _largest(name: str, got: Array, expected: Array) -> Difference:
    values, wanted = got.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(values - wanted)
    place = np.unravel_index(np.argmax(difference), difference.shape)  # of a NaN, if any
    return Difference(
        f"{name}{[int(i) for i in place]}",
        float(values[place]),
        float(wanted[place]),
        float(difference[place]) / max(float(np.abs(wanted).max()), _LEAST),
    )


def _require_fit(name: str, graph: Graph, tensors: Mapping[str, Array]) -> None:
    """Compare the stored tensors of a graph with its declaration.

    Raises:
        SchemaError: a tensor does not fit; the message names it.
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
