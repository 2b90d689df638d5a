"""Measure few-shot training and scoring in PyTorch at a family's real size, with random weights.

python benchmarks/measure_training.py [--family sd21-base] [--tiny] [--work DIR]

For a GPU; on a CPU it takes hours without --tiny. Prints the median seconds per step of 32 pairs at
one noise level, PyTorch's peak memory on the GPU, and the seconds for scoring 64 pairs at four
levels in FP32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dsd_trt.errors import DsdError
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
from dsd_trt.train.run.device import best_device
from dsd_trt.train.run.libraries import hush_libraries
from dsd_trt.train.shapes.datasets import shapes_comvg

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "FP32": {},
    "FP16": {"mixed_precision": "fp16"},
    "BF16": {"mixed_precision": "bf16"},
    "FP16, recompute": {"mixed_precision": "fp16", "recompute": True},
    "FP16, pair and matrix mode": {"mixed_precision": "fp16", "mode": "both"},
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="sd21-base")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    hush_libraries()
    on_gpu = best_device().type == "cuda"
    about = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{options.family}, {about}, torch {torch.__version__}")
    family = FAMILIES[options.family]
    questions = list(shapes_comvg(40, seed=1))
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        model = Path(scratch) / "model"
        write_random_model(model, tiny(family) if options.tiny else family)
        print("| few-shot training | seconds a step | GB |\n|---|---:|---:|")
        for number, (name, change) in enumerate(CHANGES.items()):
            _forget_peak(on_gpu)
            stamps: list[float] = []

            def note(stage: str, *_: object, stamps: list[float] = stamps) -> None:
                if stage == "training":
                    stamps.append(time.perf_counter())

            settings = FewShotSettings(steps=16, learning_rate=1e-3, **change)
            out = Path(scratch) / f"adapter-{number}"
            train_adapter(str(model), questions, settings, out, {}, validation=0, progress=note)
            step = statistics.median(after - before for before, after in pairwise(stamps[3:]))
            print(f"| {name} | {step:.3f} | {_peak(on_gpu):.1f} |", flush=True)
        _forget_peak(on_gpu)
        score = by_model(str(model), None)
        score(questions[:8])
        start = time.perf_counter()
        score(questions[:32])
        seconds = time.perf_counter() - start
        print(f"scoring 64 pairs in FP32: {seconds:.2f} s, {_peak(on_gpu):.1f} GB")


def _forget_peak(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(on_gpu: bool) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
