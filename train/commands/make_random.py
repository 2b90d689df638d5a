"""`dsd-trt make-random`: a checkpoint of real sizes without real weights."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.options import seed_option
from dsd_trt.train.diffusion.families import FAMILIES

EXAMPLES = """\b
Examples:
  dsd-trt make-random --family sd21-base --out random-sd
  dsd-trt make-random --family sdxl --tiny --out tiny-sdxl
"""


@click.command("make-random", epilog=EXAMPLES)
@click.option("--family", required=True, type=click.Choice(list(FAMILIES)))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write, in diffusers' format, FP16.",
)
@click.option("--tiny", is_flag=True, help="The same parts, a few channels wide: for tests.")
@seed_option("Of the weights.")
def make_random(family: str, out: Path, tiny: bool, seed: int) -> None:
    """Write a Stable Diffusion of a family with random weights, for tests and benchmarks.

    Whatever does not depend on the numbers inside is real: shapes, files, memory, time.
    """
    from dsd_trt.train.diffusion import families
    from dsd_trt.train.diffusion.random_model import write_random_model
    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    chosen = FAMILIES[family]
    write_random_model(out, families.tiny(chosen) if tiny else chosen, seed)
    click.echo(f"wrote {out}: {chosen.about}, random weights", err=True)
