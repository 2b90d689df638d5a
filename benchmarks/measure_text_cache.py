"""Measure what a scorer's text cache saves a service: requests whose texts come again.

python benchmarks/measure_text_cache.py [BUNDLE] [--engine NAME] [--requests N]

A request is one image and some texts. Its texts are drawn from a fixed list, as class names or
frequent queries are. Each request is sent to a scorer with the cache and to one without, in turn,
so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np

from dsd_trt import Scorer
from dsd_trt.errors import DsdError
from dsd_trt.text_cache import DEFAULT_MB


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="default: the demonstration")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--requests", type=int, default=100, help="requests of each size")
    parser.add_argument("--texts", type=int, default=32, help="texts of the list")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    words = [*("red", "green", "blue", "yellow"), *("circle", "square", "star", "triangle")]
    texts = [f"a {a} {b} and a {c}" for a in words for b in words for c in words][: options.texts]
    without, cached = (
        Scorer.load(options.bundle, options.engine, text_cache_mb=size) for size in (0, DEFAULT_MB)
    )
    print("| texts a request | ms without | ms with | times faster (quartiles) | processor time |")
    print("|---:|---:|---:|---:|---:|")
    for size in (1, 4, 16):
        for scorer in (without, cached):  # compiled, and all texts seen once
            image = rng.integers(0, 256, (64, 64, 3), np.uint8)
            scorer.score([image], texts)
            scorer.score([image], texts[:size])
        pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for number in range(options.requests):
            image = rng.integers(0, 256, (64, 64, 3), np.uint8)
            chosen = [texts[i] for i in rng.choice(len(texts), size, replace=False)]
            if number % 2:
                second, first = _timed(cached, image, chosen), _timed(without, image, chosen)
            else:
                first, second = _timed(without, image, chosen), _timed(cached, image, chosen)
            pairs.append((first, second))
        ratios = [a[0] / b[0] for a, b in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        used = sum(a[1] for a, _ in pairs) / sum(b[1] for _, b in pairs)
        without_ms, with_ms = (
            1000 * statistics.median(it[0] for it in side) for side in zip(*pairs, strict=True)
        )
        print(
            f"| {size} | {without_ms:.1f} | {with_ms:.1f} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {used:.2f} |"
        )
    print(f"{cached.engine}; {options.requests} requests each, from a list of {len(texts)} texts")


def _timed(scorer: Scorer, image: Any, texts: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a request."""
    wall, used = time.perf_counter(), time.process_time()
    scorer.score([image], texts)
    return time.perf_counter() - wall, time.process_time() - used


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
