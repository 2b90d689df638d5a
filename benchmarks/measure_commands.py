"""Measure what the documentation's commands take: seconds, peak memory, and disk they write.

python benchmarks/measure_commands.py [--only TEXT] [--rounds N]

The commands run one after the other in a temporary folder that has the clone's examples. Those
below ten seconds run again, and medians are printed, as rows of a Markdown table. Peak memory is
that of the largest process.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.export.benchmark.machine import describe_machine

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "dsd-trt score examples/images examples/texts.txt",
    "dsd-trt score --pairs examples/pairs.csv -o scored.csv",
    "dsd-trt filter examples/pairs.csv --keep-best 80% -o kept.csv",
    "dsd-trt calibrate shapes --data examples/labelled.csv --dry-run",
    "dsd-trt index examples/images index",
    "dsd-trt train --data examples/labelled.csv --out from-table",
    "dsd-trt train --data shapes-comvg --limit 100 --out adapter",
    "dsd-trt export --adapter adapter --out my-scorer",
    "dsd-trt eval my-scorer --data shapes-comvg --limit 500",
    "dsd-trt score examples/images examples/texts.txt --bundle my-scorer",
)
"""In this order: a command may need what another one wrote."""

SHORT = 10.0  # seconds below which a command is measured several times


@dataclass(frozen=True)
class Took:
    """What a command took.

    Attributes:
        seconds: time from start to exit, in seconds.
        peak_mib: peak memory of its largest process, in MiB.
        written_mib: growth of the folder it ran in, in MiB.
    """

    seconds: float
    peak_mib: float
    written_mib: float


def main() -> None:
    """Measure the commands, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="measure only commands that contain this text")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each short command")
    options = parser.parse_args()
    chosen = [command for command in COMMANDS if options.only in command]
    if not chosen:
        parser.error(f"no command contains {options.only!r}: {'; '.join(COMMANDS)}")
    print(describe_machine())
    print("| command | seconds | MiB of memory | MiB written |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        for command in chosen:
            took = measure(command, Path(folder), options.rounds)
            digits = 1 if took.seconds < SHORT else 0
            print(
                f"| `{command}` | {took.seconds:.{digits}f} | {took.peak_mib:.0f} "
                f"| {took.written_mib:.1f} |",
                flush=True,
            )


def measure(command: str, folder: Path, rounds: int) -> Took:
    """Medians of a command's runs.

    Raises:
        SystemExit: it failed; the message has what it said.
    """
    before, there = _size(folder), set(folder.iterdir())
    runs = [_run(command, folder)]
    while runs[0][0] < SHORT and len(runs) < rounds:
        for path in set(folder.iterdir()) - there:  # so that the next run starts from the beginning
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        runs.append(_run(command, folder))
    seconds, peaks = zip(*runs, strict=True)
    return Took(
        statistics.median(seconds), statistics.median(peaks), (_size(folder) - before) / 2**20
    )


def _run(command: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak memory, in MiB, of one run."""
    program, *words = shlex.split(command)
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(program), *words],
            cwd=folder,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{command} failed: {said.read().decode(errors='replace')[-2000:]}")
    return seconds, used.ru_maxrss / 1024


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, without those behind links."""
    return sum(path.lstat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for top, _, names in os.walk(folder):
        yield from (Path(top) / name for name in names)


if __name__ == "__main__":
    main()
