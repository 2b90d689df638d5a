"""`dsd-trt gpu-check`: check and measure a bundle on this machine's GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsd_trt.commands.options import signature_option
from dsd_trt.engine.tensorrt.plan import PLAN_LIBRARIES, parse_profile

if TYPE_CHECKING:
    from dsd_trt.engine.tensorrt.plan import PlanLibrary


@click.command()
@click.argument("bundle")
@signature_option
@click.option(
    "--engine",
    type=click.Choice(PLAN_LIBRARIES),
    default="tensorrt",
    show_default=True,
    help="Library that builds and runs the plans.",
)
@click.option(
    "--batch",
    default="1,8,32",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Least, best and greatest batch size of plans that are missing; OPT is timed.",
)
@click.option(
    "--out",
    default="gpu-check",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Path of the report without its suffix: OUT.json and OUT.md are written.",
)
def gpu_check(
    bundle: str, require_signature: Path | None, engine: str, batch: str, out: Path
) -> None:
    """Check BUNDLE on this machine's GPU: build, run, compare with FP32, and measure.

    No plan has run on a GPU yet, so please send us your report.
    """
    from rich.console import Console

    from dsd_trt.bundle.folder import own_bundle_folder
    from dsd_trt.engine import choose_backend
    from dsd_trt.signature import open_bundle

    profile = parse_profile(batch)
    folder = own_bundle_folder(bundle, "plans")
    choose_backend(engine)
    from dsd_trt.engines.gpu_check import check_gpu, write_report

    console = Console(stderr=True)
    with console.status("Verifying the bundle") as status:
        opened = open_bundle(folder, require_signature)
        report = check_gpu(opened, cast("PlanLibrary", engine), profile, status.update)
    click.echo(report.to_markdown())  # first, so that a bad OUT does not cost minutes of work
    write_report(report, out)
    click.echo(f"wrote {out}.json and {out}.md", err=True)
