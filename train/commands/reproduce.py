"""`dsd-trt reproduce`: the paper's tables and figures, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from dsd_trt.commands.options import fair_resolution_option, model_option, parse_levels
from dsd_trt.errors import InputError
from dsd_trt.manifest import Resize

EXAMPLES = """\b
Examples:
  dsd-trt reproduce --clip tiny-clip/model --out reproduction/
  dsd-trt reproduce --model sd-2-1/ --clip clip-vit-large/ --root data/ --out reproduction/
"""


@click.command(epilog=EXAMPLES)
@model_option
@click.option(
    "--clip",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="CLIP in transformers' format, for the baselines.  [default: none]",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Holds the folders comvg, refcocog and vqav2.  [default: shapes are drawn instead]",
)
@click.option("--questions", type=click.IntRange(1), help="Test questions a data set.")
@click.option("--examples", type=click.IntRange(2), help="Few-shot examples a data set.")
@click.option(
    "--steps", type=click.IntRange(1), default=600, show_default=True, help="Of few-shot training."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; a run that was stopped goes on where it was.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=2e-3,
    show_default=True,
    help="Of DSD's few-shot training; CLIP's are its own.",
)
@click.option(
    "--loss",
    type=click.Choice(["bce", "softmax"]),
    default="bce",
    show_default=True,
    help="Cross-entropy of every pair, or of the right pair against its negatives.",
)
@click.option(
    "--negatives",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Wrong pairs a right one, in training.",
)
@click.option(
    "--levels",
    default="0.2,0.4,0.6,0.8",
    show_default=True,
    metavar="S,S...",
    callback=parse_levels,
    help="Noise levels of every DSD score but those of Figures 5 and 6.",
)
@fair_resolution_option
@click.option("--seed", default=0, show_default=True, help="Of everything.")
def reproduce(
    model: str,
    clip: Path | None,
    root: Path | None,
    questions: int | None,
    examples: int | None,
    steps: int,
    out: Path,
    learning_rate: float,
    loss: Literal["bce", "softmax"],
    negatives: int,
    levels: tuple[float, ...],
    fair_resolution: bool,
    seed: int,
) -> None:
    """Reproduce Tables 1 and 2 and Figures 3 to 6 of the paper.

    Every method is trained on the same few-shot examples and answers the same test questions.
    OUT/reproduction.md has the result.
    """
    from rich.console import Console

    from dsd_trt.train.evaluation.reproduction import Plan
    from dsd_trt.train.evaluation.reproduction import reproduce as run
    from dsd_trt.train.fewshot.settings import FewShotSettings
    from dsd_trt.train.libraries import hush_libraries
    from dsd_trt.train.progress import StageProgress

    hush_libraries()
    resize: Resize = "bicubic-stretch-through-224" if fair_resolution else "bicubic-stretch"
    settings = FewShotSettings(
        steps=steps,
        learning_rate=learning_rate,
        loss=loss,
        negatives=negatives,
        levels=levels,
        resize=resize,
        seed=seed,
    )
    plan = Plan(model, clip, root, questions, examples, settings=settings, seed=seed)
    with StageProgress(Console(stderr=True)) as progress:
        try:
            report = run(plan, out, progress.step)
        except ValueError as error:
            raise InputError(str(error)) from error
    (out / "reproduction.md").write_text(report, encoding="utf-8")
    click.echo(report, nl=False)
