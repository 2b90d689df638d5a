"""The work of every contender: the same pairs at the same levels, from pixels to scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.bundle.folder import Bundle
from dsd_trt.export.benchmark.macs import count_macs
from dsd_trt.export.probe import Probe, draw_probe

Floats = NDArray[np.floating]

_LARGE = 20e9  # MACs per pass above which a pass takes seconds on a CPU (Stable Diffusion)


@dataclass(frozen=True)
class Work:
    """Bundle, checkpoint and pairs that every contender scores.

    Attributes:
        bundle: verified bundle that our runtime scores with.
        model: checkpoint the bundle was exported from, as `find_model` takes it.
        adapter: folder of the bundle's adapter; None for none.
        pictures: number of images to score.
        texts: number of texts per image.
        rounds: number of measured rounds.
        requests: number of timed requests, of one image and one text each.
        cache_compiled: whether our runtime keeps compiled models of a large bundle.
    """

    bundle: Bundle
    model: str
    adapter: Path | None
    pictures: int
    texts: int
    rounds: int
    requests: int
    cache_compiled: bool = field(default=False, kw_only=True)

    @property
    def probe(self) -> Probe:
        """Drawn images and their captions; the numbers of images and texts may differ."""
        manifest = self.bundle.manifest
        drawn = draw_probe(
            manifest.preprocessing.resolution,
            len(manifest.method.noise_levels.fractions),
            count=max(self.pictures, self.texts),
        )
        return Probe(drawn.pixels[: self.pictures], drawn.texts[: self.texts], drawn.levels)

    @property
    def levels(self) -> NDArray[np.int32]:
        """Indices of all of the bundle's noise levels, (levels,)."""
        return np.arange(len(self.bundle.manifest.method.noise_levels.fractions), dtype=np.int32)

    def macs(self, name: str, **sizes: int) -> int:
        """MACs of one call of a graph.

        Args:
            name: name of the graph, such as "pair_scorer".
            sizes: sizes of dynamic dimensions by name; the default of each is 1.
        """
        graph = self.bundle.manifest.graphs[name]
        return count_macs(self.bundle.path(graph.file), graph, **sizes)


def encoded_requests(work: Work) -> list[tuple[bytes, str]]:
    """Images as PNG files, each with its text: what a service is sent, to be taken in turn."""
    probe = work.probe
    found = []
    for pixels, text in zip(probe.pixels, itertools.cycle(probe.texts), strict=False):
        content = BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        found.append((content.getvalue(), text))
    return found


def default_size(bundle: Bundle) -> tuple[int, int, int, int]:
    """Default numbers of images, texts, rounds and requests: minutes rather than hours."""
    graph = bundle.manifest.graphs["pair_scorer"]
    large = count_macs(bundle.path(graph.file), graph) > _LARGE
    return (1, 2, 3, 5) if large else (16, 16, 5, 200)


@dataclass(frozen=True)
class Contender:
    """One way to score, ready to be timed.

    Attributes:
        encode: function that encodes images and texts once per round; None if `score` encodes
            them again for every pair.
        score: function that returns the scores of all pairs, (images, texts).
        passes: number of passes of the U-Net per round, complete or partial; of walks in matrix
            mode.
        macs: number of multiply-accumulates (MACs) of those passes per round.
        precision: precision of matrix products, "fp32" or "bf16".
        request: function `(image, text)` that decodes an encoded image, encodes both and returns
            their score.
        refused: reason why `score` would refuse this contender; empty if it would not.
    """

    encode: Callable[[], Any] | None
    score: Callable[[], Floats]
    passes: int
    macs: float
    precision: str
    request: Callable[[bytes, str], float]
    refused: str = ""
