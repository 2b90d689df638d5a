"""What every contender does: the same pairs at the same levels, from pixels and texts to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle
from dsd_trt.export.benchmark.macs import count_macs
from dsd_trt.export.probe import Probe, draw_probe

Floats = NDArray[np.floating]

_LARGE = 20e9  # MACs of a pass: Stable Diffusion's take seconds on a CPU
MEMORY_MB = 1024.0  # for activations, which decides how many pairs make a batch


@dataclass(frozen=True)
class Work:
    """What is scored.

    Attributes:
        bundle: what our runtime scores with.
        model: what it was exported from.
        adapter: and with which adapter.
        pictures: how many.
        texts: how many.
        rounds: how often it is measured.
    """

    bundle: Bundle
    model: str
    adapter: Path | None
    pictures: int
    texts: int
    rounds: int

    @property
    def probe(self) -> Probe:
        """Pictures and texts; texts may be more than pictures."""
        manifest = self.bundle.manifest
        drawn = draw_probe(
            manifest.preprocessing.resolution,
            len(manifest.method.noise_levels.fractions),
            count=max(self.pictures, self.texts),
        )
        return Probe(drawn.pixels[: self.pictures], drawn.texts[: self.texts], drawn.levels)

    @property
    def levels(self) -> NDArray[np.int32]:
        """All of the bundle's."""
        return np.arange(len(self.bundle.manifest.method.noise_levels.fractions), dtype=np.int32)

    def macs(self, name: str, **sizes: int) -> int:
        """Of one run of a graph, see `count_macs`."""
        graph = self.bundle.manifest.graphs[name]
        return count_macs(self.bundle.path(graph.file), graph, **sizes)


def default_size(bundle: Bundle) -> tuple[int, int, int]:
    """Pictures, texts and rounds that take minutes, not hours."""
    graph = bundle.manifest.graphs["pair_scorer"]
    large = count_macs(bundle.path(graph.file), graph) > _LARGE
    return (1, 2, 3) if large else (16, 16, 5)


@dataclass(frozen=True)
class Contender:
    """One way to score.

    Attributes:
        encode: images and texts, once a round; None where `score` does it for every pair.
        score: the pairs; their scores, (pictures, texts).
        passes: walks through the U-Net, whole or not, a round.
        macs: multiplications with addition of those, a round.
        precision: what it multiplies in, "fp32" or "bf16".
        refused: why scoring would refuse it, though it was measured; empty if it would not.
    """

    encode: Callable[[], Any] | None
    score: Callable[[], Floats]
    passes: int
    macs: float
    precision: str
    refused: str = ""
