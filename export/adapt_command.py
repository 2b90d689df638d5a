"""`dsd-trt adapt`: another adapter for a bundle that takes it as an input."""

from __future__ import annotations

from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  dsd-trt export --adapter-input --out my-scorer
  dsd-trt adapt my-scorer new-adapter --out my-new-scorer
"""

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=_FOLDER)
@click.argument("adapter", type=_FOLDER)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Folder to write; with --force it may be BUNDLE itself.",
)
@click.option("--force", is_flag=True, help="Replace it if it is not empty.")
def adapt(bundle: Path, adapter: Path, out: Path, force: bool) -> None:
    """Put ADAPTER into BUNDLE, which was exported with --adapter-input.

    Graphs, weights and compiled plans stay as they are, and on one disk are shared.
    """
    from dsd_trt.bundle import read_bundle
    from dsd_trt.export.adapt import replace_adapter

    replace_adapter(read_bundle(bundle), adapter, out, force=force)
    click.echo(f"wrote {out}; try it: dsd-trt score IMAGES TEXTS --bundle {out}", err=True)
