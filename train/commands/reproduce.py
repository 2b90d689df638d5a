"""`dsd-trt reproduce`: the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dsd_trt.bundle.manifest import Resize
from dsd_trt.commands.options import (
    model_option,
    pytorch_threads_option,
    seed_option,
)
from dsd_trt.errors import InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.files.whole import write_whole
from dsd_trt.train.commands.training_options import few_shot_options

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
    help="Folder of a CLIP in transformers' format, for the baselines.  [default: none]",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the data sets' folders comvg, refcocog and vqav2.  [default: drawn shapes "
    "instead]",
)
@click.option(
    "--questions", type=click.IntRange(1), help="Maximum number of test questions per data set."
)
@click.option(
    "--examples", type=click.IntRange(2), help="Maximum number of few-shot examples per data set."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    help="Number of optimiser steps of each training.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Output folder; an interrupted run resumes from it.",
)
@few_shot_options
@pytorch_threads_option
@seed_option("Random seed of splits, training, bootstrap and ablations.")
@click.pass_context
def reproduce(
    ctx: click.Context,
    /,
    model: str,
    clip: Path | None,
    root: Path | None,
    questions: int | None,
    examples: int | None,
    steps: int,
    out: Path,
    resize: Resize | None,
    threads: int | None,
    seed: int,
    **few_shot: Any,
) -> None:
    """Reproduce Tables 1 and 2 and Figures 3 to 6 of the paper.

    Trained methods learn from the same few-shot examples, and all answer the same test questions.
    Beside zero-shot and few-shot, a model with an adapter of its own is measured as shipped. The
    report is OUT/reproduction.md.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.train.evaluation.study import Study
    from dsd_trt.train.fewshot.settings import FewShotSettings

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    given = {name: value for name, value in few_shot.items() if value is not None}
    settings = FewShotSettings(steps=steps, resize=resize or "bicubic-stretch", seed=seed, **given)
    study = Study(model, clip, root, questions, examples, settings=settings, seed=seed)
    study.require(out)

    from dsd_trt.train.commands.left_out import report_left_out
    from dsd_trt.train.evaluation.reproduction import reproduce as run
    from dsd_trt.train.run.libraries import hush_libraries
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with

    hush_libraries()
    ctx.with_resource(computing_with(threads))
    ctx.with_resource(own_folder(out))
    with StageProgress() as progress:
        try:
            done = run(study, out, progress.step)
        except ValueError as error:
            raise InputError(str(error)) from error
    write_whole(out / "reproduction.md", done.report)
    click.echo(done.report, nl=False)
    report_left_out(ctx, done.left_out)
