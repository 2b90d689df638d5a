"""`dsd-trt gpu-check`: a report from somebody's GPU."""

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
@click.option("--engine", type=click.Choice(PLAN_LIBRARIES), default="tensorrt", show_default=True)
@click.option(
    "--batch",
    default="1,8,32",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Batch sizes of plans that have yet to be built; OPT is timed.",
)
@click.option(
    "--out",
    default="gpu-check",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Write OUT.json and OUT.md.",
)
def gpu_check(
    bundle: str, require_signature: Path | None, engine: str, batch: str, out: Path
) -> None:
    """Try BUNDLE on the GPU here: build, run, compare with FP32, and measure.

    No plan has run on a GPU yet: a report is worth sending.
    """
    from rich.console import Console

    from dsd_trt.bundle.folder import own_bundle_folder
    from dsd_trt.engine import require_backend
    from dsd_trt.signature import open_bundle

    profile = parse_profile(batch)
    folder = own_bundle_folder(bundle)
    require_backend(engine)
    from dsd_trt.engines.gpu_check import check_gpu, write_report

    console = Console(stderr=True)
    with console.status("Verifying the bundle") as status:
        opened = open_bundle(folder, require_signature)
        report = check_gpu(opened, cast("PlanLibrary", engine), profile, status.update)
    click.echo(report.to_markdown())  # first: minutes of work are not lost where OUT is no good
    write_report(report, out)
    click.echo(f"wrote {out}.json and {out}.md", err=True)
