"""Measure how time and memory grow with the input, and write growth.md and growth.png.

python tools/make_growth.py [--rounds 3] [--quick] [--out docs] [--work build/growth]

Every point runs in a separate process. Points in --work are reused if machine, versions and day are
the same, so a stopped run can be continued.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

MODES = ("pair", "matrix")
RESOLUTION = 64  # resolution of the demonstration; its U-Net accepts any multiple of 16


@dataclass(frozen=True)
class Setting:
    """Workload of one point, and its number of threads."""

    mode: str = "pair"
    images: int = 16
    texts: int = 8
    levels: int = 4
    resolution: int = RESOLUTION
    threads: int = 1


@dataclass(frozen=True)
class Point:
    """A setting with its measurements: median seconds, and peak memory of the process."""

    setting: Setting
    seconds: float
    peak_mib: float


def series(threads: int) -> dict[str, list[int]]:
    """Values of each axis for a number of threads; everything else as in `Setting`."""
    powers = [2**i for i in range(threads.bit_length())]
    return {
        "images": [4, 8, 16, 32],
        "texts": [2, 4, 8, 16],
        "levels": [1, 2, 3, 4],
        "resolution": [64, 96, 128],
        "threads": powers,
    }


def settings(threads: int, *, quick: bool) -> Iterator[tuple[str, Setting]]:
    """All settings of every axis; with `quick`, only the ends of each axis."""
    for mode in MODES:
        for axis, values in series(threads).items():
            for value in (values[:: max(len(values) - 1, 1)]) if quick else values:
                changed: dict[str, Any] = {axis: value}
                yield axis, replace(Setting(mode, threads=threads), **changed)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Exponent p of the power law y ~ x^p, fitted by least squares to the logarithms."""
    if len(set(xs)) < 2:
        return math.nan
    return statistics.linear_regression([*map(math.log, xs)], [*map(math.log, ys)]).slope


def measure(bundle: Path, setting: Setting, rounds: int) -> Point:
    """Score `rounds` times after a warm-up, in this process, bound to some cores."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[: setting.threads])
    from dsd_trt import Scorer
    from dsd_trt.export.probe import draw_probe

    scorer = Scorer.load(bundle, mode=setting.mode)  # type: ignore[arg-type]
    images = list(draw_probe(setting.resolution, 1, count=setting.images).pixels)
    texts = [f"a red circle left of star {i}" for i in range(setting.texts)]
    levels = scorer.manifest.method.noise_levels.fractions[: setting.levels]
    seconds = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        scorer.score(images, texts, levels)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Point(setting, statistics.median(seconds[1:]), peak)


def export(work: Path, resolution: int) -> Path:
    """Export the demonstration's checkpoint at a given resolution, with a matrix scorer."""
    bundle, model = work / f"bundle-{resolution}", work / f"model-{resolution}"
    if (bundle / "bundle.json").exists():
        return bundle
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(str(resources.files("dsd_trt") / "data" / "shapes-model"), model)
    path = model / "unet" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["sample_size"] = config["sample_size"] * resolution // RESOLUTION
    path.write_text(json.dumps(config), encoding="utf-8")
    # In a separate process: memory of this one would count in the peaks of its children.
    command = [sys.executable, "-m", "dsd_trt", "export", "--model", str(model), "--matrix"]
    command += ["--adapter", str(model / "adapter"), "--out", str(bundle), "--verify", "quick"]
    subprocess.run([*command, "--force"], check=True, stdout=subprocess.DEVNULL)
    return bundle


def measure_all(work: Path, rounds: int, *, quick: bool) -> tuple[str, list[tuple[str, Point]]]:
    """The machine, and the points of every axis; finished points are read from the work folder."""
    from dsd_trt.export.benchmark.machine import describe_machine

    machine, kept = f"{describe_machine()}, median of {rounds}", work / "points.json"
    work.mkdir(parents=True, exist_ok=True)
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    points = known.get(machine, {})
    environment = {**os.environ, "DSD_TRT_CACHE": str(work.resolve() / "cache")}
    found = []
    for axis, setting in settings(len(os.sched_getaffinity(0)), quick=quick):
        key = json.dumps(asdict(setting))
        if key not in points:
            print(f"measuring {key}", file=sys.stderr)
            bundle = export(work, setting.resolution)
            command = [sys.executable, __file__, "--point", key, "--rounds", str(rounds)]
            run = subprocess.run(
                [*command, "--work", str(bundle)], env=environment, stdout=-1, check=True
            )
            points[key] = json.loads(run.stdout)
            kept.write_text(json.dumps({machine: points}, indent=1), encoding="utf-8")
        found.append((axis, Point(setting, *points[key])))
    return machine, found


