"""Measure the speedup from the kernel of matrix mode.

python benchmarks/measure_matching.py BUNDLE [--rounds 9] [--bits 256]

BUNDLE must have a matrix scorer. Two results are printed. First, nanoseconds per number of the
largest layer's attention maps, for every register width: at the demonstration's size and at Stable
Diffusion 2.1's. Second, milliseconds of the bundle's scorer per text and walk, including the walk,
with the kernel and with stored maps.

Figures are medians over rounds; kernel and stored maps alternate within each round. Values are
random. --bits sets the register width of the scorer's kernel, in FP32. With ONEDNN_MAX_CPU_ISA=AVX2
in the environment, OpenVINO is restricted to AVX2 as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from dsd_trt.batching import walks_at_once
from dsd_trt.bundle.folder import is_large, read_bundle
from dsd_trt.engine import find_backend
from dsd_trt.engine.pooled_attention import (
    PooledAttention,
    available,
    pool_attention,
    register_widths,
    tile_width,
)
from dsd_trt.errors import DsdError

TEXTS = 16  # texts per pass
COUNTED = 16  # tokens of a short text, a mask's width
SIZES = {  # largest layer: heads, depth, images, image tokens
    "demonstration": (4, 16, 16, 64),
    "sd21-base": (5, 64, 4, 4096),
}


def medians(forms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each form, after one untimed run."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, run in forms.items():
            begin = time.perf_counter()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def kernel(size: str, rounds: int) -> None:
    """Nanoseconds per number of the attention maps."""
    heads, width, images, image_tokens = SIZES[size]
    depth, rng = width + images, np.random.default_rng(0)
    layer = PooledAttention(
        rng.normal(size=(heads, TEXTS * 77, depth)).astype(np.float32),
        rng.normal(size=(heads, depth, images * image_tokens)).astype(np.float32),
        np.empty((heads, TEXTS, COUNTED, images), np.float32),
        20.0,
    )
    own = layer.queries[:, width:].reshape(heads, images, images, image_tokens)
    own *= np.eye(images, dtype=np.float32)[:, :, None]  # inputs that belong to an image
    kinds = {f"{n} bits": n for n in register_widths()}
    if (tiles := tile_width()) is not None:
        kinds["tiles"] = tiles
    threads = os.cpu_count() or 1
    forms = {
        name: lambda n=bits: pool_attention([layer], threads, n) for name, bits in kinds.items()
    }
    for name, seconds in medians(forms, rounds).items():
        numbers = heads * TEXTS * 77 * images * image_tokens
        print(f"{size}, {name}: {seconds * 1e9 / numbers:.2f} ns a number")


def scorer(folder: Path, rounds: int, engines: Sequence[str]) -> None:
    """Milliseconds per text and walk."""
    bundle = read_bundle(folder)
    graph = bundle.manifest.graphs["matrix_scorer"]
    rows, texts = walks_at_once(is_large(folder))[0], 4 * TEXTS
    sizes = {"I": rows, "T": texts, "L": COUNTED}
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in graph.inputs:
        values = rng.normal(
            size=[sizes[size] if isinstance(size, str) else size for size in spec.shape]
        )
        feeds[spec.name] = (np.zeros_like(values) if spec.name == "level" else values).astype(
            spec.dtype
        )
    feeds["token_mask"][:] = 1
    for engine in engines:
        forms = {}
        for name in ("kernel", "maps") if available() else ("maps",):
            with patch("dsd_trt.engine.pooled_attention.available", return_value=name == "kernel"):
                opened = find_backend(engine).open(bundle, "matrix_scorer")
                opened.run(feeds)  # compiles everything needed, with or without the kernel
            forms[name] = lambda it=opened: it.run(feeds)
        for name, seconds in medians(forms, rounds).items():
            print(f"{engine}, {name}: {1000 * seconds / rows / texts:.3f} ms a text and walk")


def main() -> None:
    """Measure the kernel and the scorer, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bits", type=int, choices=register_widths())
    options = parser.parse_args()
    if read_bundle(options.bundle).manifest.matrix is None:
        parser.error(f"{options.bundle} has no matrix scorer")
    for size in SIZES:
        kernel(size, options.rounds)
    if options.bits is None:
        scorer(options.bundle, options.rounds, ["openvino", "openvino-bf16"])
        return
    with patch("dsd_trt.engine.pooled_attention.register_widths", return_value=[options.bits]):
        scorer(options.bundle, options.rounds, ["openvino"])


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
