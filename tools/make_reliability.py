"""Run every torture test, and write reliability.md with their counts: `make torture`.

python tools/make_reliability.py --triton .venv-triton/bin/python

The exit code is 1 if a test failed; the page is written in any case, and reports it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
LIBRARIES = ("dsd-trt", "onnxruntime", "openvino", "torch", "pillow", "numpy", "pyarrow")
TOTALS = {
    "kills": "kills ",
    "mutated images": "mutated .*images",
    "mutated bundles, adapters, indexes, tables": "mutated (bundles|adapters|indexes|tables)",
    "requests to Triton": "Triton requests",
}
FAULTS = {
    "lost": "earlier output is gone, or differs from that of an undisturbed run",
    "doubled": "an answer or a row appears twice",
    "half-written": "a file or folder under its name is neither the old nor the new one",
    "left behind": "unfinished files, memory, threads or open files remain after the next run",
    "wrong": "a score, an image or a refusal is incorrect",
    "hung": "no end within the time limit",
    "foreign exceptions": "a traceback, a crash, an error that is not a `DsdError`",
    "bytes sent": "a packet to another machine, or a look-up of its name",
}


@dataclass(frozen=True)
class Run:
    """Counts from the tests.

    Attributes:
        lines: counts of finished tests, as written by `tests/support/torture.py`.
        failed: failed tests by name, with the reason.
        skipped: skipped tests by name, with the reason.
        seconds: wall time in seconds.
    """

    lines: list[dict[str, Any]]
    failed: dict[str, str]
    skipped: dict[str, str]
    seconds: float


def run(commands: Sequence[Sequence[str]], scale: float) -> Run:
    """Run pytest several times in sequence."""
    lines, failed, skipped = list[dict[str, Any]](), dict[str, str](), dict[str, str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.jsonl"
        environment = {
            **os.environ,
            "DSD_TORTURE_FIGURES": str(figures),
            "DSD_TORTURE_SCALE": str(scale),
        }
        for number, command in enumerate(commands):
            report = Path(scratch) / f"{number}.xml"
            ended = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environment)
            if not report.exists():
                failed[" ".join(command)] = f"ended with {ended.returncode}"
                continue
            for case in ElementTree.parse(report).iter("testcase"):
                name = f"{case.get('classname')}::{case.get('name')}"
                for found, into in (("failure", failed), ("error", failed), ("skipped", skipped)):
                    if (node := case.find(found)) is not None:
                        into[name] = (node.get("message") or found).splitlines()[0]
        if figures.exists():
            lines += map(json.loads, figures.read_text("utf-8").splitlines())
    return Run(lines, failed, skipped, time.monotonic() - began)


def render(ran: Run, command: str) -> str:
    """Content of reliability.md."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in ran.lines:
        rows.setdefault(line["what"], []).append(line)
    found = sum((Counter(line["faults"]) for line in ran.lines), Counter[str]())
    scales = sorted({line["scale"] for line in ran.lines})
    span = " to ".join(f"{it:g}" for it in dict.fromkeys((*scales[:1], *scales[-1:])))
    share = f" at {span} of its counts" if scales and scales != [1] else ""
    parts = [
        "# Reliability\n",
        wrapped(
            f"Written by `{command}`{share}. Every figure is a counter of a test. "
            f"{machine()}; {datetime.date.today()}; {ran.seconds / 60:.0f} minutes."
        ),
        wrapped(
            f"**{sum(found.values())} faults** in {len(ran.lines)} tests"
            + (f", and {len(ran.failed)} tests failed" if ran.failed else "")
            + f"; {', '.join(totals(ran.lines))}."
        ),
        "| test | count | faults looked for | faults found |\n|---|---:|---|---:|",
    ]
    for what in sorted(rows):
        group = rows[what]
        tried = sum(line["tried"] for line in group)
        looked_for = dict.fromkeys(kind for line in group for kind in line["looked for"])
        faults = sum((Counter(line["faults"]) for line in group), Counter[str]())
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items())) or "0"
        parts.append(f"| {what} | {tried:,} | {', '.join(looked_for)} | {counts} |")
    parts += ["\n## What counts as a fault\n", "| fault | meaning |\n|---|---|"]
    parts += [f"| {kind} | {meaning} |" for kind, meaning in FAULTS.items()]
    parts += ["\n## Outcomes\n", "| test | outcomes | measured |\n|---|---|---|"]
    for what in sorted(rows):
        outcomes = sum((Counter(line["outcomes"]) for line in rows[what]), Counter[str]())
        ended = ", ".join(f"{count:,} {kind}" for kind, count in sorted(outcomes.items()))
        measured = spans(rows[what])
        if ended or measured:
            parts.append(f"| {what} | {ended} | {measured} |")
    for title, tests in (("Failed", ran.failed), ("Skipped", ran.skipped)):
        if tests:
            parts += [f"\n## {title}\n"]
            parts += [f"- `{name}`: `{why[:300]}`" for name, why in sorted(tests.items())]
    return "\n".join(parts) + "\n"


def wrapped(paragraph: str) -> str:
    """A paragraph wrapped to lines, and an empty line."""
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def totals(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Sums of the counts that several rows share."""
    for title, pattern in TOTALS.items():
        count = sum(line["tried"] for line in lines if re.match(pattern, line["what"]))
        if count:
            yield f"{count:,} {title}"


def spans(lines: list[dict[str, Any]]) -> str:
    """Ranges of the quantities of several tests, from smallest to largest."""
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line["measured"].items():
            values.setdefault(name, []).append(value)
    return ", ".join(
        f"{name}: {min(it):g}" + (f" to {max(it):g}" if min(it) != max(it) else "")
        for name, it in values.items()
    )


def machine() -> str:
    """The machine and versions that the tests ran on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{processor}, {cores} cores, {platform.system()}, Python {platform.python_version()}, "
        f"{versions}"
    )


def main() -> int:
    """Run the tests, write the page, and report the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triton", required=True, help="Python of the Triton environment.")
    parser.add_argument("--scale", type=float, default=1, help="Factor on the counts.")
    parser.add_argument("--out", type=Path, default=PAGE, help="File to write; - prints the page.")
    given = parser.parse_args()
    if shutil.which(given.triton) is None:
        parser.error(f"no Python {given.triton!r}; make torture makes one")
    # The Triton server runs alone: its clients have deadlines.
    commands = [
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "torture"],
        [given.triton, "-m", "pytest", "tests/serving", "-m", "torture"],
    ]
    ran = run(commands, given.scale)
    page = render(ran, "make torture")
    if str(given.out) == "-":
        print(page)
    else:
        given.out.write_text(page, "utf-8")
    return int(bool(ran.failed))


if __name__ == "__main__":
    sys.exit(main())
