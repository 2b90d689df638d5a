"""`dsd-trt doctor`: what works on this machine, why the rest does not, and what mends it."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.environment import PREFIX, SETTINGS, other_variables, refusal
from dsd_trt.commands.options import bundle_option, engine_option, signature_option
from dsd_trt.engine import AUTO, BACKENDS
from dsd_trt.errors import BundleError, EngineError

if TYPE_CHECKING:
    from dsd_trt.doctor.finding import Finding
    from dsd_trt.doctor.report import Report

EXAMPLES = """\b
Examples:
  dsd-trt doctor
  dsd-trt doctor --engine onnxruntime-cuda
  dsd-trt doctor --bundle my-scorer --json | jq .next
"""

_WIDEST = 120  # characters of a line
_NARROWEST = 60


@click.command(epilog=EXAMPLES)
@bundle_option("examine")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/doctor.md has its fields.")
@signature_option
def doctor(bundle: str | None, engine: str, as_json: bool, require_signature: Path | None) -> None:
    """Say which engines work on this machine, why the others do not, and what mends it.

    Packages, GPUs, processor, threads, memory, disks, the cache, the bundle's files and its plans
    are examined, engines each in a process of its own. Nothing is installed; a small file is
    written to each disk and removed. Of a bundle on the hub, bundle.json alone is downloaded.

    Exit code 4: the engine that is asked for cannot work, or with auto none. Exit code 2: the
    bundle is missing or damaged. The findings are printed all the same.
    """
    from dsd_trt.commands.output import write_standard_output
    from dsd_trt.doctor.report import Asked, examine

    group = click.get_current_context().find_root().command
    settings = {PREFIX + name: refusal(PREFIX + name, group) for name in SETTINGS}
    report = examine(Asked(engine, bundle, require_signature, settings, other_variables()))
    if as_json:
        write_standard_output(json.dumps(report.to_plain(), indent=2) + "\n")
    else:
        write_standard_output(as_text(report, shutil.get_terminal_size().columns))
    if (failure := report.failure) is not None:
        named = f"{failure.subject} cannot work here: " if failure.subject in BACKENDS else ""
        raise EngineError(f"{named}{failure.detail}{_mend(failure)}")
    if report.bundle_error:
        raise BundleError(report.bundle_error)


def as_text(report: Report, width: int) -> str:
    """The report as sections of aligned lines, and a list of what to do.

    Args:
        report: result of the examination.
        width: width of the terminal, in characters.
    """
    width = min(max(width, _NARROWEST), _WIDEST)
    parts = []
    for section in report.sections:
        lines = [section.title.capitalize() if section.title.islower() else section.title]
        longest = max((len(it.subject) for it in section.findings), default=0)
        for it in section.findings:
            head = f"  {it.state:<7}  {_printable(it.subject):<{longest}}  "
            lines += textwrap.wrap(
                _printable(it.detail),
                width,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
        parts.append("\n".join(lines))
    parts.append(_next(report, width))
    return "\n\n".join(parts) + "\n"


def _next(report: Report, width: int) -> str:
    """What to do, one command each, and the engine that would score."""
    lines = []
    for number, it in enumerate(report.next_steps, 1):
        head = f"{number:>3}. "
        cause = f"{_printable(it.subject)}: {_printable(it.detail)}"
        lines += textwrap.wrap(
            cause,
            width,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(f"       {_printable(it.remedy)}")
    steps = "Next\n" + "\n".join(lines)
    if not lines:
        wrong = any(section.wrong for section in report.sections)
        steps = "No command mends what is wrong." if wrong else "Nothing needs to be mended."
    used = f"{report.engine} would score."
    if report.engine is None:
        asked = report.asked.engine
        used = "No engine works here." if asked == AUTO else f"{asked} cannot work here."
    return f"{steps}\n\n{used}"


def _mend(finding: Finding) -> str:
    return f". Mend it with: {finding.remedy}" if finding.remedy else ""


def _printable(text: str) -> str:
    """A text that may be from anywhere, without what a terminal would obey."""
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)
