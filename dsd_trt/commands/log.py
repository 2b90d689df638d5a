"""What goes to stderr, as -q and -v say, which every command has.

Results go to stdout. On stderr there are notes and progress, which -q leaves out; warnings and
failures, which are always there; and with -v the library's log. Imports nothing heavy, so that help
is fast.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from dsd_trt.scorer import Scorer

_GIVEN = "dsd_trt.given"  # in a context's `meta`: -q and -v, and whether on the command line
_QUIET = "dsd_trt.quiet"  # in a context's `meta`: whether notes are left out


def note(message: object = "") -> None:
    """Print a line on stderr that -q leaves out."""
    if not is_quiet():
        say(message)


def say(message: object = "") -> None:
    """Print a line on stderr in any case: a warning, a failure, or what was asked for."""
    # A progress bar takes the place of sys.stderr meanwhile, and prints the line above itself.
    click.echo(message, err=True)


def note_engine(scorer: Scorer) -> None:
    """Note the engine and the mode in use, and why `auto` passed faster engines over."""
    note(f"engine: {scorer.engine}; {scorer.mode} mode")
    if scorer.why_engine:
        note(f"passed over: {scorer.why_engine}")


def is_quiet() -> bool:
    """Whether the running command was started with -q."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def with_log(run: Callable[..., Any]) -> Callable[..., Any]:
    """A command's function that shows the library's log on stderr while it runs."""

    @functools.wraps(run)
    def logged(*args: Any, **kwargs: Any) -> Any:
        context = click.get_current_context()
        wanted = _wanted(context)
        context.meta[_QUIET] = wanted == "quiet"
        with _shown(verbose=wanted == "verbose"):
            return run(*args, **kwargs)

    return logged


def record(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Callback of -q and -v, which may be given before and after the command's name."""
    name = str(parameter.name)
    if value:
        given = context.meta.setdefault(_GIVEN, {})
        on_command_line = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        given[name] = given.get(name, False) or on_command_line


def _wanted(context: click.Context) -> str | None:
    """Name of the flag that holds: one of the command line wins over the environment.

    Raises:
        click.UsageError: both are given in the same place.
    """
    given: dict[str, bool] = context.meta.get(_GIVEN, {})
    if len(given) == 2 and len(set(given.values())) == 1:
        if given["quiet"]:
            raise click.UsageError("-q and -v contradict each other: leave one out")
        raise click.UsageError("DSD_TRT_QUIET and DSD_TRT_VERBOSE are both set: unset one")
    return max(given, key=given.__getitem__, default=None)


@contextmanager
def _shown(*, verbose: bool) -> Iterator[None]:
    """Show the library's log on stderr: warnings, and with `verbose` what it does."""
    import logging  # takes 0.01 s, which help has no use for

    from dsd_trt.log import get_logger

    began = time.monotonic()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                say(f"{record.levelname.lower()}: {record.getMessage()}")
            else:
                say(f"[{time.monotonic() - began:.2f} s] {record.getMessage()}")

    handler, logger = Lines(), get_logger("dsd_trt")
    before = logger.level
    logger.addHandler(handler)
    if verbose:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
