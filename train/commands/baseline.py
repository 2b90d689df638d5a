"""`dsd-trt baseline` and `dsd-trt pretrain tiny-clip`: the CLIP baselines DSD is compared with."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dsd_trt.commands.environment import setting
from dsd_trt.commands.log import note
from dsd_trt.commands.options import (
    pytorch_threads_option,
    seed_option,
    table_format_option,
)
from dsd_trt.errors import InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.data_options import data_options, fraction_option
from dsd_trt.train.commands.training_options import validation_option
from dsd_trt.train.scoring.choices import Loss

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames

EXAMPLES = """\b
Examples:
  dsd-trt baseline clip-vit-base-patch32/ --data comvg --root data/comvg --method zero-shot
  dsd-trt baseline clip/ --data comvg --root data/comvg --method prompt-learning --out results/
  dsd-trt baseline tiny/model --data shapes-comvg --method fine-tuning --examples 400 -f json
"""


@click.command(epilog=EXAMPLES)
@click.argument("folder", metavar="CLIP")
@click.option(
    "--method",
    required=True,
    type=click.Choice(["zero-shot", "fine-tuning", "prompt-learning"]),
    help="CLIP without training, with fine-tuned projection heads, or with learned prompts "
    "conditioned on images (CoCoOp).",
)
@data_options
@fraction_option(
    "Share of the training set used for training, and excluded from the test.",
    "0 without training, to be given with it",
)
@click.option("--examples", type=click.IntRange(2), help="Maximum number of training questions.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of test questions.")
@click.option(
    "--loss",
    type=click.Choice(get_args(Loss)),
    default="bce",
    show_default=True,
    help="Binary cross-entropy over all pairs, softmax cross-entropy of the positive pair among "
    "its negatives, or the latter with 0.1 of the former.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    help="Number of optimiser steps.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Initial learning rate, decayed linearly to zero.  [default: 1e-4 for fine-tuning, "
    "2e-3 for prompt learning]",
)
@validation_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Output folder for table.md, figures.json and figures.png.",
)
@table_format_option
@pytorch_threads_option
@seed_option("Random seed of the split, the batches and the initial weights.")
@click.pass_context
def baseline(
    ctx: click.Context,
    folder: str,
    method: str,
    data: str,
    root: Path,
    columns: ColumnNames,
    images_at: Path | None,
    fraction: float | None,
    examples: int | None,
    limit: int | None,
    loss: Loss,
    steps: int,
    learning_rate: float | None,
    validation: float,
    out: Path | None,
    form: str,
    threads: int | None,
    seed: int,
) -> None:
    """Train a CLIP baseline on few-shot examples and measure it on the test questions.

    CLIP is a folder in transformers' format. With the same seed, training examples, negatives and
    losses are those of "dsd-trt train", and test questions those of "dsd-trt eval". A tie counts
    as a wrong answer.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_writable
    from dsd_trt.train.baselines.folder import require_clip
    from dsd_trt.train.data.catalogue import NAMES, open_dataset

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    trained = method != "zero-shot"
    is_table = data not in NAMES and (data == "-" or (root / data).exists())
    if trained and fraction is None and is_table:
        raise InputError(
            f"--method {method} learns from a share of {data} and is tested on the rest: give "
            "--fraction, such as 0.5"
        )
    if out:
        require_writable(out)
    require_clip(folder)  # before shapes are drawn
    of_table = (fraction, columns, images_at)
    few = open_dataset(data, root, "train", seed, examples, *of_table) if trained else None
    learning = [] if few is None else list(few)
    testing = open_dataset(data, root, "test", seed, limit, *of_table)
    testing.require_some("test questions")

    from dsd_trt.train.data.held_out import hold_out

    for line in (few or testing).lines():
        note(line)
    if trained:
        if not learning:
            raise InputError(f"{data} has nothing to learn from: a greater --fraction takes more")
        for line in hold_out(learning, validation, seed).lines():
            note(line)

    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    from dsd_trt.train.baselines.clip import load_clip
    from dsd_trt.train.baselines.fit import LEARNING_RATES, build_matcher, train_baseline
    from dsd_trt.train.baselines.matcher import by_matcher
    from dsd_trt.train.commands.left_out import asked, report_left_out
    from dsd_trt.train.evaluation.answers import ask
    from dsd_trt.train.evaluation.figures import as_text, count_left_out, figures, to_json, write
    from dsd_trt.train.fewshot.model import Validation
    from dsd_trt.train.fewshot.settings import FewShotSettings
    from dsd_trt.train.left_out import LeftOut
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with

    ctx.with_resource(computing_with(threads))
    clip = load_clip(folder)
    if out:
        ctx.with_resource(own_folder(out))
    training: dict[str, Any] = {}
    unlearned = LeftOut()
    with StageProgress() as progress:
        if method == "zero-shot":
            matcher = build_matcher(clip, method)
        else:

            def step(done: int, loss: float, outcome: Validation | None) -> None:
                progress.step("training", done, steps, {"loss": loss})

            settings = FewShotSettings(
                steps=steps,
                loss=loss,
                learning_rate=LEARNING_RATES[method] if learning_rate is None else learning_rate,
                seed=seed,
            )
            progress.begin("encoding")
            matcher, history = train_baseline(
                clip, method, learning, settings, validation, step, unlearned
            )
            training = {
                "examples": len(learning) - unlearned.questions,
                **unlearned.to_plain(),
                "validation": validation,
                "loss": loss,
                "steps": steps,
                "learning_rate": settings.learning_rate,
                "steps_done": len(history.losses),
                "best": history.best and asdict(history.best),
            }
        progress.step("asking questions", 0, testing.total)
        answers = list(
            ask(
                testing,
                by_matcher(matcher),
                progress=lambda done: progress.step("asking questions", done, testing.total),
            )
        )
    rows, left_out = figures(answers, seed), count_left_out(answers)
    note(asked(len(answers), testing.images, left_out))
    left_out.require_some(len(rows), f"test questions of {data}")
    about = {
        "scorer": folder,
        "method": method,
        "data": data,
        "fraction": testing.fraction,
        "limit": limit,
        "seed": seed,
        "training": training,
    }
    if out:
        write(out, rows, about, f"{Path(folder).name}, {method}, on {data}", left_out)
    as_asked = to_json(rows, about, left_out) if form == "json" else as_text(rows, left_out)
    click.echo(as_asked, nl=False)
    left_out.merge(unlearned.questions, unlearned.failures)
    report_left_out(ctx, left_out, testing.failures)


