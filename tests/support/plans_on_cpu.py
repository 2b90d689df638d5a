"""Plans that ONNX Runtime computes behind TensorRT's interface, parts of the matrix scorer too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fake_gpu import FakeCuda, FakeTensorRT, Shape
from numpy.typing import NDArray

from dsd_trt import Bundle
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine.cut import CutGraph
from dsd_trt.engine.onnxruntime.cpu import open_session, session_options, tensor_spec
from dsd_trt.engine.tensorrt.plan import PARTS, Part, Plan, Profile, Sidecar, write_plan

VERSION = "10.13.3"
TEXTS = Profile(1, 4, 6)


def write_plans(
    bundle: Bundle,
    batches: Sequence[Profile],
    capability: str = "8.6",
    graphs: Sequence[str] = (),
    **changes: Any,
) -> list[Plan]:
    """Write a plan of each graph, or of some: its name, by which `PlansOnCpu` knows it.

    Args:
        bundle: bundle in a folder of the test's own.
        batches: batch sizes, by profile.
        capability: compute capability of the GPU they are for.
        graphs: names of the graphs; empty means all.
        changes: fields of the sidecars to change.
    """
    written = []
    for name in graphs or bundle.manifest.graphs:
        whole = bundle.manifest.graphs[name].batched
        for part in (None,) if whole else PARTS:
            content = memoryview(f"plan {name} {part or ''}".encode())
            sidecar = Sidecar.of(
                content, bundle.manifest, name, "tensorrt", VERSION, (capability,), tuple(batches)
            )
            if part == "match":
                tokens = Profile(1, 16, bundle.manifest.tokenizer.max_length)
                sidecar = replace(sidecar, texts=TEXTS, tokens=tokens)
            sidecar = replace(sidecar, **{"part": part, **changes})
            written.append(write_plan(bundle.folder, content, sidecar))
    return written


class Half:
    """A part of the matrix scorer in ONNX Runtime."""

    def __init__(self, bundle: Bundle, part: Part) -> None:
        graph = bundle.manifest.graphs["matrix_scorer"]
        path = bundle.path(graph.file)
        of_texts = [it.name for it in graph.inputs if it.shape[0] != graph.inputs[0].shape[0]]
        cut = CutGraph(path.read_bytes(), of_texts)
        self.content = cut.halves([it.name for it in graph.outputs])[PARTS.index(part)]
        self._session = open_session(path, session_options(1), frugal=False, part=self.content)
        inputs = tuple(map(tensor_spec, self._session.get_inputs()))
        outputs = tuple(map(tensor_spec, self._session.get_outputs()))
        self.graph = Graph(graph.file, inputs, outputs)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of the part; arrays that are no inputs of it are left out."""
        names = [it.name for it in self.graph.outputs]
        fed = {it.name: arrays[it.name] for it in self.graph.inputs}
        return dict(zip(names, self._session.run(names, fed), strict=True))

    def shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the outputs, of inputs of some shapes."""
        ones = {it.name: np.ones(given[it.name], it.dtype) for it in self.graph.inputs}
        return {name: it.shape for name, it in self.run(ones).items()}


def shapes_at_the_cut(bundle: Bundle, rows: int) -> dict[str, Shape]:
    """Shapes of the walk's inputs and outputs for a number of rows."""
    walk = Half(bundle, "walk")
    given = {it.name: (rows, *it.of_batch(0)[1:]) for it in walk.graph.inputs}
    return given | walk.shapes(given)


class PlansOnCpu(FakeTensorRT):
    """TensorRT with the plans of `write_plans`.

    Args:
        cuda: fake CUDA runtime that owns memory and streams.
        bundle: bundle with the plans.
        batches: batch sizes of the plans, by profile.
    """

    def __init__(self, cuda: FakeCuda, bundle: Bundle, batches: Sequence[Profile]) -> None:
        super().__init__(cuda, bundle.manifest.graphs["pair_scorer"], dict, ())
        self._bundle, self._batches = bundle, batches
        self.opened: dict[str, FakeTensorRT] = {}  # by graph or part

    def _deserialise(self, plan: bytes) -> Any:
        _, name, part = plan.decode().split(" ")
        made = self._part(part) if part else self._whole(name)  # type: ignore[arg-type]
        self.opened[part or name] = made
        return made._deserialise(plan)

    def _whole(self, name: str) -> FakeTensorRT:
        graph = self._bundle.manifest.graphs[name]
        session = open_session(self._bundle.path(graph.file), session_options(1), frugal=False)
        names = [spec.name for spec in graph.outputs]

        def compute(arrays: Any) -> dict[str, Any]:
            inputs = {spec.name: arrays[spec.name] for spec in graph.inputs}
            return dict(zip(names, session.run(names, inputs), strict=True))

        limits = [(it.min, it.max) for it in self._batches]
        return FakeTensorRT(self.cuda, graph, compute, limits)

    def _part(self, part: Part) -> FakeTensorRT:
        half = Half(self._bundle, part)
        specs = self._bundle.manifest.graphs["matrix_scorer"].inputs
        length = self._bundle.manifest.tokenizer.max_length
        profiles = []
        for rows in self._batches:
            least, most = (
                shapes_at_the_cut(self._bundle, sizes["I"])
                | {it.name: it.of_sizes(sizes) for it in specs}
                for sizes in (
                    {"I": rows.min, "T": TEXTS.min, "L": 1},
                    {"I": rows.max, "T": TEXTS.max, "L": length},
                )
            )
            profiles.append({it.name: (least[it.name], most[it.name]) for it in half.graph.inputs})
        return FakeTensorRT(self.cuda, half.graph, half.run, profiles, shapes=half.shapes)
