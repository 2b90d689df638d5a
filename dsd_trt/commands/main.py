"""The `dsd-trt` command: subcommands by name, each imported when it is called."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from dsd_trt.commands.signals import INTERRUPTED, interrupting
from dsd_trt.errors import DISK_FULL, DsdError, MissingExtraError, with_causes


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand lives.

    Attributes:
        home: "module:attribute" of its click command.
        summary: its line in `dsd-trt --help`, here so that help imports nothing.
        extra: the optional extra its packages come with.
    """

    home: str
    summary: str
    extra: str | None = None


SUBCOMMANDS = {
    "score": Subcommand("dsd_trt.commands.score:score", "Score images against texts."),
    "index": Subcommand(
        "dsd_trt.commands.index:index", "Encode images once, to score other texts later."
    ),
    "export": Subcommand(
        "dsd_trt.export.commands.export:export",
        "Export a model as a bundle of ONNX graphs.",
        "export",
    ),
    "adapt": Subcommand(
        "dsd_trt.export.commands.adapt:adapt", "Put another adapter into a bundle.", "export"
    ),
    "build": Subcommand(
        "dsd_trt.engines.commands.build:build", "Compile a bundle's graphs to TensorRT plans."
    ),
    "gpu-check": Subcommand(
        "dsd_trt.engines.commands.gpu_check:gpu_check", "Try a bundle on the GPU here, and measure."
    ),
    "triton": Subcommand(
        "dsd_trt.engines.commands.triton:triton",
        "Write a model repository for Triton Inference Server.",
        "triton",
    ),
    "sign": Subcommand("dsd_trt.commands.sign:sign", "Sign a bundle."),
    "bench": Subcommand(
        "dsd_trt.export.commands.bench:bench",
        "Measure a bundle against the alternatives.",
        "export",
    ),
    "ranges": Subcommand(
        "dsd_trt.export.commands.ranges:ranges",
        "Tell how large values get in a bundle, and what FP16 leaves of room.",
        "export",
    ),
    "eval": Subcommand(
        "dsd_trt.train.commands.evaluate:evaluate",
        "Measure a bundle or a model on a data set.",
        "train",
    ),
    "ablate": Subcommand(
        "dsd_trt.train.commands.ablate:ablate",
        "Measure what layers, heads, pooling and noise levels are worth.",
        "train",
    ),
    "baseline": Subcommand(
        "dsd_trt.train.commands.baseline:baseline",
        "Measure CLIP on a data set, zero-shot or trained.",
        "train",
    ),
    "reproduce": Subcommand(
        "dsd_trt.train.commands.reproduce:reproduce",
        "Reproduce the paper's tables and figures.",
        "train",
    ),
    "train": Subcommand("dsd_trt.train.commands.train:train", "Train a few-shot adapter.", "train"),
    "pretrain": Subcommand(
        "dsd_trt.train.commands.pretrain:pretrain",
        "Train a demonstration model from scratch.",
        "train",
    ),
    "import-released": Subcommand(
        "dsd_trt.train.commands.import_released:import_released",
        "Turn a checkpoint of the released research code into an adapter.",
        "train",
    ),
    "make-random": Subcommand(
        "dsd_trt.train.commands.make_random:make_random",
        "Write a model of real sizes with random weights.",
        "train",
    ),
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports them one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the work."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand.

        Raises:
            MissingExtraError: a package it needs is not installed.
        """
        if (subcommand := SUBCOMMANDS.get(cmd_name)) is None:
            return None
        module, attribute = subcommand.home.split(":")
        with _naming_the_extra(lambda: cmd_name):
            command: click.Command = getattr(importlib.import_module(module), attribute)
        for parameter in command.params:
            if isinstance(parameter.type, click.types.FloatParamType):
                parameter.callback = _finite
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an argument without a character: as a path it would be the current folder.

        Raises:
            click.UsageError: there is one, as where a shell's variable is not set.
        """
        if any(arg == "" or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            raise click.UsageError("an argument is empty; is a variable of the shell not set?", ctx)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands from their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, it.summary) for name, it in SUBCOMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; errors raised on purpose become a message and an exit code."""
        try:
            # Commands import what is heavy where they use it: only now may a package be missing.
            with _naming_the_extra(lambda: ctx.invoked_subcommand):
                return super().invoke(ctx)
        except DsdError as error:
            raise _shown(str(error), error.exit_code) from error
        except BrokenPipeError:  # the reader has seen enough
            raise
        except OSError as error:
            if error.strerror is None:
                raise  # a library's, of something else than the system
            unnamed = error.filename is None  # by the system: a disk that fails, or is full
            where = "a file" if unnamed else repr(os.fsdecode(error.filename))
            exit_code = 1 if unnamed or error.errno in DISK_FULL else 2
            raise _shown(f"cannot use {where}: {error.strerror}", exit_code) from error


def _shown(message: str, exit_code: int) -> click.ClickException:
    """What click prints after `Error:`, and ends the command with."""
    shown = click.ClickException(message)
    shown.exit_code = exit_code  # type: ignore[misc]
    return shown


def _finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A number option's value; click takes NaN for a number of every range."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number", ctx, parameter)
    return value


@contextlib.contextmanager
def _naming_the_extra(name: Callable[[], str | None]) -> Iterator[None]:
    """Turn a package that is missing into the extra that installs it.

    A missing module of ours is no extra's doing, and stays what it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        subcommand = SUBCOMMANDS.get(name() or "")
        ours = (error.name or "").partition(".")[0] == "dsd_trt"
        if subcommand is None or subcommand.extra is None or ours:
            raise
        raise MissingExtraError(
            f"'dsd-trt {name()}' needs packages that are not installed here ({error}). "
            f"Install them with: pip install 'dsd-trt[{subcommand.extra}]'"
        ) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dsd-trt")
def cli() -> None:
    """Score how well texts describe images, with a diffusion model's cross-attention.

    Exit codes: 0 fine, 1 unexpected failure, 2 wrong usage, 3 finished but some inputs could not
    be scored, 4 the environment cannot do it, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        with interrupting():
            code = cli.main(arguments, prog_name="dsd-trt", standalone_mode=False)
    except Exception as error:
        if _was_interrupted(error):
            click.echo("interrupted", err=True)
            code = INTERRUPTED
        elif isinstance(error, click.ClickException):
            error.show()
            code = error.exit_code
        else:
            raise
    sys.exit(code)


def _was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: click and compiled modules turn it into their own."""
    return any(isinstance(it, (click.Abort, KeyboardInterrupt)) for it in with_causes(error))
