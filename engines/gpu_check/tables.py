"""The report of a GPU check as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dsd_trt.engines.gpu_check.figures import MATRIX, PAIR, Checked, Scored, Timing
from dsd_trt.engines.gpu_check.report import FORM, GpuReport
from dsd_trt.errors import DsdError, InputError, counted
from dsd_trt.files.whole import write_whole

ALLOWED = 2e-3
"""Largest difference of a score from FP32 that is expected of a GPU."""

_ROWS = {"image_encoder": "images", "text_encoder": "texts", PAIR: "pairs", MATRIX: "images"}


def write_report(report: GpuReport, out: Path) -> None:
    """Write the report as OUT.json and OUT.md.

    Raises:
        InputError: a file cannot be written.
    """
    try:
        write_whole(out.with_name(f"{out.name}.json"), report.to_json())
        write_whole(out.with_name(f"{out.name}.md"), to_markdown(report))
    except DsdError as error:
        raise InputError(str(error)) from error


def to_markdown(report: GpuReport) -> str:
    """Tables of agreement, speed and speed-up, then what is missing, then the machine."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: GpuReport) -> Iterator[str]:
    yield from ("# GPU check", "")
    yield f"{report.bundle}, {report.precision}, on {report.run.engine or report.engine}."
    if not report.complete:
        yield from ("", "**The check did not come to its end; figures are missing.**")
    yield from ("", *_agreement(report), "", *_speed(report))
    if report.peers or report.peer_failures:
        yield from ("", *_beside_pytorch(report))
    for failures in (report.failures, report.peer_failures):
        if failures:
            yield ""
            yield from (f"- Not measured: {key}: {_line(why)}" for key, why in failures.items())
    gpu = report.gpu
    facts = [gpu.name, f"compute capability {gpu.compute_capability}"]
    facts += [f"{gpu.memory_bytes / 2**30:.0f} GiB"]
    facts += [f"driver {gpu.driver}"] if gpu.driver else []
    facts += [f"CUDA {gpu.cuda} at most"] if gpu.cuda else []
    versions = ", ".join(f"{name} {it}" for name, it in report.versions.items())
    yield from ("", f"{', '.join(facts)}; {report.machine}; {versions}; {report.when}.")
    yield from ("", f"`{report.command}`")


def _agreement(report: GpuReport) -> Iterator[str]:
    columns = {name: run for name, run in report.runs.items() if run.scored or run.self_check}
    if not columns:
        return
    titles = {name: _title(report, name) for name in columns}
    yield "| beside FP32 on the CPU | " + " | ".join(titles.values()) + " |"
    yield "|---|" + "---:|" * len(columns)
    for mode in dict.fromkeys(mode for run in columns.values() for mode in run.scored):
        for what, cell in (
            (f"largest difference, at most {ALLOWED:g} is expected", _difference),
            ("images with the same order of texts", lambda it: f"{it.same_order:.0%}"),
            ("smallest gap of two texts", lambda it: f"{it.smallest_gap:.2g}"),
            ("NaN or infinite scores", lambda it: f"{it.not_finite}"),
        ):
            cells = [
                cell(run.scored[mode]) if mode in run.scored else "-" for run in columns.values()
            ]
            yield f"| {mode} mode: {what} | " + " | ".join(cells) + " |"
    for graph in dict.fromkeys(it for run in columns.values() for it in run.self_check):
        cells = [_checked(run.self_check.get(graph)) for run in columns.values()]
        yield f"| self-check of the {graph} (allowed) | " + " | ".join(cells) + " |"
    scored = next((it for run in columns.values() for it in run.scored.values()), None)
    if scored is not None:
        yield ""
        images, texts = counted(scored.images, "image"), counted(scored.texts, "text")
        yield f"{images} of noise x {texts}, {counted(scored.levels, 'level')}."


def _speed(report: GpuReport) -> Iterator[str]:
    yield "| random inputs, on the GPU, median | ms | ms a row | pairs/s | TFLOP/s |"
    yield "|---|---:|---:|---:|---:|"
    for name, run in report.runs.items():
        yield from (_row(f"{_title(report, name)}, {_pass(it)}", it) for it in run.timings)
    rows = {}
    for name, run in report.runs.items():
        for mode, rate in run.pairs_per_second.items():
            rows[f"{_title(report, name)}, {mode} mode, all levels, with copies"] = (
                f"{rate:.1f} pairs/s"
            )
        if run.memory_bytes:
            rows[f"{_title(report, name)}, GPU memory"] = f"{run.memory_bytes / 1e9:.2f} GB"
    for library, peak in report.peak_tflops.items():
        rows[f"one large FP16 product, {library}"] = f"{peak:.1f} TFLOP/s"
    if report.share_of_peak is not None:
        rows["pair scorer, share of the largest product"] = f"{report.share_of_peak:.1%}"
    if report.matrix_over_pair is not None:
        rows["matrix mode over pair mode, pairs/s at one level"] = (
            f"{report.matrix_over_pair:.1f} x"
        )
    for graph, ratios in report.form_over_plain.items():
        cell = ", ".join(f"{ratio:.2f} x at {batch}" for batch, ratio in ratios.items())
        rows[f"form for CUDA over plain, {graph}"] = cell
    if report.build_seconds:
        rows["building plans"] = f"{report.build_seconds:.0f} s"
    if rows:
        yield from ("", "| | |", "|---|---:|")
        yield from (f"| {name} | {value} |" for name, value in rows.items())


def _beside_pytorch(report: GpuReport) -> Iterator[str]:
    yield (
        f"| PyTorch, {report.precision} | ms | ms a row | pairs/s | TFLOP/s | engine is faster by |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    speedup = report.speedup
    for name, peer in report.peers.items():
        for it in peer.timings:
            ratio = speedup[name].get(it.graph, {}).get(it.batch)
            by = "-" if ratio is None else f"{ratio:.2f} x"
            yield f"{_row(f'{name}, {_pass(it)}', it)} {by} |"
    told = [
        f"{name} {it.max_difference:.2g}"
        for name, it in report.peers.items()
        if it.max_difference is not None
    ]
    if told:
        yield from ("", f"Largest difference of a score from the engine's: {', '.join(told)}.")
    if report.peer_memory_bytes:
        yield f"PyTorch held at most {report.peer_memory_bytes / 1e9:.2f} GB of GPU memory."


def _row(what: str, it: Timing) -> str:
    rate = "-" if it.pairs_per_second is None else f"{it.pairs_per_second:.0f}"
    tflops = "-" if it.tflops is None else f"{it.tflops:.1f}"
    return f"| {what} | {it.ms:.2f} | {it.ms_a_row:.3f} | {rate} | {tflops} |"


def _pass(it: Timing) -> str:
    texts = "" if it.texts is None else f" x {counted(it.texts, 'text')}"
    return f"{it.graph}, {it.rows} {_ROWS[it.graph]}{texts}"


def _title(report: GpuReport, name: str) -> str:
    title = "form for CUDA" if name == FORM else "graphs as they are"
    return f"{title} (used)" if len(report.runs) > 1 and name == report.used else title


def _difference(it: Scored) -> str:
    return "-" if it.max_difference is None else f"{it.max_difference:.2g}"


def _checked(it: Checked | None) -> str:
    if it is None:
        return "-"
    found = "not finite" if it.difference is None else f"{it.difference:.2g}"
    return f"{found} ({it.allowed:g})" + ("" if it.passed else ", **failed**")


def _line(text: str) -> str:
    return " ".join(text.split())
