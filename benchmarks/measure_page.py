"""Measure the page of many scores against the same scores as JSON: size, time and memory.

python benchmarks/measure_page.py [--images N] [--texts M] [--rounds R]

Draws N photograph-like JPEGs of 320 x 240 pixels into a temporary folder. Their scores with M texts
are random numbers: nothing is scored. Each round writes both formats, each in a process of its own.
Prints the table in docs/reports.md, with medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_trt.commands.formats import FORMATS, AtEnd
from dsd_trt.commands.layout import MATRIX
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, shortest
from dsd_trt.commands.record_images import GivenImages

EXAMPLES = Path(__file__).parents[1] / "examples" / "images"
SIZE = 320, 240
FIGURES = {
    "size, MB": "bytes",
    "processor time, s": "processor",
    "wall time, s": "wall",
    "peak memory, MiB": "peak",
}


def main() -> None:
    """Measure both formats, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", nargs=2, metavar=("FORMAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps(_written(options.write[0], Path(options.write[1]), options.texts)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _draw(folder / "images", options.images)
        found: dict[str, list[dict[str, float]]] = {"html": [], "json": []}
        for _ in range(options.rounds):
            for name, rounds in found.items():
                command = [sys.executable, __file__, "--write", name, str(folder)]
                command += ["--texts", str(options.texts)]
                rounds.append(json.loads(subprocess.check_output(command)))
    print("| | page | `-f json` | ratio |\n|---|---:|---:|---:|")
    for label, key in FIGURES.items():
        page, plain = (statistics.median(it[key] for it in rounds) for rounds in found.values())
        print(f"| {label} | {page:.1f} | {plain:.1f} | {page / plain:.1f} |")


def _draw(folder: Path, count: int) -> None:
    """Draw photograph-like images: examples under smooth colours and noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    examples = [
        np.asarray(Image.open(path).convert("RGB").resize(SIZE), np.float32)
        for path in sorted(EXAMPLES.glob("*.png"))
    ]
    for number in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(SIZE)
        image = 0.6 * examples[number % len(examples)] + 0.4 * np.asarray(smooth, np.float32)
        image += rng.normal(0, 6, image.shape)
        drawn = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        drawn.save(folder / f"{number:05}.jpg", quality=88)


def _written(name: str, folder: Path, texts: int) -> dict[str, float]:
    """Write the scores in a format; figures in MB, seconds and MiB."""
    images = sorted((folder / "images").iterdir())
    target = folder / f"scores.{name}"
    origin = Origin(MATRIX, True, lambda: {"bundle": "random numbers"}, GivenImages(images))
    written = FORMATS[name]
    assert isinstance(written, AtEnd)
    began, used = time.perf_counter(), time.process_time()
    written.write(str(target), _records(images, texts), origin)
    return {
        "wall": time.perf_counter() - began,
        "processor": time.process_time() - used,
        "bytes": target.stat().st_size / 1e6,
        "peak": _peak(),
    }


def _peak() -> float:
    """Peak memory of this process in MiB; ru_maxrss would have that of its parent before exec."""
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(it.split()[1]) for it in status if it.startswith("VmHWM")) / 1024


def _records(images: list[Path], texts: int) -> Iterator[Record]:
    rng = np.random.default_rng(1)
    captions = [f"text number {it}: a red circle beside something" for it in range(texts)]
    for place, path in enumerate(images):
        scores = rng.beta(1.2, 20, texts).astype(np.float32)
        probabilities = (1 / (1 + np.exp(8 - 90 * scores))).astype(np.float32)
        for text, score, probability in zip(captions, scores, probabilities, strict=True):
            yield Record(str(path), text, shortest(score), shortest(probability), place=place)


if __name__ == "__main__":
    main()
