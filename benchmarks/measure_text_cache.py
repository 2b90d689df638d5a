"""Measure what a scorer's text cache saves a service: requests whose texts come again.

python benchmarks/measure_text_cache.py [BUNDLE] [--engine NAME] [--requests N]

A request is one image and some texts. Its texts are drawn from a fixed list, as class names or
frequent queries are. The same requests are timed with and without the cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from dsd_trt import Scorer
from dsd_trt.errors import DsdError
from dsd_trt.text_cache import DEFAULT_MB


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="default: the demonstration")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--requests", type=int, default=40, help="requests of each size")
    parser.add_argument("--texts", type=int, default=32, help="texts of the list")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    words = [*("red", "green", "blue", "yellow"), *("circle", "square", "star", "triangle")]
    texts = [f"a {a} {b} and a {c}" for a in words for b in words for c in words][: options.texts]
    print("| texts a request | ms without | ms with the cache | times faster |")
    print("|---:|---:|---:|---:|")
    for size in (1, 4, 16):
        requests = [
            (
                rng.integers(0, 256, (64, 64, 3), np.uint8),
                [texts[i] for i in rng.choice(len(texts), size, replace=False)],
            )
            for _ in range(options.requests)
        ]
        medians = []
        for size_mb in (0, DEFAULT_MB):
            with Scorer.load(options.bundle, options.engine, text_cache_mb=size_mb) as scorer:
                scorer.score([requests[0][0]], texts)  # warm: compiled, and the list seen once
                seconds = []
                for image, chosen in requests:
                    start = time.perf_counter()
                    scorer.score([image], chosen)
                    seconds.append(time.perf_counter() - start)
            medians.append(1000 * statistics.median(seconds))
        print(f"| {size} | {medians[0]:.1f} | {medians[1]:.1f} | {medians[0] / medians[1]:.2f} |")
    print(f"{scorer.engine}; {options.requests} requests each, from a list of {len(texts)} texts")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
