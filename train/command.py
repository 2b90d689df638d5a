"""`dsd-trt pretrain`: train a demonstration model from scratch, on the command line."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dsd_trt.errors import InputError, MissingExtraError


@click.group()
def pretrain() -> None:
    """Train a demonstration model from scratch."""


@pretrain.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder: checkpoints, losses, pictures, and the model in model/.",
)
@click.option("--seed", default=0, show_default=True, help="Of weights, batches and noise.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all of them by default.")
@click.option("--smoke", is_flag=True, help="Seconds instead of hours: every stage, no learning.")
def shapes(out: Path, seed: int, threads: int | None, smoke: bool) -> None:
    """Train the embedded model "shapes": coloured shapes, 64 x 64, 6 M parameters.

    Takes about two hours on two CPU cores. A run that was stopped goes on from its last
    checkpoint when the same command is given again.
    """
    try:
        import torch

        from dsd_trt.train.memory import keep_freed_memory
        from dsd_trt.train.shapes.pretrain import SMOKE, Plan, pretrain_shapes
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"training needs packages that are not installed here ({error}). "
            "Install them with: pip install 'dsd-trt[train]'"
        ) from error
    from rich.console import Console

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    with StageProgress(console) as progress:
        try:
            model = pretrain_shapes(
                out,
                SMOKE if smoke else Plan(),
                seed=seed,
                progress=progress.step,
                say=console.print,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
    console.print(f"model: {model}")


class StageProgress:
    """A progress bar a stage, with its latest figures and the time left."""

    def __init__(self, console: object) -> None:
        from rich import progress as rich_progress

        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
            rich_progress.TextColumn("{task.fields[figures]}"),
            console=console,  # type: ignore[arg-type]
        )
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._shown = 0.0

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Show that `done` of `total` steps of a stage are finished."""
        if stage not in self._tasks:
            # What was done before a restart does not count in the estimate of the time left.
            self._tasks[stage] = self._bar.add_task(
                stage, total=total, completed=max(0, done - 1), figures=""
            )
        now = time.monotonic()
        if done == total or now - self._shown > 0.2:
            self._shown = now
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self._bar.update(self._tasks[stage], completed=done, figures=text)
