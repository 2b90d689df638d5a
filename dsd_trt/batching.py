"""Batch sizes of each graph, from a memory budget or by timing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from time import perf_counter

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.cache import recall, remember
from dsd_trt.errors import InputError
from dsd_trt.log import get_logger

MOST_MB = 2**30  # a pebibyte
DEFAULT_MB = 1024  # memory for activations where nothing else is asked for
MAX_TEXTS = 256  # texts per run of the matrix scorer
_TIMED = 3  # timed batches of each size
_MIN_TRIED = 4  # below, the fixed cost of a run is no longer shared
MAX_BATCH = 32  # CPUs gain no speed beyond, only memory and coarse progress

MASK_STEP = 16
"""Width to whose multiples token masks of the matrix scorer are padded: few shapes to compile."""

logger = get_logger(__name__)


def walks_at_once(large: bool) -> tuple[int, ...]:
    """Numbers of walks per run of the matrix scorer on the processor, the largest first.

    Engines of the processor split texts by themselves, so `MAX_TEXTS` of them may be passed. A walk
    through a large model takes gigabytes.
    """
    return (4, 1) if large else (16, 4, 1)


@dataclass(frozen=True)
class BatchSizes:
    """Largest batch of each graph.

    Attributes:
        images: images per run of the image encoder.
        texts: texts per run of the text encoder.
        passes: passes, each a pair at one noise level, per run of the pair scorer, at most; see
            `FastestBatch`.
        matrix: walks, each an image at one noise level, and texts matched with every one of them,
            per run of the matrix scorer.
    """

    images: int
    texts: int
    passes: int
    matrix: tuple[int, int]


ON_DEVICE = BatchSizes(images=32, texts=256, passes=256, matrix=(32, MAX_TEXTS))
"""Batch sizes for GPU engines, whose plans split batches and hold activations themselves."""


def map_numbers(manifest: Manifest) -> int:
    """Numbers of the largest attention map of an image with a text in the matrix scorer: n H 77.

    H is the lowest head count of a scored layer, that of Stable Diffusion's top level. A quarter of
    the n image tokens counts if queries are averaged.
    """
    _, height, width = manifest.latent_shape
    heads = min(len(weights) for weights in manifest.method.head_weights.values)
    pooled = manifest.matrix is not None and manifest.matrix.query_pool > 1
    image_tokens = height * width // 4 if pooled else height * width
    return image_tokens * heads * manifest.tokenizer.max_length


def batch_sizes(manifest: Manifest, memory_budget_mb: float) -> BatchSizes:
    """Choose batch sizes such that the activations of a graph fit a memory budget.

    Weights come on top. The cost of one item is a generous estimate in FP32 numbers: the widest
    point of each network. R is the resolution, n = h w the number of image tokens and D the text
    width. H is the lowest head count of a scored layer, that of Stable Diffusion's top level.

    - image: 3 R^2 128, three feature maps at full resolution with a VAE's usual 128 channels;
    - text: 77 x 16 D, the widest MLP and its surroundings;
    - pair at one level: n (2 H (n + 77) + 16 D), logits and softmax of self- and cross-attention at
      the top level, and the features held by the skip connections;
    - image and text in the matrix scorer: 3 n H 77 (`map_numbers`), logits, softmax and
      exponentials of the top level. Texts are batched first, because every run repeats the walk
      through the U-Net.

    Args:
        manifest: manifest of the bundle to run.
        memory_budget_mb: memory for activations, in MiB, at least 0.

    Returns:
        Sizes of at least 1, of at most `MAX_TEXTS` for texts of the matrix scorer, and of at most
        `MAX_BATCH` for everything else.

    Raises:
        InputError: the budget is not a number, or negative.
    """
    if (
        not isinstance(memory_budget_mb, Real)
        or isinstance(memory_budget_mb, bool)
        or not 0 <= memory_budget_mb < MOST_MB
    ):
        raise InputError(f"memory_budget_mb must be a number of MiB, got {memory_budget_mb!r}")
    memory_budget_mb = float(memory_budget_mb)
    budget = memory_budget_mb * 2**20 / 4  # FP32 numbers
    cost = _Cost.of(manifest)

    def fit(numbers: int) -> int:
        return min(max(int(budget // numbers), 1), MAX_BATCH)

    texts = min(max(int(budget // cost.match), 1), MAX_TEXTS)
    return BatchSizes(
        images=fit(cost.image),
        texts=fit(cost.text),
        passes=fit(cost.a_pass),
        matrix=(fit(cost.walk + texts * cost.match), texts),
    )


def activation_bytes(manifest: Manifest, memory_budget_mb: float) -> int:
    """Bytes that the activations of the largest run take, as estimated by `batch_sizes`.

    Args:
        manifest: manifest of the bundle to run.
        memory_budget_mb: memory for activations, in MiB; 0 makes batches of one.
    """
    sizes, cost = batch_sizes(manifest, memory_budget_mb), _Cost.of(manifest)
    runs = [sizes.images * cost.image, sizes.texts * cost.text, sizes.passes * cost.a_pass]
    if manifest.matrix is not None:
        walks, texts = sizes.matrix
        runs.append(walks * (cost.walk + texts * cost.match))
    return 4 * max(runs)


@dataclass(frozen=True)
class _Cost:
    """FP32 numbers that one item of a run holds; `batch_sizes` has the formulas."""

    image: int
    text: int
    a_pass: int
    walk: int
    match: int

    @classmethod
    def of(cls, manifest: Manifest) -> _Cost:
        resolution, length = manifest.preprocessing.resolution, manifest.tokenizer.max_length
        _, height, width = manifest.latent_shape
        n, d = height * width, manifest.text_width
        heads = min(len(weights) for weights in manifest.method.head_weights.values)
        return cls(
            image=3 * resolution**2 * 128,
            text=length * 16 * d,
            a_pass=n * (2 * heads * (n + length) + 16 * d),
            walk=n * (2 * heads * n + 16 * d),
            match=3 * map_numbers(manifest),
        )


class FastestBatch:
    """Splits work into batches, and finds the fastest batch size if wanted.

    Threads may share one.

    Candidate sizes, each half of the previous one, are timed in turn, several times. The first
    batch of each size is not timed, because the engine then prepares its kernels. The fastest time
    counts: other load on the machine can only make a batch slower. The result is remembered on this
    machine.

    Args:
        largest: largest batch that fits into memory.
        key: everything the speed depends on besides the size; None means no timing, always
            `largest`.
    """

    def __init__(self, largest: int, key: str | None) -> None:
        sizes = [largest]
        while key is not None and sizes[-1] // 2 >= _MIN_TRIED:
            sizes.append(sizes[-1] // 2)
        self._key = f"{key}, batches up to {largest}"
        if len(sizes) > 1 and (known := recall("batch", self._key)) in sizes:
            sizes = [int(known)]
        self.size: int = sizes[0]
        self._untried = sizes * (1 + _TIMED) if len(sizes) > 1 else []
        self._seconds: dict[int, list[float]] = {
            size: [] for size in sizes
        }  # one pair at one level
        self._noting = threading.RLock()  # a signal handler may interrupt

    def cut(self, count: int) -> Iterator[slice]:
        """Yield batches; asking for the next one marks the previous one as finished."""
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
        """Record a batch's time, and move to the next size if this one was being timed."""
        if not self._untried or size != self.size:
            return  # the remainder, or another thread's batch
        self._seconds[self._untried.pop(0)].append(seconds / size)
        if self._untried:
            self.size = self._untried[0]
            return
        fastest = {size: min(each[1:]) for size, each in self._seconds.items()}
        self.size = min(fastest, key=fastest.__getitem__)
        remember("batch", self._key, self.size)
        logger.info("batches of %d are the fastest here: %s", self.size, fastest)
