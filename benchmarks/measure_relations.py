"""Measure what relations cost matrix mode.

python benchmarks/measure_relations.py [--rounds 15]

Prints milliseconds to match 100 texts with one image at every level, the walks included, of the
demonstration's bundle. Its relations read moments of the first layer's maps: summed by the kernel,
or from maps that the graph makes beside it. Then of the same model without relations, which is
exported to a temporary folder.

Figures are processor time of one thread, medians over rounds, in which the forms alternate. Values
are random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle, read_bundle
from dsd_trt.engine import Engine, find_backend
from dsd_trt.errors import DsdError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.place import embedded_model_folder
from dsd_trt.train.scoring.adapter import Adapter

BUNDLE = Path(__file__).parents[1] / "dsd_trt" / "data" / "shapes-bundle"
FINDERS = {  # of moments that the kernel can sum, by engine, and what they return of none
    "openvino": ("dsd_trt.engine.openvino.cut._find_moments", None),
    "onnxruntime": ("dsd_trt.engine.cut.CutGraph._moments", (None, None)),
}
TEXTS = 100
COUNTED = 16  # tokens of a short text, a mask's width


def without_relations(folder: Path) -> Bundle:
    """The demonstration without relations, as a bundle in an empty folder."""
    adapter = folder / "adapter"
    replace(Adapter.load(embedded_model_folder() / "adapter"), relations={}).save(adapter)
    settings = ExportSettings(adapter=adapter, matrix=True, verify="none", bf16=False)
    return export_bundle(settings, folder / "bundle")[0]


def draw_feeds(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Random inputs of one image at every level, and 100 texts."""
    levels, rng = len(bundle.manifest.method.noise_levels.fractions), np.random.default_rng(0)
    sizes = {"I": levels, "T": TEXTS, "L": COUNTED}
    feeds = {}
    for spec in bundle.manifest.graphs["matrix_scorer"].inputs:
        shape = [sizes[it] if isinstance(it, str) else it for it in spec.shape]
        feeds[spec.name] = rng.normal(size=shape).astype(spec.dtype)
    feeds["level"] = np.arange(levels, dtype=feeds["level"].dtype)
    feeds["token_mask"][:] = 1
    return feeds


def opened(engine: str, bundle: Bundle) -> Engine:
    """The matrix scorer on one thread."""
    return find_backend(engine).with_threads(1).open(bundle, "matrix_scorer")


def medians(
    forms: Mapping[str, Engine], feeds: Mapping[str, NDArray[Any]], rounds: int
) -> dict[str, float]:
    """Median seconds of processor time of each form, after one run that compiles what it needs."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            begin = time.process_time()
            form.run(feeds)
            if turn > 0:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    """Measure every form on both engines, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    related = read_bundle(BUNDLE)
    feeds = draw_feeds(related)
    with tempfile.TemporaryDirectory() as scratch:
        plain = without_relations(Path(scratch))
        for engine, (finder, none) in FINDERS.items():
            forms = {"relations, by the kernel": opened(engine, related)}
            with patch(finder, return_value=none):
                forms["relations, beside it"] = opened(engine, related)
                forms["relations, beside it"].run(feeds)  # compiles what it needs
            forms["no relations"] = opened(engine, plain)
            for name, seconds in medians(forms, feeds, options.rounds).items():
                print(f"{engine}, {name}: {1000 * seconds:.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
