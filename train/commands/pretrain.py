"""`dsd-trt pretrain`: train the demonstration or its baseline from scratch."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.log import note
from dsd_trt.commands.options import pytorch_threads_option, seed_option
from dsd_trt.errors import InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.baseline import tiny_clip


@click.group()
def pretrain() -> None:
    """Train the demonstration or its baseline from scratch."""


@pretrain.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder for checkpoints, losses, sample images, and the model in model/.",
)
@seed_option("Random seed of weights, batches and noise.")
@pytorch_threads_option
@click.option(
    "--smoke",
    is_flag=True,
    help="Test run of seconds instead of hours: every stage with a few steps.",
)
def shapes(out: Path, seed: int, threads: int | None, smoke: bool) -> None:
    """Train the demonstration, "shapes": coloured shapes, 64 x 64 pixels, 6 M parameters.

    Training takes a day or two on two CPU cores. Repeat the command to resume an interrupted run
    from its last checkpoint.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_run, require_writable
    from dsd_trt.train.run.plan import require_plan
    from dsd_trt.train.shapes.curriculum import SMOKE, STATES, Curriculum

    # What the arguments tell comes first: the libraries take seconds to import.
    curriculum = SMOKE if smoke else Curriculum()
    require_writable(out)
    require_run(out, "plan.json")
    require_plan(out / "plan.json", curriculum.plan(seed), STATES)

    from dsd_trt.train.run.memory import keep_freed_memory
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with
    from dsd_trt.train.shapes.pretrain import pretrain_shapes

    keep_freed_memory()
    context = click.get_current_context()
    context.with_resource(computing_with(threads))
    context.with_resource(own_folder(out))
    with StageProgress() as progress:
        try:
            model = pretrain_shapes(
                out,
                curriculum,
                seed=seed,
                progress=progress.step,
                say=note,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
    note(f"model: {model}")


pretrain.add_command(tiny_clip)
