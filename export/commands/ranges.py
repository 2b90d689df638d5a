"""`dsd-trt ranges`: the FP16 headroom of a bundle's graphs."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import click

from dsd_trt.commands.options import signature_option, table_format_option
from dsd_trt.errors import counted

EXAMPLES = """\b
Examples:
  dsd-trt ranges my-scorer
  dsd-trt ranges my-scorer --scenes 16 -f json
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@signature_option
@click.option(
    "--scenes",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of drawn scenes to run, each with its caption, at every noise level.",
)
@table_format_option
def ranges(bundle: str, require_signature: Path | None, scenes: int, form: str) -> None:
    """Report the FP16 headroom of every activation of BUNDLE's graphs.

    BUNDLE is a folder, or ORG/NAME[@REVISION] on the Hugging Face Hub. The graphs run in
    unrounded FP32. The table shows the largest absolute value per graph, kind and precision.
    Below it stands the first node that computes NaN or infinity. -f json lists every activation
    with its node, in order of execution.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "onnx")
    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.signature import open_bundle

    # The bundle comes first: the libraries take seconds to import.
    opened = open_bundle(bundle_folder(bundle), require_signature)

    from rich.console import Console
    from rich.table import Table

    from dsd_trt.commands.console import stages
    from dsd_trt.export.probe import draw_probe
    from dsd_trt.export.ranges import FP16_MAX, first_not_finite, measure_ranges, worst

    manifest = opened.manifest
    probe = draw_probe(
        manifest.preprocessing.resolution, len(manifest.method.noise_levels.fractions), count=scenes
    )
    with tempfile.TemporaryDirectory() as scratch, stages("Running") as stage:
        found = measure_ranges(
            opened, probe, Path(scratch), lambda graph: stage(f"Running {graph}")
        )
    if form == "json":
        rows = [{**dataclasses.asdict(row), "fits": row.fits} for row in found]
        click.echo(json.dumps(rows, indent=2))
        return
    title = f"Largest absolute values, {counted(scenes, 'scene')}; FP16 ends at {FP16_MAX:,.0f}"
    table = Table(title=title)
    for column in ("graph", "kind", "precision", "largest", "node"):
        table.add_column(column, justify="right" if column == "largest" else "left")
    for graph in manifest.graphs:
        for row in worst(row for row in found if row.graph == graph):
            largest = f"{row.largest:,.4g}{'' if row.fits else '  does not fit'}"
            if not row.finite:
                largest = f"{row.nan:,} NaN, {row.infinite:,} infinite"
            table.add_row(row.graph, row.kind, row.precision, largest, row.node)
    Console().print(table)
    if (first := first_not_finite(found)) is not None:
        click.echo(
            f"NaN or infinity begins in the {first.graph}, at {first.node}: {first.nan:,} NaN, "
            f"{first.infinite:,} infinite. FP32 does not hold it either: look at the weights of "
            "this layer in the checkpoint, and export again"
        )
