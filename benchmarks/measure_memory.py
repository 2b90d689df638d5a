"""Measure start and memory of a large bundle, with and without compiled models in the cache.

python benchmarks/measure_memory.py BUNDLE [--engine NAME] [--mode MODE] [--texts N] [--budget MIB]

Each line is a new process that opens the bundle, scores one image against some texts at all levels,
and then another image. The first uses no cache, the second fills one, the third uses it, and the
last one also closes what is not in use. Private and mapped memory are looked at from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile

from dsd_trt.errors import DsdError
from dsd_trt.export.benchmark.memory import run_watched

_SCORE = """
import json, sys, time
began = time.perf_counter()
import numpy as np
from dsd_trt import Scorer
bundle, engine, mode, texts, cached, budget = json.loads(sys.argv[1])
scorer = Scorer.load(bundle, engine, budget, mode, cache_compiled=cached)
loaded = time.perf_counter() - began
side = scorer.manifest.preprocessing.resolution
rng = np.random.default_rng(0)
texts = [f"a photograph of thing {it} on a table" for it in range(texts)]
seconds = []
for _ in range(2):
    start = time.perf_counter()
    scores = scorer.score([rng.integers(0, 256, (side, side, 3), np.uint8)], texts).scores
    seconds.append(time.perf_counter() - start)
print(json.dumps([loaded, *seconds, str(scorer.engine)]))
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--mode", default="pair", choices=["pair", "matrix"])
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--budget", type=float, default=256, help="MiB, of the last line")
    options = parser.parse_args()
    print("| | s to load | s for an image | s for another | MiB private | MiB mapped |")
    print("|---|---:|---:|---:|---:|---:|")
    engine = ""
    with tempfile.TemporaryDirectory() as cache:
        for name, cached, budget in (
            ("nothing kept", False, None),
            ("first start that keeps", True, None),
            ("later start", True, None),
            (f"later start, budget of {options.budget:g} MiB", True, options.budget),
        ):
            asked = (options.bundle, options.engine, options.mode, options.texts, cached, budget)
            command = [sys.executable, "-c", _SCORE, json.dumps(asked)]
            run, memory = run_watched(command, {**os.environ, "DSD_TRT_CACHE": cache})
            if run.returncode:
                raise DsdError(run.stderr.strip().rpartition("\n")[2])
            *seconds, engine = json.loads(run.stdout)
            sizes = "- | -" if memory is None else f"{memory.private_mib:.0f} | "
            sizes += "" if memory is None else f"{memory.mapped_mib:.0f}"
            print(f"| {name} | {' | '.join(f'{it:.1f}' for it in seconds)} | {sizes} |", flush=True)
    print(f"{engine}, {options.mode} mode, {options.texts} texts")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
