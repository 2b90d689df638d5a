"""Measure what pruned search saves and costs when one query ranks some images.

python benchmarks/measure_pruning.py [BUNDLE] [--engine NAME] [--queries N]

Each query is the caption of a drawn scene, ranked among other scenes with and without pruning, in
turn, so that other load on the machine affects both. Decoded images are encoded in each call.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from importlib.metadata import version

from dsd_trt import Scorer
from dsd_trt.errors import DsdError
from dsd_trt.export.probe import draw_probe

SIZES = (8, 20, 50, 200)  # images per query
TOP = 5


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="default: the demonstration")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--queries", type=int, default=10, help="queries of each number of images")
    options = parser.parse_args()
    scorer = Scorer.load(options.bundle, options.engine)
    manifest = scorer.manifest
    levels = len(manifest.method.noise_levels.fractions)
    probe = draw_probe(manifest.preprocessing.resolution, levels, count=max(SIZES), seed=5)
    images = list(probe.pixels)
    print(f"| images | processor time, pruned (quartiles) | same best {TOP}, in order |")
    print("|---:|---:|---:|")
    for size in SIZES:
        for prune in (False, True):  # compiled for these batch sizes
            _timed(scorer, probe.texts[0], images[:size], prune=prune)
        ratios, same = [], 0
        for number, text in enumerate(probe.texts[: options.queries]):
            order = (True, False) if number % 2 else (False, True)
            found = {it: _timed(scorer, text, images[:size], prune=it) for it in order}
            ratios.append(found[True][0] / found[False][0])
            same += found[True][1] == found[False][1]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {size} | {middle:.0%} ({low:.0%} to {high:.0%}) | {same} of {len(ratios)} |")
    print(
        f"\n{scorer.engine}, {levels} noise levels; dsd-trt {version('dsd-trt')}, "
        f"Python {platform.python_version()}, numpy {version('numpy')}"
    )


def _timed(
    scorer: Scorer, text: str, images: list[object], *, prune: bool
) -> tuple[float, list[int]]:
    """Processor seconds of a ranking, and the places of the best images."""
    began = time.process_time()
    best = scorer.rank(text, images, TOP, prune=prune)  # type: ignore[arg-type]
    return time.process_time() - began, [it.index for it in best]


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