@click.command("tiny-clip")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder for the training state, the losses, and the CLIP in model/.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Number of optimiser steps, of 96 images each.  [default: 4000]",
)
@click.option(
    "--workers",
    "processes",
    **setting("WORKERS"),
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of training processes; the batches do not depend on it.",
)
@seed_option("Random seed of weights and batches.")
@click.option(
    "--smoke",
    is_flag=True,
    help="Test run of seconds instead of hours: every stage with a few steps.",
)
def tiny_clip(out: Path, steps: int | None, processes: int, seed: int, smoke: bool) -> None:
    """Train a CLIP for shapes from scratch: the baseline of the demonstration.

    It has the demonstration's size and sees the same images. Use it with "dsd-trt baseline".
    Repeat the command to resume an interrupted run from its last checkpoint.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_run, require_writable
    from dsd_trt.train.baselines.clip_settings import PLAN_NAME, SMOKE, STATES, ClipSettings
    from dsd_trt.train.run.plan import require_plan

    # What the arguments tell comes first: the libraries take seconds to import.
    sizes = SMOKE if smoke else ClipSettings()
    settings = replace(sizes, seed=seed, steps=steps or sizes.steps)
    settings.require_even(processes)
    require_writable(out)
    require_run(out, PLAN_NAME)
    require_plan(out / PLAN_NAME, asdict(settings), STATES)

    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    from dsd_trt.train.baselines.tiny_clip import pretrain_tiny_clip
    from dsd_trt.train.run.memory import keep_freed_memory
    from dsd_trt.train.run.progress import StageProgress

    keep_freed_memory()
    click.get_current_context().with_resource(own_folder(out))
    with StageProgress() as progress:
        try:
            model = pretrain_tiny_clip(out, settings, processes=processes, progress=progress.step)
        except ValueError as error:
            raise InputError(str(error)) from error
    note(f"CLIP: {model}")
