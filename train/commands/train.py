"""`dsd-trt train`: a few-shot adapter for a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from dsd_trt.bundle.manifest import HeadMode, Resize, TrainedFor
from dsd_trt.commands.options import (
    few_shot_options,
    model_option,
    seed_option,
    validation_option,
)
from dsd_trt.errors import InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.data_options import data_options

EXAMPLES = """\b
Examples:
  dsd-trt train --data shapes-comvg --limit 400 --out adapter
  dsd-trt train --model sd-2-1 --data comvg --root data/comvg --fraction 0.05 --out adapter
  dsd-trt train --model sd-2-1 --data pairs.csv --score attention+denoising --out adapter
"""


def parse_rank(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Parse a rank: a number above 0, or "full" as None."""
    if value == "full":
        return None
    if not value.isdecimal() or int(value) == 0:
        raise click.BadParameter(f'{value!r} is neither a number above 0 nor "full"')
    return int(value)


@click.command(epilog=EXAMPLES)
@model_option
@data_options
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.05,
    show_default=True,
    help="Share of the training set used for training.",
)
@click.option("--limit", type=click.IntRange(2), help="Maximum number of training questions.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ADAPTER",
    help="Output folder for the adapter; an interrupted run resumes from it.",
)
@click.option(
    "--mode",
    type=click.Choice(get_args(TrainedFor)),
    default="pair",
    show_default=True,
    help="Mode the adapter is trained for: the paper's pair mode, the fast matrix mode of `export "
    "--matrix`, or both.",
)
@click.option(
    "--score",
    type=click.Choice(["attention", "attention+denoising", "denoising"]),
    default="attention",
    show_default=True,
    help="Score the adapter is trained for; the paper's is attention.",
)
@click.option(
    "--head-weights",
    "head_mode",
    type=click.Choice(get_args(HeadMode)),
    default="learned",
    show_default=True,
    help="Source of the head weights: equal for all heads; calibrated by attribution on the "
    "training examples; learned by gradient descent; or dynamic, weighted by each pair's "
    "attribution inside the graph.",
)
@click.option(
    "--hard",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of hard negatives, the question's own candidates; the others are random.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    help="Number of optimiser steps.",
)
@click.option(
    "--batch",
    "questions",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Questions per batch and GPU.",
)
@click.option(
    "--rank",
    default="4",
    show_default=True,
    callback=parse_rank,
    help='Rank of the static prompts; "full" trains full matrices.',
)
@click.option(
    "--hidden",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Width of the mapping network's hidden layer.",
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
@seed_option("Random seed of the split, the initial weights and the batches.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    root: Path,
    fraction: float,
    limit: int | None,
    out: Path,
    validation: float,
    resize: Resize | None,
    seed: int,
    **sizes: Any,
) -> None:
    """Train a few-shot adapter.

    Questions with an unreadable image are left out and counted, and the exit code is then 3. On
    several GPUs: accelerate launch -m dsd_trt train ...
    """
    from rich.console import Console

    from dsd_trt.train.commands.left_out import report_left_out
    from dsd_trt.train.data.catalogue import open_dataset
    from dsd_trt.train.fewshot.settings import FewShotSettings
    from dsd_trt.train.fewshot.training import train_adapter
    from dsd_trt.train.run.device import process_state
    from dsd_trt.train.run.libraries import hush_libraries
    from dsd_trt.train.run.progress import StageProgress

    hush_libraries()
    settings = FewShotSettings(seed=seed, resize=resize or "bicubic-stretch", **sizes)
    questions = list(open_dataset(data, root, "train", seed, limit, fraction))
    source = {"data": data, "fraction": fraction, "limit": limit, "validation": validation}
    console = Console(stderr=True)
    if process_state().is_main_process:
        ctx.with_resource(own_folder(out))
    with StageProgress(console) as progress:
        try:
            report = train_adapter(
                model, questions, settings, out, source, validation, progress=progress.step
            )
        except ValueError as error:
            raise InputError(str(error)) from error
    console.print(f"adapter: {out}")
    if report.best is not None:
        console.print(
            f"validation at step {report.best.step}: accuracy {report.best.accuracy:.1%}, "
            f"cross-entropy {report.best.loss:.4f}"
        )
    console.print(f"to use it: dsd-trt export --model {model} --adapter {out} --out BUNDLE")
    if process_state().is_main_process:
        report_left_out(ctx, report.left_out)
