"""`dsd-trt import-released`: turn a checkpoint of the released research code into an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.log import note
from dsd_trt.errors import counted


@click.command("import-released")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ADAPTER",
    help="Output folder for the adapter.",
)
def import_released(file: Path, out: Path) -> None:
    """Turn a LoRA checkpoint of the released research code into an adapter.

    FILE is its pytorch_model.bin. The adapter's score is "released", computed per pair where the
    research code averages over a batch. Export with --score attention for the paper's score.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch")
    from dsd_trt.files.folders import require_writable
    from dsd_trt.train.pickles import require_pickle

    # What the arguments and their files tell comes first: PyTorch takes seconds to import.
    require_pickle(file)
    require_writable(out)

    from dsd_trt.train.scoring.released import read_released

    adapter = read_released(file)
    adapter.save(out)
    note(
        f"wrote {out}: {counted(len(adapter.merged), 'tensor')}. To use it: "
        f"dsd-trt export --model DIR --adapter {out} --out BUNDLE"
    )
