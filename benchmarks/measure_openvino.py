"""Measure which form of a bundle's pair scorer is fastest on OpenVINO.

python benchmarks/measure_openvino.py [--bundle FOLDER] [--batch 32] [--rounds 25]

Prints milliseconds per pass, the median over all rounds, in which the forms alternate. A form is
compiled for open or fixed batch sizes, and runs on one stream of all threads or on two that halve
the batch. Values are random; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dsd_trt  # noqa: F401  # before OpenVINO: it turns its telemetry off

# isort: split
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.errors import DsdError


def draw(graph: Graph, batch: int) -> dict[str, NDArray[Any]]:
    """Inputs of a batch: every token counts, and every level is the first."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in graph.inputs:
        values = rng.normal(size=spec.of_batch(batch))
        feeds[spec.name] = (np.zeros_like(values) if spec.name == "level" else values).astype(
            spec.dtype
        )
    feeds["token_mask"][:] = 1
    return feeds


def prepare(
    path: Path, graph: Graph, precision: str, batch: int, fixed: bool, streams: int
) -> Callable[[], float]:
    """Compile one form; returns a function that runs a batch and returns milliseconds per pass."""
    model = ov.Core().read_model(path)
    if fixed:
        shapes = {port.any_name: list(port.partial_shape) for port in model.inputs}
        for spec in graph.inputs:
            if spec.batched:
                shapes[spec.name][0] = batch // streams
        model.reshape(shapes)
    settings = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": streams}
    queue = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", settings), streams)
    part = draw(graph, batch // streams)

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(streams):
            queue.start_async(part, share_inputs=True)
        queue.wait_all()
        return 1000 * (time.perf_counter() - begin) / batch

    run()  # generates kernels
    return run


def main() -> None:
    """Measure all forms, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="folder of a bundle (default: the demonstration's)")
    parser.add_argument(
        "--batch", type=int, default=32, help="batch size, an even number (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    bundle = read_bundle(bundle_folder(options.bundle))
    graph = bundle.manifest.graphs["pair_scorer"]
    forms = {
        (fixed, streams, precision): prepare(
            bundle.path(graph.file), graph, precision, options.batch, fixed, streams
        )
        for fixed in (False, True)
        for streams in (1, 2)
        for precision in ("f32", "bf16")
    }
    seconds: dict[tuple[bool, int, str], list[float]] = {form: [] for form in forms}
    for _ in range(options.rounds):
        for form, run in forms.items():
            seconds[form].append(run())
    print("| batches | streams | FP32 | BF16 |\n|---|---|---:|---:|")
    for fixed in (False, True):
        for streams in (1, 2):
            full, half = (
                statistics.median(seconds[fixed, streams, precision])
                for precision in ("f32", "bf16")
            )
            size = "fixed size" if fixed else "any size"
            print(f"| {size} | {streams} | {full:.3g} | {half:.3g} |")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
