"""Run commands that are killed at random moments and started again.

The time of a kill counts from the end of the library imports, before which nothing is written.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torture import Figures, scaled

KINDS = ("lost", "left behind", "hung")
"""Of faults that `kill_often` sees; of a command that replaces, "half-written" as well."""

READY = "its libraries are there"
_PROGRAM = f"""
import sys
import {{modules}}
from dsd_trt.commands.main import main
print({READY!r}, flush=True)
main(sys.argv[1:])
"""
LONGEST = 600.0  # seconds after which a command counts as hung


def same_bytes(name: str, content: bytes) -> bytes:
    """Compare files by their bytes, for files that are the same in every run."""
    return content


@dataclass(frozen=True)
class Command:
    """A command that writes files.

    Attributes:
        arguments: arguments of `dsd-trt`, with paths relative to its working folder.
        kills: number of kills in a complete torture run.
        modules: modules to import before the time of a kill starts.
        code: exit code of an undisturbed run.
        replaces: whether its output replaces the old output atomically: at any moment one of
            them is complete.
        compared: function from a file's name and content to the part that must be reproducible.
        long: whether a slice of the torture run leaves the command out.
        prepare: function that writes the command's inputs to its working folder.
    """

    arguments: Sequence[str | Path]
    kills: int
    modules: str = "dsd_trt.scorer, onnxruntime"
    code: int = 0
    replaces: bool = False
    compared: Callable[[str, bytes], object] = same_bytes
    long: bool = False
    prepare: Callable[[Path], None] = field(default=lambda folder: None)

    @property
    def program(self) -> list[str | Path]:
        """The program to start, with its arguments."""
        return [sys.executable, "-c", _PROGRAM.format(modules=self.modules), *self.arguments]

    def start(self, folder: Path) -> subprocess.Popen[str]:
        """Start the command, and wait until its libraries are imported."""
        with folder.with_name(f"{folder.name}.said").open("wb") as errors:
            process = subprocess.Popen(
                self.program,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that its children are killed with it
            )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{READY}\n", said(folder)
        return process

    def run(self, folder: Path) -> float:
        """Run the command to its end; returns the time it took, in seconds."""
        process = self.start(folder)
        began = time.monotonic()
        try:
            process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs: {said(folder)}") from None
        finally:
            _kill(process)
        assert process.returncode == self.code, said(folder)
        return time.monotonic() - began

    def killed(self, folder: Path, seconds: float) -> bool:
        """Kill the command after `seconds`; returns whether it was still running."""
        process = self.start(folder)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return True
        finally:
            _kill(process)
        assert process.returncode == self.code, said(folder)
        return False

    def written(self, folder: Path) -> Mapping[str, object]:
        """All files of a folder, in the form in which they are compared."""
        return {
            str(path.relative_to(folder)): self.compared(path.name, path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def said(folder: Path) -> str:
    """Standard error of the last command in a folder."""
    return folder.with_name(f"{folder.name}.said").read_text()[-2000:]


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def kill_often(command: Command, scratch: Path, figures: Figures) -> None:
    """Kill a command at random moments, run it to its end, and compare with an undisturbed run."""
    whole = begin(command, scratch / "whole")
    before = command.written(whole)
    seconds = command.run(whole)
    after = command.written(whole)
    figures.measured["seconds undisturbed"] = round(seconds, 2)

    draw = random.Random(repr(command.arguments[0]))
    folder = begin(command, scratch / "killed")
    left = scaled(command.kills, 2)
    while left:
        if command.killed(folder, draw.uniform(0, seconds)):
            left -= 1
            figures.ended()
            if not command.replaces:
                continue
            there = {
                name: content
                for name, content in command.written(folder).items()
                if not any(part.startswith(".") for part in Path(name).parts)
            }
            if there not in (before, after):
                figures.fault("half-written", f"kill {figures.tried}: {differ(there, after)}")
            if there == after:  # all was done, but the process had not ended
                begin(command, folder)
        else:  # it ended before the kill: check its output and start over
            _compare(command, folder, after, figures)
            begin(command, folder)
    command.run(folder)
    _compare(command, folder, after, figures)


def begin(command: Command, folder: Path) -> Path:
    """Create a fresh folder with the command's inputs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command.prepare(folder)
    return folder


def _compare(command: Command, folder: Path, after: Mapping[str, object], figures: Figures) -> None:
    found = command.written(folder)
    if more := sorted(found.keys() - after.keys()):
        figures.fault("left behind", more)
    elif found != after:
        figures.fault("lost", differ(found, after))
    figures.outcomes["run to the end and compared"] += 1


def differ(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """Names of the files that differ between two runs."""
    names = sorted(it for it in {*found, *wanted} if found.get(it) != wanted.get(it))
    return f"{names} are not the same"
