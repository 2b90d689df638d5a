"""On the GPU machine: run stages, each with a time limit, and collect their results.

    python3 tools/gpu_offline/run_stages.py facts export
    python3 tools/gpu_offline/run_stages.py --list

A stage that fails or is late costs the others nothing. `results.json` has the results, and
`results.tgz` all that the stages wrote. Both are written after each stage, so that a call that is
cut short keeps what was done. `--dry-run` checks, on a machine without a GPU, that every stage gets
as far as the missing driver; there every limit is twelve times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages import ABSENT, BY_NAME, LACKING, ROOT, STAGES, TOOLS, Stage
from unpack import KIT

TAIL = 25  # lines of a stage's output that are printed
KILL_AFTER = 5  # seconds from SIGTERM to SIGKILL
WITHIN = 600  # seconds of a call
SLOWER = 12  # how much longer a dry run may take, on a machine with fewer cores
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Result:
    """How a stage ended.

    Attributes:
        stage: name of the stage, one of `STAGES`.
        status: "done", "failed", "late", "skipped", or "started" in the background.
        seconds: duration of the stage in seconds.
        exit_code: exit code of its last command; None if there is none.
        message: reason of a stage that is not done, or its last lines of output.
    """

    stage: str
    status: str
    seconds: float
    exit_code: int | None = None
    message: str = ""


class Runner:
    """Runs stages in a kit.

    Args:
        kit: folder of the unpacked kit; results are kept in its folder `results`.
        out: folder that gets copies of the results.
        python: interpreter of the stages.
    """

    def __init__(self, kit: Path, out: Path, python: str = sys.executable) -> None:
        self.kit, self.out, self.python = kit, out, python
        self.results = kit / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage, left: float) -> Result:
        """Run a stage within its limit, or start it in the background.

        Args:
            stage: the stage that is run.
            left: seconds after which it ends whatever its own limit; it may wait that long for the
                stage before it, which its own limit does not count.
        """
        if waits := [name for name in stage.needs if not (self.kit / name).is_dir()]:
            reason = f"{', '.join(waits)} has not been unpacked"
            return Result(stage.name, "skipped", 0.0, message=reason)
        if stage.background:
            return self._start(stage)
        began = time.monotonic()
        if stage.after is not None and (fault := self._wait(stage.after, left)):
            return Result(stage.name, "skipped", time.monotonic() - began, message=fault)
        deadline = min(time.monotonic() + stage.limit, began + left)
        with (self.results / f"{stage.name}.log").open("wb") as log:
            code = self._commands(stage, log, deadline)
        text = (self.results / f"{stage.name}.log").read_text("utf-8", "replace")
        status = "late" if code is None else "failed" if code else "done"
        tail = "\n".join(text.splitlines()[-TAIL:])
        return Result(stage.name, status, time.monotonic() - began, code, tail)

    def _commands(self, stage: Stage, log: Any, deadline: float) -> int | None:
        """Exit code of the stage's last command; None if it was stopped at the deadline."""
        folders = {"kit": self.kit, "out": self.results, "root": ROOT, "tools": TOOLS}
        for command in stage.commands:
            words = [self.python, *(resolve(word, folders) for word in command)]
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=self.environment(stage),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children can be stopped with it
            )
            try:
                code = process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _stop(process)
                return None
            except BaseException:
                _stop(process)
                raise
            if code:
                return code
        return 0

    def environment(self, stage: Stage) -> dict[str, str]:
        """Variables of a stage: the kit's packages come before the machine's own."""
        paths = [*(self.kit / name for name in stage.first), ROOT]
        mine = {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        mine["DSD_TRT_CACHE"] = str(self.kit / "cache")
        return {**os.environ, **QUIET, **mine}

    def _start(self, stage: Stage) -> Result:
        """Start a stage in a session of its own, which outlasts this call."""
        (self.kit / f"{stage.name}.json").unlink(missing_ok=True)
        command = [self.python, __file__, "--kit", str(self.kit), "--out", str(self.out)]
        with (self.results / f"{stage.name}.log").open("wb") as log:
            subprocess.Popen(
                [*command, "--in-background", stage.name],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Result(stage.name, "started", 0.0)

    def background(self, stage: Stage) -> None:
        """Run a background stage to its end, in this process, and note how it ended."""
        began = time.monotonic()
        os.nice(5)  # other stages time the processor's part as well
        code = self._commands(stage, None, began + stage.limit)
        status = "late" if code is None else "failed" if code else "done"
        result = Result(stage.name, status, time.monotonic() - began, code)
        partial = self.kit / f".{stage.name}.json"
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.rename(self.kit / f"{stage.name}.json")

    def _wait(self, name: str, limit: float) -> str | None:
        """Wait for a background stage; returns why its results are not there, or None."""
        began, ended = time.monotonic(), self.kit / f"{name}.json"
        log = self.results / f"{name}.log"
        if not log.exists():
            return f"{name} has not been started"
        while not ended.exists():
            if time.monotonic() - began > limit:
                return f"{name} has not ended after {limit:.0f} seconds of waiting"
            time.sleep(0.2)
        result = Result(**json.loads(ended.read_text(encoding="utf-8")))
        self.note(result)
        return None if result.status == "done" else f"{name} {result.status}: see {name}.log"

    def note(self, result: Result) -> None:
        """Add a result to `results.json`, with the reports written so far, and pack all of it."""
        path = self.results / "results.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        stages = {**known.get("stages", {}), result.stage: asdict(result)}
        reports = {it.stem: _json(it) for it in sorted(self.results.glob("*.json")) if it != path}
        tables = {it.stem: it.read_text(encoding="utf-8") for it in self.results.glob("*.md")}
        when = datetime.now(UTC).isoformat(timespec="minutes")
        content = {"when": when, "stages": stages, "reports": reports, "tables": tables}
        partial = path.with_name(".results.json")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.rename(path)
        shutil.copy(path, self.out)
        with tarfile.open(self.kit / "results.tgz", "w:gz") as packed:
            packed.add(self.results, "results")
        shutil.copy(self.kit / "results.tgz", self.out)


def resolve(word: str, folders: Mapping[str, Path]) -> str:
    """A word of a command with its folders filled in."""
    for name, folder in folders.items():
        word = word.replace(f"{{{name}}}", str(folder))
    return word


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # of a stage that was stopped while it wrote


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process with its children."""
    for number, seconds in ((signal.SIGTERM, KILL_AFTER), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def lost_links(root: Path) -> list[str]:
    """Commands that restore the clone's links, which not every transfer keeps."""
    names = ("train", "export", "engines")
    lost = [name for name in names if not (root / "dsd_trt" / name / "__init__.py").is_file()]
    return [f"ln -sfn ../{name} dsd_trt/{name}" for name in lost]


def verdict(stage: Stage, result: Result, log: str) -> str | None:
    """Why a stage did not get as far as it can without a GPU, or None if it did.

    Args:
        stage: the stage that was run.
        result: how the stage has ended.
        log: everything that the stage wrote.
    """
    if not stage.gpu:
        return None if result.status in ("done", "started") else f"{result.status}"
    if lacks := re.search(f".*({LACKING}).*", log):
        return f"more than the driver is missing: {lacks[0]}"
    if result.status == "failed" and re.search(ABSENT, log):
        return None
    return f"{result.status}, and not because the driver is missing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="names, run in this order")
    parser.add_argument("--list", action="store_true", help="list the stages with their limits")
    parser.add_argument("--dry-run", action="store_true", help="expect every driver to be missing")
    parser.add_argument(
        "--within",
        type=float,
        help=f"seconds after which no stage goes on [{WITHIN}; of a dry run {SLOWER * WITHIN}]",
    )
    parser.add_argument("--kit", type=Path, default=KIT, help=f"folder of the kit [{KIT}]")
    parser.add_argument(
        "--out",
        type=Path,
        default=os.environ.get("OUT", "gpu-offline-results"),
        help="folder for results.json and results.tgz [$OUT, else gpu-offline-results]",
    )
    parser.add_argument("--in-background", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.list:
        for stage in STAGES:
            print(f"{stage.name:20} {stage.limit:4} s  {stage.about}")
        return 0
    if unknown := [name for name in given.stages if name not in BY_NAME]:
        parser.error(f"there is no stage {unknown[0]!r}; choose from {', '.join(BY_NAME)}")
    names = given.stages or [stage.name for stage in STAGES if not stage.optional]
    if commands := lost_links(ROOT):
        print(f"the transfer lost links of the clone: {' && '.join(commands)}", file=sys.stderr)
        return 2
    try:
        runner = Runner(given.kit.resolve(), given.out.resolve())
    except OSError as error:
        parser.error(f"results cannot be written: {error}")
    if given.in_background:
        runner.background(BY_NAME[names[0]])
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops the running stage as well
    slower = SLOWER if given.dry_run else 1
    within = slower * WITHIN if given.within is None else given.within
    began, faults = time.monotonic(), []
    for name in names:
        stage = replace(BY_NAME[name], limit=slower * BY_NAME[name].limit)
        print(f"[{time.monotonic() - began:.0f} s] {name}: {stage.about}", flush=True)
        left = within - (time.monotonic() - began)
        if left <= 0:
            result = Result(name, "skipped", 0.0, message="no time is left")
        else:
            result = runner.run(stage, left)
        runner.note(result)
        print(result.message)
        print(f"-- {name} {result.status} after {result.seconds:.1f} s", flush=True)
        if given.dry_run:
            log = runner.results / f"{name}.log"
            text = log.read_text("utf-8", "replace") if log.exists() else ""
            if (against := verdict(stage, result, text)) is not None:
                faults.append(f"{name}: {against}")
        elif result.status not in ("done", "started"):
            faults.append(f"{name}: {result.status}")
    for fault in faults:
        print(fault, file=sys.stderr)
    if given.dry_run and not faults:
        print("every stage got as far as it can without a GPU")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
