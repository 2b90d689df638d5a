"""`dsd-trt bench`: throughput, latency and peak memory of a bundle and its alternatives."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.destination import Destination, destination_options
from dsd_trt.commands.environment import without_settings
from dsd_trt.commands.log import note
from dsd_trt.commands.options import (
    bundle_option,
    cache_compiled_option,
    model_option,
    signature_option,
)
from dsd_trt.errors import EngineError, InputError
from dsd_trt.installation import own_command
from dsd_trt.train.commands.adapters import (
    NONE,
    adapter_option,
    chosen_adapter,
    require_base,
    sentence,
)

if TYPE_CHECKING:
    from dsd_trt.export.benchmark.measure import Measured
    from dsd_trt.export.benchmark.work import Work

_MACHINE, _MODEL = "machine", "model"  # run in their own processes, before the contenders
_STARTS = 3  # cold starts of each kind
EXAMPLES = """\b
Examples:
  dsd-trt bench
  dsd-trt bench --bundle my-scorer --model sd-2-1/ --adapter adapter/ -o bench.json
  dsd-trt bench -o bench.html
  dsd-trt bench --contenders openvino,torch-bf16 --images 4 --texts 8
"""


@click.command(epilog=EXAMPLES)
@bundle_option("measure")
@signature_option
@model_option
@adapter_option("Few-shot adapter the bundle was exported with")
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Number of images.  [default: 16; 1 if a pass takes seconds]",
)
@click.option(
    "--texts",
    type=click.IntRange(1),
    help="Number of texts per image.  [default: 16; 2 if a pass takes seconds]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Measured rounds per contender, after a warm-up.  [default: 5; 3 if a pass takes seconds]",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    help="Number of timed requests per contender, of one image and one text each.  [default: 200; "
    "5 if a pass takes seconds]",
)
@click.option(
    "--contenders",
    metavar="NAME,NAME...",
    help="Engines and loops to measure, such as openvino,torch-bf16.  [default: all]",
)
@cache_compiled_option
@destination_options
@click.option("--measure", "measured", hidden=True)
def bench(
    bundle: str | None,
    require_signature: Path | None,
    model: str,
    adapter: str,
    images: int | None,
    texts: int | None,
    rounds: int | None,
    requests: int | None,
    contenders: str | None,
    cache_compiled: bool,
    destination: Destination,
    measured: str | None,
) -> None:
    """Measure a bundle against PyTorch, the research loop and a diffusion classifier.

    All contenders score the same pairs at the same noise levels. The result is a Markdown table
    of throughput, latency per pass, peak memory, rank correlation (Spearman) and cold start. Of the
    peak memory, private memory and mapped files are shown as well: a system that is short of memory
    takes back mapped pages alone. The latency of single requests is in a table of its own, by
    percentiles: an encoded image and a new text, sent one after another, as a service without a
    queue sees them.
    """
    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.bundle.real_files import with_real_files
    from dsd_trt.export.benchmark.contenders import CONTENDERS, RUNTIME, is_matrix
    from dsd_trt.signature import open_bundle
    from dsd_trt.train.diffusion.place import find_place, require_model

    names = contenders.split(",") if contenders else list(CONTENDERS)
    if unknown := set(names) - CONTENDERS.keys():
        raise InputError(f"no contender {min(unknown)!r}; choose from {', '.join(CONTENDERS)}")
    destination.require_form()
    destination.require_possible()
    # Here, so that no contender's figures include making a copy.
    opened = with_real_files(open_bundle(bundle_folder(bundle), require_signature))
    file = None
    if any(name not in RUNTIME for name in names):
        require_model(place := find_place(model))
        file = chosen_adapter(adapter, model)
        require_base(file, place)

    from dsd_trt.export.benchmark.work import Work, default_size

    size = default_size(opened)
    work = Work(
        opened,
        model,
        None if file is None else file.folder,
        *(
            given or default
            for given, default in zip((images, texts, rounds, requests), size, strict=True)
        ),
        cache_compiled=cache_compiled,
    )
    if measured:
        _measure_here(measured, work)
        return
    if contenders is None and opened.manifest.matrix is None:
        names = [name for name in names if not is_matrix(name)]
    if any(name not in RUNTIME for name in names):
        note(f"PyTorch's {sentence(file, adapter)}")
    _run(work, names, destination)


def _measure_here(what: str, work: Work) -> None:
    """Measure in this process, a child of the command, and print the figures as JSON.

    Args:
        what: the machine, the model, which is only read, or a contender.
        work: bundle, model and number of pairs.
    """
    from dsd_trt.export.benchmark.machine import matmul_peaks
    from dsd_trt.export.benchmark.measure import measure
    from dsd_trt.files.schema import to_plain

    if what == _MACHINE:
        click.echo(json.dumps(matmul_peaks()))
    elif what == _MODEL:
        from dsd_trt.train.diffusion.checkpoint import read_checkpoint

        read_checkpoint(work.model)
    else:
        click.echo(json.dumps(to_plain(measure(what, work))))


def _run(work: Work, names: list[str], destination: Destination) -> None:
    from dsd_trt.export.benchmark.contenders import CONTENDERS, RUNTIME
    from dsd_trt.export.benchmark.machine import describe_machine
    from dsd_trt.export.benchmark.page import to_page
    from dsd_trt.export.benchmark.report import BenchReport

    # In separate processes: a child's peak memory includes what its parent held when it started.
    command = [*own_command(), "bench", "--measure"]
    alone = without_settings(os.environ)
    if any(name not in RUNTIME for name in names):
        # A checkpoint that cannot be read ends the run here, not each contender after minutes.
        opened = subprocess.run([*command, _MODEL, "--model", work.model], env=alone, check=False)
        if opened.returncode:
            sys.exit(opened.returncode)  # the child has printed the reason
    note("measuring the machine")
    machine = subprocess.run([*command, _MACHINE], env=alone, stdout=subprocess.PIPE, check=False)
    if machine.returncode:
        sys.exit(machine.returncode)
    peaks = json.loads(machine.stdout)
    found: dict[str, Measured] = {}
    failures: dict[str, str] = {}
    cold_start = _cold_start(work)
    for name in names:
        note(f"measuring {CONTENDERS[name]}")
        measured = _measure(work, name)
        if isinstance(measured, str):
            failures[name] = measured
        else:
            found[name] = measured
    result = BenchReport(
        describe_machine(),
        str(work.bundle.folder.name),
        work.pictures,
        work.texts,
        len(work.levels),
        peaks,
        cold_start,
        found,
        failures,
    )
    destination.write(result.to_markdown, result.to_json, lambda: to_page(result))


def _measure(work: Work, name: str) -> Measured | str:
    """Measure one contender in its own process; if it fails, return the reason."""
    from dsd_trt.export.benchmark.measure import Measured
    from dsd_trt.export.benchmark.memory import run_watched
    from dsd_trt.files.schema import from_plain

    command = [*own_command(), "bench", "--measure", name]
    command += ["--bundle", str(work.bundle.folder), "--model", work.model]
    command += ["--adapter", str(work.adapter or NONE)]
    command += ["--images", str(work.pictures), "--texts", str(work.texts)]
    command += ["--rounds", str(work.rounds), "--requests", str(work.requests)]
    command += ["--cache-compiled"] * work.cache_compiled
    run, memory = run_watched(command, without_settings(os.environ))
    if run.returncode:
        return _reason(run)
    return replace(from_plain(Measured, json.loads(run.stdout)), memory=memory)


def _reason(run: subprocess.CompletedProcess[str]) -> str:
    """The last line that a failed process printed."""
    return run.stderr.strip().rpartition("\n")[2].removeprefix("Error: ")


def _cold_start(work: Work) -> tuple[float, float]:
    """Cold start in seconds, from the command to one score: without a cache, and with one.

    These are medians, because the very first start also reads libraries from the disk.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        probe = work.probe
        Image.fromarray(probe.pixels[0]).save(Path(folder) / "image.png")
        (Path(folder) / "texts.txt").write_text(probe.texts[0] + "\n", encoding="utf-8")
        command = [*own_command(), "score", "image.png", "texts.txt"]
        command += ["--bundle", str(work.bundle.folder.resolve())]
        command += ["--cache-compiled"] * work.cache_compiled
        first: list[float] = []
        later: list[float] = []
        for repeat in range(_STARTS):
            cache = str(Path(folder) / f"cache-{repeat}")
            environment = {**without_settings(os.environ), "DSD_TRT_CACHE": cache}
            for seconds in (first, later):
                start = time.perf_counter()
                run = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True
                )
                seconds.append(time.perf_counter() - start)
                if run.returncode:
                    raise EngineError(f"a cold start failed: {_reason(run)}")
    return statistics.median(first), statistics.median(later)
