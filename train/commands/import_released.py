"""`dsd-trt import-released`: a checkpoint of the released research code as an adapter."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("import-released")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ADAPTER",
    help="Folder to write.",
)
def import_released(file: Path, out: Path) -> None:
    """Turn the LoRA file of the released research code into an adapter for export.

    FILE is its pytorch_model.bin. Its score is "released", per pair where the research code
    averages over a batch; export with --score attention for the paper's.
    """
    from dsd_trt.train.scoring.released import read_released

    adapter = read_released(file)
    adapter.save(out)
    click.echo(
        f"wrote {out}: {len(adapter.merged)} tensors. To use it: "
        f"dsd-trt export --model DIR --adapter {out} --out BUNDLE",
        err=True,
    )
