"""Attention pooled over image tokens without storing its maps, by a C++ kernel.

`pooled_attention.cpp` has the arithmetic; it is compiled when the package is installed. It needs a
C++ compiler with vector types (GCC, Clang), and an x86-64 CPU with AVX2 or a 64-bit Arm CPU.
Otherwise `available` is False, and matrix mode works without the kernel. On x86-64 it is then
slower; on Arm no speed was measured.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import LARGEST_LAMBDA
from dsd_trt.engine.elf import why_cut
from dsd_trt.errors import EngineError, counted
from dsd_trt.log import get_logger

logger = get_logger(__name__)

MOMENTS = 3
"""Moments of a map, the columns of their basis."""


@dataclass(frozen=True)
class PooledAttention:
    """Heads of one layer with all texts and images: Eq. 3 without its logarithm. Dense FP32 arrays.

    Attributes:
        keys: keys K', (heads, texts * text_tokens, depth).
        queries: scaled queries Q / sqrt(d), (heads, depth, images * image_tokens).
        pooled: output, (heads, texts, counted, images): the mean over image tokens of e^(lambda A),
            where A is softmaxed over text tokens, for the first `counted` tokens.
        lam: sharpness lambda of Eq. 3, above 0 and at most `LARGEST_LAMBDA`.
        moments: moments of the maps, if relations read them.
    """

    keys: NDArray[Any]
    queries: NDArray[Any]
    pooled: NDArray[Any]
    lam: float
    moments: Moments | None = None


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's maps: sums over image tokens of e^(lambda A) - 1, each times a weight.

    Attributes:
        basis: the weights, (image_tokens, 3); for centres of maps 1, x and y over their number.
        sums: output, (heads, texts, counted, images, 3). They keep their digits where A is small.
    """

    basis: NDArray[Any]
    sums: NDArray[Any]


class _Layer(ctypes.Structure):
    """The struct of the same name in the C++ file."""

    _SIZES = ("heads", "texts", "tokens", "counted", "depth", "images", "image_tokens")
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "queries", "pooled", "basis", "moments")),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("lam", ctypes.c_float),
    )


def available() -> bool:
    """Whether the kernel was compiled at install time, and runs on this CPU."""
    return bool(register_widths())


def kernel_file() -> Path | None:
    """Path of the kernel, if it was compiled at install time."""
    paths = (Path(__file__).with_name(f"_pooled_attention{it}") for it in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def open_kernel(path: Path) -> ctypes.CDLL:
    """Load the kernel.

    Args:
        path: path of the compiled kernel, see `kernel_file`.

    Raises:
        OSError: it is cut short, does not load, or is of another version of this package.
    """
    if (why := why_cut(path.parent, path.name)) is not None:
        raise OSError(why)
    kernel = ctypes.CDLL(str(path))
    # In an editable installation it may be older than this file.
    if getattr(kernel, "dsd_layer_bytes", lambda: 0)() != ctypes.sizeof(_Layer):
        raise OSError(f"{path} is of another version; install the package again")
    return kernel


def register_widths() -> list[int]:
    """Register widths in bits that the kernel supports for FP32 on this CPU, the widest last.

    They are 256 and 512 on x86-64, and 128 on Arm (NEON), which has no wider ones.
    """
    kernel = _kernel()
    widest = 0 if kernel is None else kernel.dsd_registers()
    return [n for n in (128, 256, 512) if min(widest, 256) <= n <= widest]


def tile_width() -> int | None:
    """Register width in bits that the kernel supports for BF16 (Intel AMX); None if unsupported."""
    kernel = _kernel()
    return None if kernel is None else kernel.dsd_tiles() or None


def pool_attention(
    layers: Sequence[PooledAttention], threads: int, width: int | None = None
) -> None:
    """Compute the pooled attention of some layers, and moments of their maps on request.

    Args:
        layers: layers to compute; `pooled` of each is written, and `sums` of its moments.
        threads: number of threads to compute with.
        width: register width in bits. One of `register_widths`, None being the widest; or
            `tile_width`, which rounds keys and queries of more than 32 numbers to BF16.

    Raises:
        EngineError: out of memory or threads.
        ValueError: an array is not dense FP32, sizes disagree, lambda is out of range, or there are
            no such registers.
    """
    kernel, widths = _kernel(), register_widths()
    width = width or max(widths, default=0)
    if kernel is None or width not in (*widths, tile_width()):
        raise ValueError(f"no registers of {width} bits here")
    passed = (_Layer * len(layers))(*(_checked(layer) for layer in layers))
    numbers = (ctypes.c_int64(it) for it in (len(layers), threads, width))
    if kernel.dsd_pool_attention(passed, *numbers):
        raise EngineError(
            f"no memory to match texts with images, or fewer than {counted(threads, 'thread')}"
        )


def _checked(layer: PooledAttention) -> _Layer:
    heads, texts, counted, images = layer.pooled.shape
    tokens, depth = layer.keys.shape[1] // texts, layer.keys.shape[2]
    image_tokens = layer.queries.shape[2] // images
    arrays = [
        (layer.keys, (heads, texts * tokens, depth)),
        (layer.queries, (heads, depth, images * image_tokens)),
        (layer.pooled, (heads, texts, counted, images)),
    ]
    if (moments := layer.moments) is not None:
        arrays.append((moments.basis, (image_tokens, MOMENTS)))
        arrays.append((moments.sums, (heads, texts, counted, images, MOMENTS)))
    for array, shape in arrays:
        if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(f"{array.dtype} {array.shape} in place of dense float32 {shape}")
    if not (0 < counted <= tokens and image_tokens > 0 and 0 < layer.lam <= LARGEST_LAMBDA):
        raise ValueError(f"{counted=} of {tokens=}, {image_tokens=}, lambda={layer.lam}")
    places = [array.ctypes.data for array, _ in arrays]
    return _Layer(
        *(places if moments is not None else [*places, None, None]),
        *(heads, texts, tokens, counted, depth, images, image_tokens),
        layer.lam,
    )


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    if (path := kernel_file()) is None:
        return None
    try:
        return open_kernel(path)
    except OSError as error:  # for example, if the C++ runtime library is missing
        logger.warning("matching texts with images is slower than it could be: %s", error)
        return None