def table(machine: str, found: Sequence[tuple[str, Point]]) -> str:
    """Content of growth.md: slopes first, then every point."""
    base = next(point for _, point in found).setting
    lines = [
        "# How time and memory grow",
        "",
        "Written by `python tools/make_growth.py`. The demonstration scores "
        f"{Setting.images} images x {Setting.texts} texts at {Setting.levels} levels of "
        f"{Setting.resolution} x {Setting.resolution} pixels, with {base.threads} threads. Each "
        "row varies one of these.",
        "",
        "- **Slope** is the exponent p of time ~ x^p (or memory ~ x^p), fitted to all points of "
        "the axis. 1 is proportional, 0 constant; for threads, -1 is ideal.",
        "- **Memory** is the peak memory of the process, program and weights included. Batches "
        "grow with the work until they fill `memory_budget_mb`, 1024 here.",
        "- **Resolution**: x is the side.",
        "",
        "![Time and memory against what is scored](growth.png)",
        "",
        "| mode | axis | from - to | slope of time | slope of memory |",
        "|---|---|---|---:|---:|",
    ]
    for mode, axis, points in _curves(found):
        xs = _values(axis, points)
        times, peaks = [it.seconds for it in points], [it.peak_mib for it in points]
        lines.append(
            f"| {mode} | {axis} | {xs[0]} - {xs[-1]} | {slope(xs, times):.2f} "
            f"| {slope(xs, peaks):.2f} |"
        )
    lines += ["", "| mode | axis | | seconds | MiB |", "|---|---|---:|---:|---:|"]
    for mode, axis, points in _curves(found):
        for x, it in zip(_values(axis, points), points, strict=True):
            lines.append(f"| {mode} | {axis} | {x} | {it.seconds:.3g} | {it.peak_mib:.0f} |")
    return "\n".join([*lines, "", f"{machine}."]) + "\n"


def draw(found: Sequence[tuple[str, Point]], path: Path) -> None:
    """Draw growth.png, one column per axis: time above (logarithmic), memory below (from zero)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(axis for axis, _ in found))
    figure, grid = plt.subplots(2, len(axes), figsize=(2.6 * len(axes), 5), sharey="row")
    for mode, axis, points in _curves(found):
        xs, column = _values(axis, points), axes.index(axis)
        measured = [it.seconds for it in points], [it.peak_mib for it in points]
        for cell, ys in zip(grid[:, column], measured, strict=True):
            cell.loglog(xs, ys, "o-", ms=3, label=f"{mode}, slope {slope(xs, ys):.2f}")
            cell.set_xticks(xs, [str(x) for x in xs], minor=False)
            cell.xaxis.minorticks_off()
            cell.legend(fontsize=7)
            cell.grid(alpha=0.3)
        grid[1, column].set_xlabel(axis)
        grid[1, column].set_yscale("linear")
    grid[1, 0].set_ylim(bottom=0)
    grid[0, 0].set_ylabel("seconds")
    grid[1, 0].set_ylabel("peak memory, MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _curves(found: Sequence[tuple[str, Point]]) -> Iterator[tuple[str, str, list[Point]]]:
    for mode, axis in dict.fromkeys((point.setting.mode, axis) for axis, point in found):
        yield mode, axis, [it for on, it in found if (it.setting.mode, on) == (mode, axis)]


def _values(axis: str, points: Sequence[Point]) -> list[int]:
    return [getattr(it.setting, axis) for it in points]


def main() -> None:
    """Measure, then write growth.md and growth.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only the ends of each axis")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--work", type=Path, default=Path(__file__).parents[1] / "build" / "growth")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        point = measure(given.work, Setting(**json.loads(given.point)), given.rounds)
        print(json.dumps([point.seconds, point.peak_mib]))
        return
    machine, found = measure_all(given.work, given.rounds, quick=given.quick)
    (given.out / "growth.md").write_text(table(machine, found), encoding="utf-8")
    draw(found, given.out / "growth.png")


if __name__ == "__main__":
    main()
