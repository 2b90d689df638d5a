"""The benchmark's report as a page."""

from __future__ import annotations

from collections.abc import Iterator

from dsd_trt.commands.provenance import run_facts, versions
from dsd_trt.export.benchmark.report import BenchReport, Table
from dsd_trt.html.escaped import escaped
from dsd_trt.html.page import page
from dsd_trt.html.tables import Bar, Cell, section, table


def to_page(report: BenchReport) -> Iterator[str]:
    """The report as a page in parts, with bars for rates, latencies and factors."""
    facts = {
        "bundle": report.bundle,
        "machine": report.machine,
        "peak": report.largest_product(),
        "versions": versions(),
    }
    summary = "All contenders score the same pairs at the same noise levels."
    return page("Benchmark", summary, _body(report), lambda: {**facts, **run_facts()})


def _body(report: BenchReport) -> Iterator[str]:
    yield _barred("Speed and memory", report.speed())
    yield _barred("Latency", report.latencies())
    if (factors := report.factors()) is not None:
        yield _barred("Where the speed comes from", factors)
    remarks = "".join(f"<p>{escaped(it)}</p>\n" for it in report.remarks())
    yield section("Remarks", remarks)


def _barred(title: str, rows_of: Table) -> str:
    """A part with a table whose second column has bars, the greatest number's the longest."""
    head, rows = rows_of
    numbers = [_number(row[1]) for row in rows]
    most = max((it for it in numbers if it is not None), default=0.0)
    cells: list[list[Cell]] = [
        [row[0], row[1] if it is None or not most else Bar(row[1], it / most), *row[2:]]
        for row, it in zip(rows, numbers, strict=True)
    ]
    return section(title, table(title, head, cells, heading=True))


def _number(cell: str) -> float | None:
    """The number that a cell begins with; None if it has none."""
    try:
        return float(cell.split()[0])
    except ValueError:
        return None
