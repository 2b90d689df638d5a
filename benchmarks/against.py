"""Compare the working tree with another commit: cold start, throughput, peak memory, export.

    python benchmarks/against.py REF
    python benchmarks/against.py REF --works export

Each build is installed into a separate environment, with the versions of its own constraints.txt.
Uncommitted changes of the working tree are included. The builds alternate, and every measurement
runs in a new process, so that other load on the machine affects both. CPU time is shown beside wall
time, because it depends less on other programs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKLOAD = Path(__file__).with_name("workload.py")
ENVIRONMENTS = ROOT / ".venv-against"
WORKS = ("import", "start", "pairs", "files", "index")
ENGINES = ("onnxruntime", "openvino", "openvino-bf16")
MODELS = {"shapes": "the demonstration", "tiny": "a tiny Stable Diffusion 1.5"}


@dataclass(frozen=True)
class Build:
    """A build with its environment."""

    name: str
    folder: Path

    def workload(self, *arguments: object) -> tuple[dict[str, Any], float]:
        """Run `workload.py` to its end.

        Returns:
            The JSON it printed, and the seconds from its start until then.

        Raises:
            MeasurementError: the run failed; the message has its last output.
        """
        # Separate caches, so that no build uses what the other compiled. And onnxruntime is
        # kept from sending telemetry, even if a build does not turn it off.
        variables = {"DSD_TRT_CACHE": str(self.folder / "cache"), "ORT_DISABLE_TELEMETRY": "1"}
        command = [self.folder / "bin" / "python", "-I", WORKLOAD, *arguments]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
            began = time.perf_counter()
            with subprocess.Popen(
                list(map(str, command)),
                stdout=subprocess.PIPE,
                stderr=complaints,
                cwd=self.folder,
                env=os.environ | variables,
                encoding="utf-8",
            ) as process:
                assert process.stdout is not None
                said = process.stdout.readline()
                seconds = time.perf_counter() - began
            if process.returncode or not said:
                complaints.seek(0)
                raise MeasurementError((complaints.read().strip().splitlines() or ["?"])[-1])
        return json.loads(said), seconds


class MeasurementError(Exception):
    """A build could not be measured."""


@dataclass(frozen=True)
class Row:
    """One quantity of both builds, one value per round.

    Attributes:
        what: name of the measured quantity.
        unit: unit of the values, such as "pairs/s".
        better: "higher" or "lower", the direction of improvement.
        before: values of REF, one per round.
        after: values of the working tree, one per round.
    """

    what: str
    unit: str
    better: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Working tree over REF within each round: load on the machine affects both."""
        return [a / b for a, b in zip(self.after, self.before, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Medians, ranges and raw values, for JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "better": self.better,
            **{
                name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                for name, values in (
                    ("before", self.before),
                    ("after", self.after),
                    ("ratio", self.ratios),
                )
            },
            "rounds": {"before": self.before, "after": self.after},
        }


def table(rows: Iterable[Row], before: str, after: str) -> str:
    """All rows as a Markdown table."""
    lines = [
        f"| | {before} | min to max | {after} | min to max | ratio | min to max |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.what}, {row.unit}" if row.unit else row.what]
        for values in (row.before, row.after):
            cells += [f"{statistics.median(values):.4g}", f"{min(values):.4g} to {max(values):.4g}"]
        ratios = row.ratios
        cells += [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Measurement:
    """One run of `workload.py` with its quantities: key, name, unit, direction of improvement.

    Attributes:
        work: first argument of `workload.py`.
        subject: engine or model it is done with; None if it needs neither.
        quantities: keys of what it prints, with a row's name, unit and direction.
    """

    work: str
    subject: str | None
    quantities: tuple[tuple[str, str, str, str], ...]

    def of(self, build: Build, folder: Path) -> dict[str, float]:
        """Measure a build once, in a new process."""
        arguments = [self.work] if self.subject is None else [self.work, self.subject, folder]
        found, seconds = build.workload(*arguments)
        return {"seconds": seconds, **found}


def measurements(engines: Sequence[str]) -> Iterator[Measurement]:
    """All measurements, the fastest first."""
    yield Measurement(
        "import",
        None,
        (
            ("seconds", "import of Scorer", "s", "lower"),
            ("processor", "import of Scorer, processor time", "s", "lower"),
        ),
    )
    for engine in engines:
        yield Measurement(
            "start",
            engine,
            (
                ("seconds", f"cold start, {engine}", "s", "lower"),
                ("processor", f"cold start, {engine}, processor time", "s", "lower"),
            ),
        )
    for engine in engines:
        for work, named in (
            ("pairs", "4 images x 16 texts"),
            ("files", "16 photographs x 4 texts"),
            ("index", "index of 40 photographs of 12 megapixels"),
        ):
            unit = "images" if work == "index" else "pairs"
            yield Measurement(
                work,
                engine,
                (
                    ("rate", f"{named}, {engine}", f"{unit}/s", "higher"),
                    (
                        "processor_rate",
                        f"{named}, {engine}, per second of processor time",
                        unit,
                        "higher",
                    ),
                    ("peak_mib", f"{named}, {engine}, peak memory", "MiB", "lower"),
                ),
            )
    for model, named in MODELS.items():
        yield Measurement(
            "export",
            model,
            (
                ("seconds", f"export of {named}", "s", "lower"),
                ("processor", f"export of {named}, processor time", "s", "lower"),
                ("peak_mib", f"export of {named}, peak memory", "MiB", "lower"),
            ),
        )


def compare(
    before: Build,
    after: Build,
    folder: Path,
    engines: Sequence[str],
    *,
    rounds: int,
    starts: int,
    exports: int = 0,
    works: Sequence[str] = WORKS,
) -> Iterator[Row]:
    """Measure both builds in alternation.

    Args:
        before: installed build of REF.
        after: installed build of the working tree.
        folder: folder of images and models written by `workload.py`.
        engines: names of the engines to measure.
        rounds: number of rounds of throughput.
        starts: number of rounds for quantities that take about a second.
        exports: number of rounds of exports.
        works: names of the measurements, of `WORKS` and "export".
    """
    counts = {"import": starts, "start": starts, "export": exports}
    for measurement in measurements(engines):
        if measurement.work not in works:
            continue
        builds = [before, after]
        try:
            # One uncounted round fills caches and loads files into memory; exports take minutes,
            # beside which that does not count.
            for build in () if measurement.work == "export" else builds:
                measurement.of(build, folder)
        except MeasurementError as error:
            # For example BF16 on a CPU without it, or an engine that a build lacks.
            progress(f"{measurement.work} of {measurement.subject} is left out: {error}")
            continue
        rows = [Row(what, unit, better) for _, what, unit, better in measurement.quantities]
        for number in range(counts.get(measurement.work, rounds)):
            for build in builds:
                found = measurement.of(build, folder)
                for (key, *_), row in zip(measurement.quantities, rows, strict=True):
                    if found.get(key) is not None:
                        (row.before if build is before else row.after).append(found[key])
            builds.reverse()  # ABBA order: no build always runs second
            progress(f"{measurement.work} {measurement.subject or ''}: round {number + 1}")
        known = [row for row in rows if row.before]
        # At once: the figures of hours would otherwise be lost with the last measurement.
        progress("\n".join(table(known, before.name, after.name).splitlines()[2:]))
        yield from known


def environment(tree: str, name: str, extras: str) -> Build:
    """Install a tree of the repository with its pinned versions; an existing one is reused.

    Args:
        tree: hash of a Git tree.
        name: name of the build in tables.
        extras: extras to install, separated by commas.
    """
    folder = ENVIRONMENTS / "-".join([tree[:16], *extras.split(",")])
    if not (folder / "installed").exists():
        progress(f"installing {name}")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / "tree.tar"
            git("archive", "--output", str(archive), tree)
            source = Path(temporary) / "source"
            shutil.unpack_archive(archive, source)
            subprocess.run(
                [
                    *(folder / "bin" / "python", "-m", "pip", "install", "--quiet"),
                    *("--constraint", source / "constraints.txt", f"{source}[{extras}]"),
                ],
                check=True,
            )
        (folder / "installed").touch()
    return Build(name, folder)


def working_tree() -> str:
    """Hash of a Git tree with all files here; nothing is staged."""
    with tempfile.TemporaryDirectory() as temporary:
        index = {"GIT_INDEX_FILE": str(Path(temporary) / "index")}
        git("add", "--all", **index)
        return git("write-tree", **index)


def git(*arguments: str, **variables: str) -> str:
    """Standard output of a Git command."""
    return subprocess.run(
        ["git", *arguments],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | variables,
        encoding="utf-8",
    ).stdout.strip()


def machine() -> dict[str, Any]:
    """Everything figures depend on besides the builds."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor, "cores": cores, "system": platform.platform()}


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def progress(text: str) -> None:
    """Report progress on stderr, separate from the results."""
    print(text, file=sys.stderr, flush=True)


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ref", metavar="REF", help="commit, branch or tag to compare with")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, metavar="ENGINE")
    parser.add_argument(
        "--works",
        nargs="+",
        default=WORKS,
        choices=(*WORKS, "export"),
        metavar="WORK",
        help="what is measured: %(choices)s; export installs PyTorch (default: all others)",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds of throughput (default: %(default)s)"
    )
    parser.add_argument(
        "--starts", type=int, default=21, help="rounds of starts and imports (default: %(default)s)"
    )
    parser.add_argument(
        "--exports",
        type=int,
        default=3,
        help="rounds of exports (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures to this file"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Compare the builds, and print the table."""
    asked = arguments_of(words)
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{asked.ref}^{{commit}}")
    except subprocess.CalledProcessError:
        sys.exit(f"no commit {asked.ref!r} in {ROOT}")
    before_tree, after_tree = git("rev-parse", f"{commit}^{{tree}}"), working_tree()
    if before_tree == after_tree:
        progress("both are the same: ratios show the machine's noise alone")
    extras = "cpu,openvino,index" + (",export" if "export" in asked.works else "")
    before = environment(before_tree, commit[:7], extras)
    after = environment(after_tree, "working tree", extras)
    for old in ENVIRONMENTS.iterdir():  # each environment takes half a gigabyte, or two
        if old not in (before.folder, after.folder):
            shutil.rmtree(old)
    header = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **machine(),
        "before": {"name": commit, **before.workload("versions")[0]},
        "after": {"name": f"tree {after_tree}", **after.workload("versions")[0]},
        "load": [load()],
    }
    with tempfile.TemporaryDirectory() as temporary:
        before.workload("draw", temporary)
        if "export" in asked.works:
            before.workload("random", temporary)
        rows = list(
            compare(
                before,
                after,
                Path(temporary),
                asked.engines,
                rounds=asked.rounds,
                starts=asked.starts,
                exports=asked.exports,
                works=asked.works,
            )
        )
    header["load"].append(load())
    print(
        f"{header['date']}, {header['processor']}, {header['cores']} cores, {header['system']}\n"
        f"{before.name}: {_listed(header['before'])}\n"
        f"{after.name}: {_listed(header['after'])}\n"
        f"load before and after: {header['load'][0]:.2f}, {header['load'][1]:.2f}; medians of "
        f"{asked.rounds} rounds, of starts and imports {asked.starts}, of exports "
        f"{asked.exports}; a ratio is the "
        f"{after.name}'s over {before.name}'s, median of the rounds' own\n"
    )
    print(table(rows, before.name, after.name))
    if asked.json:
        figures = {**header, "rows": [row.summary() for row in rows]}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _listed(build: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in build["versions"].items())


if __name__ == "__main__":
    main()
