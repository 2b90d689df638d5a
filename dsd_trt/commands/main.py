"""The `dsd-trt` command: subcommands by name, each imported when called."""

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
from click.shell_completion import CompletionItem

from dsd_trt.commands.environment import Setting, variable, with_settings
from dsd_trt.commands.log import record, with_log
from dsd_trt.commands.signals import INTERRUPTED, interrupting
from dsd_trt.errors import DISK_FULL, DsdError, MissingExtraError, with_causes
from dsd_trt.installation import install_command


@dataclass(frozen=True)
class Subcommand:
    """The location of a subcommand.

    Attributes:
        home: location of its click command, as "module:attribute".
        summary: its line in `dsd-trt --help`, stored here so that help imports nothing.
        extra: name of the optional extra that installs its packages.
    """

    home: str
    summary: str
    extra: str | None = None


SUBCOMMANDS = {
    "score": Subcommand("dsd_trt.commands.score:score", "Score images against texts."),
    "explain": Subcommand(
        "dsd_trt.commands.explain:explain", "Show which words a score comes from, and where."
    ),
    "filter": Subcommand(
        "dsd_trt.commands.filter:filter_pairs", "Keep the pairs whose text describes the image."
    ),
    "index": Subcommand(
        "dsd_trt.commands.index:index", "Encode images once, to score texts later."
    ),
    "calibrate": Subcommand(
        "dsd_trt.commands.calibrate:calibrate", "Fit match probabilities to labelled pairs."
    ),
    "inspect": Subcommand(
        "dsd_trt.commands.inspect:inspect", "Say what a bundle is, from its files."
    ),
    "doctor": Subcommand(
        "dsd_trt.commands.doctor:doctor", "Say what works on this machine, and what mends the rest."
    ),
    "export": Subcommand(
        "dsd_trt.export.commands.export:export",
        "Export a checkpoint as a bundle of ONNX graphs.",
        "export",
    ),
    "adapt": Subcommand(
        "dsd_trt.export.commands.adapt:adapt", "Replace a bundle's adapter.", "export"
    ),
    "build": Subcommand(
        "dsd_trt.engines.commands.build:build", "Compile a bundle's graphs to TensorRT plans."
    ),
    "gpu-check": Subcommand(
        "dsd_trt.export.commands.gpu_check:gpu_check",
        "Check a bundle on this machine's GPU, and measure it.",
    ),
    "triton": Subcommand(
        "dsd_trt.engines.commands.triton:triton",
        "Write a model repository for Triton Inference Server.",
        "triton",
    ),
    "sign": Subcommand("dsd_trt.commands.sign:sign", "Sign a bundle."),
    "bench": Subcommand(
        "dsd_trt.export.commands.bench:bench",
        "Measure a bundle's speed against the alternatives.",
        "export",
    ),
    "ranges": Subcommand(
        "dsd_trt.export.commands.ranges:ranges",
        "Report the FP16 headroom of every activation of a bundle.",
        "export",
    ),
    "eval": Subcommand(
        "dsd_trt.train.commands.evaluate:evaluate",
        "Measure the accuracy of a bundle or checkpoint on a data set.",
        "train",
    ),
    "ablate": Subcommand(
        "dsd_trt.train.commands.ablate:ablate",
        "Measure the effect of layers, heads, pooling and noise levels.",
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
    "imitate": Subcommand(
        "dsd_trt.train.commands.imitate:imitate",
        "Teach matrix mode to estimate pair mode's scores.",
        "train",
    ),
    "train": Subcommand("dsd_trt.train.commands.train:train", "Train a few-shot adapter.", "train"),
    "pretrain": Subcommand(
        "dsd_trt.train.commands.pretrain:pretrain",
        "Train the demonstration or its baseline from scratch.",
        "train",
    ),
    "import-released": Subcommand(
        "dsd_trt.train.commands.import_released:import_released",
        "Convert a checkpoint of the released research code to an adapter.",
        "train",
    ),
    "make-random": Subcommand(
        "dsd_trt.train.commands.make_random:make_random",
        "Write a checkpoint of real size with random weights.",
        "train",
    ),
}


class Text(click.types.StringParamType):
    """Text, for which a shell offers files: most texts are names of files, bundles and folders."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell, as if the command had no completion."""
        return [CompletionItem(incomplete, type="file")]


class LazyGroup(click.Group):
    """A group that knows its subcommands by name, and imports only the one it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a workflow."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand.

        Raises:
            MissingExtraError: a package the command needs is not installed.
        """
        if (subcommand := SUBCOMMANDS.get(cmd_name)) is None:
            return None
        module, attribute = subcommand.home.split(":")
        with _naming_the_extra(lambda: cmd_name):
            command: click.Command = getattr(importlib.import_module(module), attribute)
        _prepare(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of subcommands with their summaries, importing none of them."""
        names = [
            CompletionItem(name, help=it.summary)
            for name, it in SUBCOMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an empty argument, which as a path would mean the current folder.

        Raises:
            click.UsageError: an argument is empty, for example from an unset shell variable.
        """
        if any(arg == "" or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            raise click.UsageError("an argument is empty; is a variable of the shell not set?", ctx)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands with their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, it.summary) for name, it in SUBCOMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; deliberate errors become a message and an exit code."""
        try:
            # Commands import heavy packages where they use them, so one may be found missing here.
            with _naming_the_extra(lambda: ctx.invoked_subcommand):
                return super().invoke(ctx)
        except DsdError as error:
            raise _shown(str(error), error.exit_code) from error
        except BrokenPipeError:  # the reader closed the pipe
            raise
        except OSError as error:
            if error.strerror is None:
                raise  # raised by a library, not by the system
            unnamed = error.filename is None  # raised by the system: a failing or full disk
            where = "a file" if unnamed else repr(os.fsdecode(error.filename))
            exit_code = 1 if unnamed or error.errno in DISK_FULL else 2
            raise _shown(f"cannot use {where}: {error.strerror}", exit_code) from error


def _prepare(command: click.Command) -> None:
    """Give a command what all have: -q and -v, and number options that are finite."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _prepare(inner)
        return
    if any(parameter.name == "quiet" for parameter in command.params):
        return  # the commands of a process are asked for several times
    assert command.callback is not None
    command.callback = with_log(with_settings(command.callback))
    command.params += _verbosity()
    for parameter in command.params:
        if isinstance(parameter.type, click.types.FloatParamType):
            parameter.callback = _finite
        if type(parameter.type) is click.types.StringParamType:
            parameter.type = Text()


def _verbosity() -> list[click.Parameter]:
    """-q and -v, which are recorded in the context; no command gets them as arguments."""
    said: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": record}
    return [
        Setting(
            ["-q", "--quiet"],
            **variable("QUIET"),
            **said,
            help="Print no progress and no notes on stderr; warnings and errors stay.",
        ),
        Setting(
            ["-v", "--verbose"],
            **variable("VERBOSE"),
            **said,
            help="Print on stderr what is done: choice of the engine, caches, batch sizes, times.",
        ),
    ]


def _shown(message: str, exit_code: int) -> click.ClickException:
    """Print an error the way click does, then end the command."""
    shown = click.ClickException(message)
    shown.exit_code = exit_code  # type: ignore[misc]
    return shown


def _finite(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The value of a number option, or all its values; click accepts NaN in every range."""
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not math.isfinite(number):
            raise click.BadParameter(f"{number} is no finite number", ctx, parameter)
    return value


@contextlib.contextmanager
def _naming_the_extra(name: Callable[[], str | None]) -> Iterator[None]:
    """Convert an error about a missing package into one that names its extra.

    A missing module of our own is a fault of the package, so that error stays.
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
            f"Install them with: {install_command(subcommand.extra)}"
        ) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dsd-trt")
def cli() -> None:
    """Score how well texts describe images, with a diffusion model's cross-attention.

    Exit codes: 0 fine, 1 unexpected failure, 2 wrong usage, 3 finished but some inputs could not be
    scored, 4 the environment cannot do it, 130 interrupted.
    """


cli.params += _verbosity()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, then exit."""
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
    """Whether Ctrl-C caused an error: click and compiled modules convert it into their own."""
    return any(isinstance(it, (click.Abort, KeyboardInterrupt)) for it in with_causes(error))
