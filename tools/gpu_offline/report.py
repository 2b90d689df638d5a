"""Turn the results of a run on a GPU machine into Markdown.

    python tools/gpu_offline/report.py gpu-offline-results/results.json

It ends with the tables that `gpu-check` wrote.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

UNITS = {
    "memory_gib": ("GPU memory", "{:.0f} GiB"),
    "multiprocessors": ("multiprocessors", "{}"),
    "copy_tb_s": ("copy on the GPU, read and written", "{:.2f} TB/s"),
    "fp16_product_tflops": ("one large FP16 product", "{:.0f} TFLOP/s"),
}


def report(results: Mapping[str, Any]) -> str:
    """Markdown of a run: the machine, what each stage came to, and the tables of each check.

    Args:
        results: content of `results.json`; whatever a run did not reach may be missing.
    """
    reports = results.get("reports", {})
    lines = ["## Results", "", *machine(reports.get("facts") or {}, results.get("when", "?"))]
    lines += ["", *stages(results.get("stages", {}))]
    for name in ("rtx", "rtx-matrix", "rtx-sd21"):
        if found := reports.get(name):
            lines += ["", f"**TensorRT-RTX, {name}.** {rtx(found)}"]
    for name, table in results.get("tables", {}).items():
        # A check's own report begins with a heading of the first level.
        lines += ["", f"### {name}", "", *re.sub(r"^# .*\n+", "", table).rstrip().splitlines()]
    return "\n".join(lines) + "\n"


def machine(facts: Mapping[str, Any], when: str) -> Iterator[str]:
    """A line with card, driver, versions and date, and the table of what was measured."""
    gpu, smi = facts.get("gpu") or {}, facts.get("nvidia_smi") or {}
    versions = {name: it for name, it in (facts.get("versions") or {}).items() if it}
    told = [gpu.get("name") or smi.get("name") or "no GPU"]
    if "compute_capability" in gpu:
        told.append(f"compute capability {gpu['compute_capability']}")
    if "driver_version" in smi:
        told.append(f"driver {smi['driver_version']}")
    if gpu.get("cuda_of_torch"):
        told.append(f"CUDA {gpu['cuda_of_torch']}")
    if "python" in facts:
        told.append(f"Python {facts['python']}")
    told += [f"{name} {versions[name]}" for name in ("torch", "diffusers") if name in versions]
    yield f"{', '.join(told)}; {facts.get('when', when)}."
    if missing := facts.get("missing"):
        yield f"Packages that were missing: {', '.join(missing)}."
    rows = [(about, unit.format(gpu[key])) for key, (about, unit) in UNITS.items() if key in gpu]
    if rows:
        yield from ("", "| machine | |", "|---|---:|")
        yield from (f"| {about} | {value} |" for about, value in rows)


def stages(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table of the stages; of one that is not done, the last line it wrote."""
    yield from ("| stage | ended | seconds | last line |", "|---|---|---:|---|")
    for name, result in found.items():
        last = ""
        if result["status"] != "done":
            last = (result.get("message") or "").strip().rpartition("\n")[2]
            last = f"`{cell(last)}`" if last else ""
        yield f"| {name} | {result['status']} | {result['seconds']:.0f} | {last} |"


def cell(text: str, longest: int = 120) -> str:
    """A line that fits between backticks in a cell of a table."""
    text = text.replace("`", "'").replace("|", "/")
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def rtx(found: Mapping[str, Any]) -> str:
    """What became of the attempt with TensorRT-RTX, in a sentence or two."""
    version, gpu = found.get("version", "?"), found.get("compute_capability")
    if gpu is None:  # library, driver or GPU is missing
        return f"Version {version} was not asked: {found.get('error', '?')}"
    asked = f"Version {version} on compute capability {gpu}"
    asked += ", which it lists:" if found.get("listed") else ", which it does not list:"
    if found.get("checked"):
        return f"{asked} a plan was built, opened and checked."
    if found.get("opened"):
        return f"{asked} a plan was built and opened; its check failed: {found.get('error', '?')}"
    if "build" in found:
        said = " ".join(found.get("messages", ())) or "no message"
        return f"{asked} a plan was built and could not be opened: {said}"
    return f"{asked} no plan was built: {found.get('error', '?')}"


def main() -> None:
    """Print the report of the results that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of a run")
    given = parser.parse_args()
    try:
        results = json.loads(given.results.read_text(encoding="utf-8"))
        if not isinstance(results, dict) or "stages" not in results:
            raise ValueError("it has no stages")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{given.results} is no results.json of a run: {error}") from error
    sys.stdout.write(report(results))


if __name__ == "__main__":
    main()
