"""How many items to push through each graph at once."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.cache import recall, remember
from dsd_trt.errors import InputError

MAX_TEXTS = 256  # of the matrix scorer
_TIMED = 3  # batches of each size, besides one that is not
_MIN_TRIED = 4  # below, what a run costs besides its triples is no longer shared
MAX_BATCH = 32  # on CPUs nothing is gained beyond, and memory and leaps in progress grow

MASK_STEP = 16
"""Token masks of the matrix scorer are as wide as a multiple of this: an engine sees few widths."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSizes:
    """Items per run of each graph.

    Attributes:
        images: of the image encoder.
        texts: of the text encoder.
        triples: of image, text and level, of the pair scorer; the most, see `FastestBatch`.
        matrix: of image and level, and of texts, of the matrix scorer.
    """

    images: int
    texts: int
    triples: int
    matrix: tuple[int, int]


ON_DEVICE = BatchSizes(images=32, texts=256, triples=256, matrix=(1, 256))
"""For engines on a GPU, which split batches as their plans say, and hold activations themselves."""


def batch_sizes(manifest: Manifest, memory_budget_mb: float) -> BatchSizes:
    """Size micro-batches so that a graph's activations fit a memory budget.

    Weights come on top. What one item costs is estimated in FP32 numbers from the manifest's
    shapes, generously, as the widest point of each network (R resolution, n = h w image tokens,
    D text width, H the fewest heads of a scored layer, as Stable Diffusion's top level has):

    - image: 3 R^2 128, three feature maps at full resolution with a VAE's usual 128 channels;
    - text: 77 x 16 D, the widest MLP and its surroundings;
    - triple: n (2 H (n + 77) + 16 D), logits and softmax of self- and cross-attention at the top
      level, and the features that the skip connections keep alive;
    - match of an image with a text in the matrix scorer: 3 n H 77, logits, softmax and exponentials
      of the top level, and a fourth of its image tokens where its queries are averaged. Texts come
      first, since every run walks through the U-Net once more.

    Args:
        manifest: of the bundle that is run.
        memory_budget_mb: for activations, in MiB.

    Returns:
        At least 1 and at most `MAX_BATCH` of each.

    Raises:
        InputError: the budget is no number, or below 0.
    """
    if (
        not isinstance(memory_budget_mb, (int, float))
        or not math.isfinite(memory_budget_mb)
        or memory_budget_mb < 0
    ):
        raise InputError(f"memory_budget_mb must be a number of MiB, got {memory_budget_mb!r}")
    resolution, length = manifest.preprocessing.resolution, manifest.tokenizer.max_length
    _, height, width = manifest.latent_shape
    n, d = height * width, manifest.text_width
    heads = min(len(weights) for weights in manifest.method.head_weights.values)
    budget = memory_budget_mb * 2**20 / 4  # FP32 numbers

    def fit(numbers: int) -> int:
        return min(max(int(budget // numbers), 1), MAX_BATCH)

    pooled = manifest.matrix is not None and manifest.matrix.query_pool > 1
    match = 3 * (n // 4 if pooled else n) * heads * length
    texts = min(max(int(budget // match), 1), MAX_TEXTS)
    return BatchSizes(
        images=fit(3 * resolution**2 * 128),
        texts=fit(length * 16 * d),
        triples=fit(n * (2 * heads * (n + length) + 16 * d)),
        matrix=(fit(n * (2 * heads * n + 16 * d) + texts * match), texts),
    )


class FastestBatch:
    """Cuts work into batches; where wanted, finds out on the first of it which is the fastest.

    Threads may share one.

    Sizes, each half of the one before, are tried in turn, several times over. The first batch of a
    size sets the engine's kernels up for its shape and is not timed; of the others the fastest
    counts, since whatever else the machine does only makes them slower. What is found is
    remembered, so that a machine tries once.

    Args:
        largest: that fits into memory.
        key: all that speed depends on besides the size; None tries nothing, and takes the largest.
    """

    def __init__(self, largest: int, key: str | None) -> None:
        sizes = [largest]
        while key is not None and sizes[-1] // 2 >= _MIN_TRIED:
            sizes.append(sizes[-1] // 2)
        self._key = f"{key}, batches up to {largest}"
        if len(sizes) > 1 and (known := recall("batch", self._key)) in sizes:
            sizes = [int(known)]
        self.size = sizes[0]
        self._untried = sizes * (1 + _TIMED) if len(sizes) > 1 else []
        self._seconds: dict[int, list[float]] = {size: [] for size in sizes}  # a triple
        self._noting = threading.RLock()  # a signal handler may come in between

    def cut(self, count: int) -> Iterator[slice]:
        """Batches, of which each is done with when the next is asked for."""
        start = 0
        while start < count:
            rows = slice(start, min(start + self.size, count))
            begin = perf_counter()
            yield rows
            if self._untried:
                with self._noting:
                    self._note(rows.stop - rows.start, perf_counter() - begin)
            start = rows.stop

    def _note(self, size: int, seconds: float) -> None:
        """Take note of a batch's time, and go on to the next size if it was the one to try."""
        if not self._untried or size != self.size:
            return  # what is left at the end, or another thread's
        self._seconds[self._untried.pop(0)].append(seconds / size)
        if self._untried:
            self.size = self._untried[0]
            return
        fastest = {size: min(each[1:]) for size, each in self._seconds.items()}
        self.size = min(fastest, key=fastest.__getitem__)
        remember("batch", self._key, self.size)
        logger.info("batches of %d are the fastest here: %s", self.size, fastest)
