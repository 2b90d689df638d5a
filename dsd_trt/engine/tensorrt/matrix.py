"""The matrix scorer as two plans: one walk per row, matched with some texts at a time.

The plans are compiled from the parts of `CutGraph.halves`. What the walk gives stays on the GPU,
where every match of its rows reads it. As `runner.py`, it has not run on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription, check_signature
from dsd_trt.engine.cuda import Buffer, DeviceMemory, RecordedGraph, Stream, on_device, settled
from dsd_trt.engine.matrix import Array, MatrixEngine
from dsd_trt.engine.tensorrt.loaded import LoadedPlan, median_time
from dsd_trt.engine.tensorrt.plan import Profile, choose_profile


@dataclass(frozen=True)
class Limits:
    """Sizes that both plans support.

    Attributes:
        rows: numbers of rows, each an image at one noise level, by profile.
        texts: numbers of texts in a match.
        tokens: numbers of text tokens that may count.
    """

    rows: tuple[Profile, ...]
    texts: Profile
    tokens: Profile

    @property
    def most_rows(self) -> int:
        """Largest number of rows."""
        return max(it.max for it in self.rows)


class TensorRTMatrixEngine(MatrixEngine):
    """The matrix scorer on the GPU; see `MatrixEngine`.

    The number of texts is filled up to a power of two, so that few shapes are recorded.

    Args:
        trt: the TensorRT or TensorRT-RTX module.
        walk: bytes of the walk's plan.
        match: bytes of the match's plan.
        graph: declared inputs and outputs, see `MatrixEngine`.
        limits: sizes that both plans support.
        description: library, device and precision of the plans.
        device: number of the GPU, from 0.

    Raises:
        EngineError: the library refuses a plan, or the plans do not fit together or the graph.
    """

    def __init__(
        self,
        trt: Any,
        walk: bytes,
        match: bytes,
        graph: Graph,
        limits: Limits,
        description: EngineDescription,
        device: int = 0,
    ) -> None:
        super().__init__(graph, (limits.most_rows,), limits.texts.max)
        self.limits: Limits = limits
        self.description: EngineDescription = description
        self._device = device
        with on_device(device):
            self._prepare(trt, walk, match)

    def _prepare(self, trt: Any, walk: bytes, match: bytes) -> None:
        graph, limits = self._graph, self.limits
        self._walk_plan = LoadedPlan(trt, walk, graph.file, self.description)
        self._match_plan = LoadedPlan(trt, match, graph.file, self.description)
        self._check(Path(graph.file))
        most = (limits.most_rows, limits.texts.max, limits.tokens.max)
        names = (graph.inputs[0].shape[0], *graph.inputs[-1].shape)  # rows, texts, tokens
        sizes = dict(zip(map(str, names), most, strict=True))
        self._stream = Stream()
        self._buffers = {
            it.name: Buffer(it.of_sizes(sizes), it.dtype) for it in (*graph.inputs, *graph.outputs)
        }
        # Shapes at the cut, by profile and rows.
        self._given: dict[tuple[int, int], dict[str, list[int]]] = {}
        profile, _ = choose_profile(limits.rows, limits.most_rows)
        largest = self._shapes_given(profile, limits.most_rows)
        self._memory = {
            it.name: DeviceMemory(math.prod(largest[it.name]) * np.dtype(it.dtype).itemsize)
            for it in self._walk_plan.outputs
        }
        self._addresses = {name: it.device for name, it in self._buffers.items()}
        self._addresses |= {name: it.address for name, it in self._memory.items()}
        self._walked = (0, 0, 0)  # profile, and rows as counted and as fed
        self._launched: list[RecordedGraph] = []  # passes of the last run

    def _check(self, path: Path) -> None:
        """Compare the plans with the declared graph, and with each other."""
        graph, crossing = self._graph, self._walk_plan.outputs
        of_rows = tuple(it for it in graph.inputs if it.name in self._of_rows)
        of_texts = tuple(it for it in graph.inputs if it.name in self._of_texts)
        walk = Graph(graph.file, of_rows, tuple(crossing))
        check_signature(path, walk, self._walk_plan.inputs, crossing)
        # Of the inputs of rows, the match reads their number alone, and leaves some out.
        read = {it.name for it in self._match_plan.inputs}
        inputs = (*(it for it in of_rows if it.name in read), *of_texts, *crossing)
        match = Graph(graph.file, inputs, graph.outputs)
        check_signature(path, match, self._match_plan.inputs, self._match_plan.outputs)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._launched = []
        with settled(self._device, self._stream):
            return super()._run(feeds)

    def time(self, feeds: Mapping[str, Array], repeats: int) -> float:
        """Median GPU time of a batch in seconds, all of its walks and matches, without copies.

        Args:
            feeds: inputs of one batch.
            repeats: number of timed repetitions.
        """
        self.run(feeds)
        with on_device(self._device):
            return median_time(self._launched, self._stream, repeats)

    def _walk(self, feeds: Mapping[str, Array], width: int) -> None:
        count = len(feeds[self._of_rows[0]])
        profile, sizes = choose_profile(self.limits.rows, count)
        fed = max(count, sizes.min)
        self._walked = (profile, count, fed)
        for name, values in feeds.items():
            self._buffers[name].fill(values, self._stream, fed)
        self._launch(self._walk_plan, (fed,), profile, self._row_shapes(fed))

    def _match(self, feeds: Mapping[str, Array]) -> Array:
        profile, rows, fed = self._walked
        mask, limits = feeds[self._of_texts[-1]], self.limits
        count, width = mask.shape
        texts = min(max(1 << (count - 1).bit_length(), limits.texts.min), limits.texts.max)
        for name, values in feeds.items():
            self._buffers[name].fill(values, self._stream, texts)
        shapes = {**self._row_shapes(fed), **self._shapes_given(profile, fed)}
        shapes |= {name: (texts, *values.shape[1:]) for name, values in feeds.items()}
        self._launch(self._match_plan, (fed, texts, width), profile, shapes)
        (output,) = self._graph.outputs
        scores = self._buffers[output.name].fetch((fed, texts), self._stream)
        self._stream.synchronize()
        return scores[:rows, :count].copy()

    def _shapes_given(self, profile: int, rows: int) -> Mapping[str, Sequence[int]]:
        """Shapes of what the walk gives."""
        if (profile, rows) not in self._given:
            plan, shapes = self._walk_plan, self._row_shapes(rows)
            self._given[profile, rows] = plan.output_shapes(profile, shapes, self._stream)
        return self._given[profile, rows]

    def _row_shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs that belong to rows."""
        return {name: (rows, *self._buffers[name].host.shape[1:]) for name in self._of_rows}

    def _launch(
        self,
        plan: LoadedPlan,
        key: tuple[int, ...],
        profile: int,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        """Queue one pass of a plan; of some shapes, those of its inputs count."""
        fed = {it.name: shapes[it.name] for it in plan.inputs}
        names = (it.name for it in (*plan.inputs, *plan.outputs))
        addresses = {name: self._addresses[name] for name in names}
        self._launched.append(plan.launch(key, profile, fed, addresses, self._stream))

    def _release(self) -> None:
        with on_device(self._device):
            self._launched = []
            self._walk_plan.release()
            self._match_plan.release()
            del self._buffers, self._memory, self._stream
