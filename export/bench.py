"""`make bench`: the lean runtime against the PyTorch reference, in one run.

Every contender scores the same pairs, from pixels and texts to scores, in a process of its own,
so that its peak memory is its own as well.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dsd_trt import Scorer, read_bundle
from dsd_trt.batching import batch_sizes
from dsd_trt.export.probe import Probe, draw_probe
from dsd_trt.manifest import Manifest

CONTENDERS = {
    "openvino": "dsd-trt on OpenVINO",
    "onnxruntime": "dsd-trt on ONNX Runtime",
    "torch-batched": "PyTorch FP32, same batches",
    "torch": "PyTorch FP32, batch 1",
}
ROUNDS = 5
_MEMORY_MB = 1024  # for activations, which decides how many pairs make a batch

Run = Callable[[], NDArray[np.float32]]


@click.command()
@click.option("--bundle", metavar="FOLDER", help="Bundle to measure.  [default: built in]")
@click.option("--model", default="shapes", show_default=True, help="What it was exported from.")
@click.option("--adapter", type=click.Path(path_type=Path), help="And with which adapter.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Figures as JSON.")
@click.option("--contender", type=click.Choice(list(CONTENDERS)), hidden=True)
def bench(
    bundle: str | None,
    model: str,
    adapter: Path | None,
    output: Path | None,
    contender: str | None,
) -> None:
    """Measure pairs per second and peak memory; print them as a Markdown table."""
    if contender and bundle:
        click.echo(json.dumps(measure(contender, Path(bundle), model, adapter)))
        return
    folder = Scorer.load(bundle, engine="onnxruntime").bundle.folder
    rows: dict[str, dict[str, Any]] = {}
    for name in CONTENDERS:
        click.echo(f"measuring {CONTENDERS[name]}", err=True)
        command = [sys.executable, "-m", "dsd_trt.export.bench", "--contender", name]
        command += ["--bundle", str(folder), "--model", model]
        command += ["--adapter", str(adapter)] if adapter else []
        run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        rows[name] = json.loads(run.stdout)
    reference = np.array(rows["torch"]["scores"])
    for row in rows.values():
        row["max_difference"] = float(np.abs(np.array(row.pop("scores")) - reference).max())
    result = {"machine": describe_machine(), "pairs": reference.size, "contenders": rows}
    click.echo(as_markdown(result))
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(contender: str, bundle: Path, model: str, adapter: Path | None) -> dict[str, Any]:
    """Let one contender score the probe; a first round warms up and does not count.

    Returns:
        Pairs per second of each round, this process's peak memory in MiB, and the scores.
    """
    if contender.startswith("torch"):
        run = _pytorch(contender == "torch-batched", bundle, model, adapter)
    else:
        run = _runtime(contender, bundle)
    scores = run()
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        rates.append(scores.size / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, else KiB
    return {"pairs_per_second": rates, "peak_mib": peak_mib, "scores": scores.tolist()}


def _runtime(engine: str, bundle: Path) -> Run:
    scorer = Scorer.load(bundle, engine, _MEMORY_MB)
    probe = _probe(scorer.manifest)
    return lambda: scorer.score(list(probe.pixels), probe.texts).scores


def _pytorch(batched: bool, bundle: Path, model: str, adapter: Path | None) -> Run:
    # Imported here, so that torch's memory does not count as the lean runtime's.
    from dsd_trt.export.reference import Reference
    from dsd_trt.export.settings import default_adapter
    from dsd_trt.train.adapter import Adapter
    from dsd_trt.train.build import build_scoring_unet
    from dsd_trt.train.libraries import hush_libraries
    from dsd_trt.train.model import load_checkpoint

    hush_libraries()
    manifest = read_bundle(bundle).manifest
    method, folder = manifest.method, adapter or default_adapter(model)
    checkpoint = load_checkpoint(model)
    build = partial(
        build_scoring_unet,
        checkpoint,
        Adapter.load(folder) if folder else None,
        score_layers=method.score_layers,
        levels=method.noise_levels.fractions,
        noise_seed=method.noise_levels.seed,
        pooling=method.pooling,
        lam=method.lam,
        score=method.score,
    )
    batch = batch_sizes(manifest, _MEMORY_MB).triples if batched else 1
    reference = Reference(checkpoint, build, method, batch)
    probe = _probe(manifest)
    return lambda: reference.expect(probe).scores


def _probe(manifest: Manifest) -> Probe:
    return draw_probe(
        manifest.preprocessing.resolution, len(manifest.method.noise_levels.fractions)
    )


def as_markdown(result: dict[str, Any]) -> str:
    """The table, and under it what it was measured on."""
    lines = [
        f"| {result['pairs']} pairs | pairs/s (median) | min to max | peak memory "
        "| max difference to batch 1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["contenders"].items():
        rates = row["pairs_per_second"]
        lines.append(
            f"| {CONTENDERS[name]} | {statistics.median(rates):.1f} "
            f"| {min(rates):.1f} to {max(rates):.1f} | {row['peak_mib']:.0f} MiB "
            f"| {row['max_difference']:.1e} |"
        )
    return "\n".join([*lines, "", result["machine"]])


def describe_machine() -> str:
    """Processor, cores this process may use, versions and date."""
    names = ("dsd-trt", "torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, {platform.system()}, Python "
        f"{platform.python_version()}, {versions}; {date.today().isoformat()}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    bench()
