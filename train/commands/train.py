"""`dsd-trt train`: a few-shot adapter for a diffusion model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from dsd_trt.bundle.method import HeadMode, TrainedFor
from dsd_trt.commands.log import note
from dsd_trt.commands.options import model_option, pytorch_threads_option, seed_option
from dsd_trt.errors import InputError, counted
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.adapters import (
    adapter_option,
    chosen_adapter,
    require_base,
    sentence,
)
from dsd_trt.train.commands.data_options import data_options, fraction_option
from dsd_trt.train.commands.training_options import few_shot_options, validation_option

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames
    from dsd_trt.train.fewshot.report import TrainingReport

EXAMPLES = """\b
Examples:
  dsd-trt train --data shapes-comvg --limit 100 --out adapter
  dsd-trt train --model sd-2-1 --data comvg --root data/comvg --fraction 0.05 --out adapter
  dsd-trt train --data mine.csv --out adapter
  dsd-trt train --model sd-2-1 --data mine.parquet --text-column caption --out adapter
"""


def parse_rank(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | Literal["full"] | None:
    """Parse a rank: a number above 0, or "full"; None if it is left open."""
    if value is None or value == "full":
        return "full" if value else None
    if not value.isdecimal() or int(value) == 0:
        raise click.BadParameter(f'{value!r} is neither a number above 0 nor "full"')
    return int(value)


@click.command(epilog=EXAMPLES)
@model_option
@data_options
@fraction_option("Share of the training set used for training.", "1, all", least=True)
@click.option("--limit", type=click.IntRange(2), help="Maximum number of training questions.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ADAPTER",
    help="Output folder for the adapter; an interrupted run resumes from it.",
)
@adapter_option("Adapter that training starts from", "--from")
@click.option(
    "--allow-worse",
    is_flag=True,
    help="Write the adapter even if it answers fewer questions right than what training started "
    "from, by more than a standard error; it is not trained again.",
)
@click.option(
    "--mode",
    type=click.Choice(get_args(TrainedFor)),
    help="Mode the adapter is trained for: the paper's pair mode, the fast matrix mode of `export "
    "--matrix`, or both.  [default: that of the adapter started from, else pair]",
)
@click.option(
    "--score",
    type=click.Choice(["attention", "attention+denoising", "denoising"]),
    help="Score the adapter is trained for; the paper's is attention.  [default: that of the "
    "adapter started from, else attention]",
)
@click.option(
    "--head-weights",
    "head_mode",
    type=click.Choice(get_args(HeadMode)),
    help="Source of the head weights: equal for all heads; calibrated by attribution on the "
    "training examples; learned by gradient descent; or dynamic, weighted by each pair's "
    "attribution inside the graph.  [default: that of the adapter started from, else learned]",
)
@click.option(
    "--hard",
    type=click.FloatRange(0, 1),
    help="Share of hard negatives, the question's own candidates; the others are random.  "
    "[default: 1, with --paper 0.5]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Number of optimiser steps.  [default: 200 for up to 40 training questions, growing up "
    "to 1500 for 149 and more; with --paper 600]",
)
@click.option(
    "--batch",
    "questions",
    type=click.IntRange(1),
    help="Questions per batch and GPU.  [default: 8]",
)
@click.option(
    "--paper",
    is_flag=True,
    help="Train in the paper's form: prompts and head weights alone, binary cross-entropy, images "
    "as they are. It learns less from few examples.",
)
@click.option(
    "--update-rank",
    type=click.IntRange(0),
    help="Rank of the updates of the U-Net's own matrices, which export merges; 0 trains none.  "
    "[default: that of the adapter started from, else 2; with --paper 0]",
)
@click.option(
    "--conditional/--static",
    default=None,
    help="Whether the image-conditional part of the prompts (Eq. 5) is trained.  [default: "
    "--static, with --paper --conditional]",
)
@click.option(
    "--copies",
    type=click.IntRange(0),
    help="Copies of each training image, moved, turned and scaled a little.  [default: 8, with "
    "--paper 0]",
)
@click.option(
    "--rank",
    callback=parse_rank,
    help='Rank of the static prompts; "full" trains full matrices.  [default: that of the adapter '
    "started from, else 4]",
)
@click.option(
    "--hidden",
    type=click.IntRange(1),
    help="Width of the mapping network's hidden layer.  [default: that of the adapter started "
    "from, else 32]",
)
@validation_option
@click.option(
    "--validate-every",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Number of steps between validations.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of validations without improvement after which training stops.",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Whether a second training, from the same start, learns from all questions, those held "
    "out included. There is none if the first one was worse than its start, or clearly better at "
    "an earlier step than at its end.  [default: --refit, with --paper --no-refit]",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of batches whose gradients are accumulated per optimiser step.",
)
@click.option(
    "--mixed-precision",
    type=click.Choice(["no", "fp16", "bf16"]),
    default="no",
    show_default=True,
    help="Precision of autocast; attention logits and pooling stay FP32.",
)
@click.option(
    "--recompute", is_flag=True, help="Gradient checkpointing: less memory, more time per step."
)
@few_shot_options
@pytorch_threads_option
@seed_option("Random seed of the split, the initial weights and the batches.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    root: Path,
    columns: ColumnNames,
    images_at: Path | None,
    fraction: float | None,
    limit: int | None,
    out: Path,
    adapter: str,
    allow_worse: bool,
    paper: bool,
    validation: float,
    threads: int | None,
    seed: int,
    **sizes: Any,
) -> None:
    """Train a few-shot adapter.

    Training starts from the model's own adapter if it has one, and the same validation questions
    are answered before and after. Then a second training learns from all rows, those held out for
    validation included. Rows and questions that cannot be used are left out and counted, and the
    exit code is then 3. On several GPUs: accelerate launch -m dsd_trt train ...
    """
    from dsd_trt.train.data.catalogue import require_columns

    require_columns(data, root, columns)  # before anything else is imported

    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_run, require_writable
    from dsd_trt.train.data.catalogue import open_dataset
    from dsd_trt.train.diffusion.place import find_place, require_model
    from dsd_trt.train.fewshot.settings import RECIPE, continued
    from dsd_trt.train.run.plan import require_plan
    from dsd_trt.train.run_key import adapter_identity
    from dsd_trt.train.scoring.adapter_file import PLAN_NAME, RESUMED

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    given = {name: value for name, value in sizes.items() if value is not None} | {"seed": seed}
    if given.get("rank") == "full":
        given["rank"] = None
    recipe = {} if paper else RECIPE
    continued(None, given, recipe)  # contradictions among the options themselves
    require_writable(out)
    require_run(out, PLAN_NAME)
    part = open_dataset(data, root, "train", seed, limit, fraction, columns, images_at)
    require_model(place := find_place(model))
    start = chosen_adapter(adapter, model)
    require_base(start, place)
    settings = continued(start, given, recipe)
    source = {"data": data, "fraction": part.fraction, "limit": limit, "columns": asdict(columns)}
    if images_at is not None:
        source["images"] = str(images_at)
    plan = {
        **source,
        "from": None if start is None else adapter_identity(start.folder),
        "validation": validation,
        **asdict(settings),
    }
    require_plan(out / PLAN_NAME, plan, RESUMED, partial=True)
    questions = list(part)

    from dsd_trt.train.data.held_out import hold_out

    for line in part.lines():
        note(line)
    if not questions:
        raise InputError(f"{data} has nothing to learn from: a greater --fraction takes more")
    for line in hold_out(questions, validation, seed).lines():
        note(line)
    note(sentence(start, adapter, "--from"))

    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    from dsd_trt.train.commands.left_out import report_left_out
    from dsd_trt.train.fewshot.training import train_adapter
    from dsd_trt.train.run.device import process_state
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with

    ctx.with_resource(computing_with(threads))
    if process_state().is_main_process:
        ctx.with_resource(own_folder(out))
    with StageProgress() as progress:
        try:
            report = train_adapter(
                model,
                questions,
                settings,
                out,
                source,
                validation,
                progress=progress.step,
                start=None if start is None else start.folder,
                allow_worse=allow_worse,
                side_by_side=True,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
    _report(report, model, out, adapter)
    if process_state().is_main_process:
        report_left_out(ctx, report.left_out, part.failures)


def _report(report: TrainingReport, model: str, out: Path, adapter: str) -> None:
    """Note what training came to, and what can be done with it."""
    if report.left_out.questions:
        learned, held = (counted(number, "question") for number in report.questions)
        validated = f", validated on {held}" if report.comparison.held_out else ""
        note(f"learned from {learned}{validated}: the images of others cannot be read")
    note(report.comparison.line())
    if report.refit_losses:
        first = counted(report.questions[0], "question")
        note(
            f"these answers are of the first training, on {first}. The adapter is that of a second "
            f"one, on all {report.learned_from}; --no-refit, with another --out, keeps the first"
        )
    if report.comparison.held_out and not report.comparison.decided:
        note(
            "to know, ask new and old more questions that neither learned from: dsd-trt eval "
            f"{model} --data TABLE --adapter {out}, and --adapter {adapter}"
        )
    if report.best is not None and report.best.step == 0:
        note(
            "every validated step was clearly worse than what training started from: the adapter "
            "is that, with its calibration fitted to these questions"
        )
    note(f"adapter: {out}")
    note(f"to use it: dsd-trt export --model {model} --adapter {out} --out BUNDLE")
    note(
        "its probabilities are rough: fit them to pairs that it has not learned from, dsd-trt "
        "calibrate BUNDLE --data TABLE"
    )
