"""Figures of a GPU check: agreement with FP32, and times of single passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

PAIR, MATRIX = "pair_scorer", "matrix_scorer"

REPEATS = 20
"""Timed passes of each size."""

CountMacs = Callable[[str, Mapping[str, int]], int | None]
"""Function from a graph's name and the sizes of its dimensions to its multiply-accumulates (MACs);
None where a size is not known."""


@dataclass(frozen=True)
class Gpu:
    """The GPU.

    Attributes:
        number: number of the GPU, from 0.
        name: name of the card.
        compute_capability: compute capability, such as "9.0".
        memory_bytes: size of its memory.
        driver: release of NVIDIA's driver; None if the system does not say.
        cuda: newest CUDA version that the driver runs; None if it does not say.
    """

    number: int
    name: str
    compute_capability: str
    memory_bytes: int
    driver: str | None
    cuda: str | None


@dataclass(frozen=True)
class Scored:
    """Scores of one mode beside ONNX Runtime's, which computes the same graph in FP32 on the CPU.

    Attributes:
        images: number of images, of noise.
        texts: number of texts; each image is scored against all of them.
        levels: number of noise levels that a score is averaged over.
        not_finite: number of scores that are NaN or infinite.
        max_difference: largest absolute difference of the other scores; None if there is none.
        same_order: share of images whose texts rank in the same order, from 0 to 1.
        smallest_gap: smallest difference of two texts' scores for one image in FP32. An order means
            nothing where this is below `max_difference`.
    """

    images: int
    texts: int
    levels: int
    not_finite: int
    max_difference: float | None
    same_order: float
    smallest_gap: float


@dataclass(frozen=True)
class Checked:
    """The bundle's self-check of one graph.

    Attributes:
        difference: largest difference from PyTorch in FP32, relative to the output's largest
            number; None if it is not finite.
        allowed: largest difference that scoring accepts.
    """

    difference: float | None
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether scoring accepts the graph."""
        return self.difference is not None and self.difference <= self.allowed


@dataclass(frozen=True)
class Timing:
    """Time of one pass of a graph on random inputs that are on the GPU.

    Attributes:
        graph: name of the graph, such as "pair_scorer".
        rows: batch size: pairs, images or texts, as the graph has them; of the matrix scorer
            images.
        texts: number of texts of the matrix scorer's pass; None for other graphs.
        ms: median time in milliseconds.
        ms_a_row: the same for one row.
        pairs_per_second: pairs at one level; None for encoders.
        tflops: arithmetic throughput in TFLOP/s; None if it was not counted.
    """

    graph: str
    rows: int
    texts: int | None
    ms: float
    ms_a_row: float
    pairs_per_second: float | None
    tflops: float | None

    @classmethod
    def of(
        cls, graph: str, seconds: float, sizes: Mapping[str, int], macs: int | None = None
    ) -> Self:
        """The time of a pass.

        Args:
            graph: name of the graph, such as "pair_scorer".
            seconds: median time of a pass, in seconds.
            sizes: sizes of the graph's dynamic dimensions, see `graph_contract`.
            macs: multiply-accumulates (MACs) of the pass; None if they were not counted.
        """
        texts = sizes["T"] if graph == MATRIX else None
        rows = sizes[{PAIR: "B", "text_encoder": "T"}.get(graph, "I")]
        pairs = rows * (texts or 1) if graph in (PAIR, MATRIX) else None
        return cls(
            graph,
            rows,
            texts,
            1000 * seconds,
            1000 * seconds / rows,
            None if pairs is None else pairs / seconds,
            None if macs is None else 2 * macs / seconds / 1e12,
        )

    @property
    def batch(self) -> str:
        """Batch size for people, such as "8" or "32 x 256"."""
        return str(self.rows) if self.texts is None else f"{self.rows} x {self.texts}"


@dataclass(frozen=True)
class Run:
    """Figures of the bundle's graphs, or of their forms for CUDA, on the engine.

    Attributes:
        engine: library, version, GPU and precision, as the engine says them.
        self_check: the bundle's self-check, by graph; empty without one.
        scored: scores beside FP32, by mode.
        timings: times of single passes.
        pairs_per_second: throughput at all of the bundle's levels, from encoded inputs on the host,
            copies included, by mode.
        memory_bytes: GPU memory of pair mode's graphs and buffers; 0 if it was not measured.
    """

    engine: str = ""
    self_check: Mapping[str, Checked] = field(default_factory=dict)
    scored: Mapping[str, Scored] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    pairs_per_second: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int = 0

    @property
    def complaints(self) -> Iterator[str]:
        """What is wrong with the results."""
        for graph, it in self.self_check.items():
            if not it.passed:
                found = "not finite" if it.difference is None else f"{it.difference:.2g}"
                yield f"self-check of the {graph}: difference {found}, allowed {it.allowed:g}"
        for mode, scored in self.scored.items():
            if scored.not_finite:
                yield f"{mode} mode has NaN or infinity instead of scores: {scored.not_finite}"


@dataclass(frozen=True)
class Peer:
    """Figures of one contender in PyTorch.

    Attributes:
        timings: times of single passes on the same inputs as the engine's.
        max_difference: largest difference of a score from the engine's, at the best batch; None if
            one of both was not measured.
        seconds_to_prepare: time for compiling or recording, all batches together.
    """

    timings: tuple[Timing, ...] = ()
    max_difference: float | None = None
    seconds_to_prepare: float = 0.0


def ratios_of(slow: Sequence[Timing], fast: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Times of one side relative to the other's, by graph and batch, where both have one."""
    ms = {(it.graph, it.batch): it.ms for it in fast}
    ratios: dict[str, dict[str, float]] = {}
    for it in slow:
        if other := ms.get((it.graph, it.batch)):
            ratios.setdefault(it.graph, {})[it.batch] = it.ms / other
    return ratios
