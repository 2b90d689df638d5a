"""`dsd-trt make-random`: a checkpoint of real size with random weights."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.log import note
from dsd_trt.commands.options import seed_option
from dsd_trt.train.diffusion.families import FAMILIES

EXAMPLES = """\b
Examples:
  dsd-trt make-random --family sd21-base --out random-sd
  dsd-trt make-random --family sdxl --tiny --out tiny-sdxl
"""


@click.command("make-random", epilog=EXAMPLES)
@click.option(
    "--family",
    required=True,
    type=click.Choice(list(FAMILIES)),
    help="Family of Stable Diffusion, which decides all sizes.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output folder for the checkpoint, in diffusers' format, FP16.",
)
@click.option("--tiny", is_flag=True, help="Same layers with a few channels each, for fast tests.")
@seed_option("Random seed of the weights.")
def make_random(family: str, out: Path, tiny: bool, seed: int) -> None:
    """Write a Stable Diffusion checkpoint with random weights, for tests and benchmarks.

    Shapes, file sizes, memory and latency are those of a real checkpoint. Its scores mean nothing.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.errors import InputError
    from dsd_trt.files.folders import require_writable

    # What the arguments tell comes first: the libraries take seconds to import.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; give another --out")
    require_writable(out)

    from dsd_trt.train.diffusion import families
    from dsd_trt.train.diffusion.random_model import write_random_model
    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    chosen = FAMILIES[family]
    write_random_model(out, families.tiny(chosen) if tiny else chosen, seed)
    note(f"wrote {out}: {chosen.about}, random weights")
