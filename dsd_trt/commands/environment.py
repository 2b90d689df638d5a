"""Environment variables: those that set options' defaults, and the others that the package reads.

An option with `**setting("ENGINE")` takes its default from DSD_TRT_ENGINE. The command line wins
over the environment, and an empty variable counts as unset. Python's `Scorer` does not read
settings. Imports nothing heavy, so that help is fast.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dsd_trt.commands.log import say
from dsd_trt.errors import DsdError, MissingExtraError

if TYPE_CHECKING:
    from dsd_trt.limits import Limit

PREFIX = "DSD_TRT_"
SETTINGS = {
    "BUNDLE": "bundle to score with",
    "REQUIRE_SIGNATURE": "public key that must have signed every bundle",
    "ENGINE": "engine that computes",
    "DEVICE": "number of the GPU; engines of the processor do not look at it",
    "THREADS": "number of threads; engines of a GPU do not look at it",
    "MEMORY_BUDGET": "memory for activations, in MiB",
    "CACHE_COMPILED": "1 keeps what OpenVINO compiles of a large bundle",
    "TEXT_CACHE": "memory for texts that come again, in MiB",
    "TUNE": "1 finds the fastest batch size",
    "FORMAT": "format of scores, where the suffix of `-o` tells none",
    "REPORT_FORMAT": "format of figures",
    "BATCH": "batch sizes of plans; for build, several profiles are separated by spaces",
    "WORKSPACE": "GPU memory for building plans, in GiB",
    "TIMING_CACHE": "file of kernel times for building plans",
    "WORKERS": "number of training processes",
    "QUIET": "1 leaves notes and progress out",
    "VERBOSE": "1 prints what is done",
}
"""Names of the variables that set an option's default, without `PREFIX`, and their meaning."""

_CACHE = "CACHE"
_NOT_FITTING = {"device": 0, "threads": None}  # what a variable for other engines is replaced by


class Setting(click.Option):
    """An option with a variable, whose errors name the one of both that has the wrong value."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name of the option, or of the variable that the value is from."""
        if ctx is not None and self.name is not None and from_environment(ctx, self.name):
            return f"the environment variable {self.envvar}"
        return click.Parameter.get_error_hint(self, ctx)


class SettingsCommand(click.Command, ABC):
    """A command that reads some settings for some of its arguments alone."""

    @abstractmethod
    def unread(self, given: Mapping[str, Any]) -> Collection[str]:
        """Parameters that the command does not read, given these values of all of them."""


def setting(name: str) -> dict[str, Any]:
    """Arguments of `click.option` for an option whose default a variable sets.

    Args:
        name: name of the variable, a key of `SETTINGS`.
    """
    return {"cls": Setting, **variable(name)}


def variable(name: str) -> dict[str, Any]:
    """Arguments of a `Setting`, as for `setting`."""
    assert name in SETTINGS
    return {"envvar": PREFIX + name, "show_envvar": True}


def from_environment(context: click.Context, name: str) -> bool:
    """Whether the value of a parameter is from the environment."""
    return context.get_parameter_source(name) is ParameterSource.ENVIRONMENT


def on_command_line(context: click.Context, *names: str) -> bool:
    """Whether one of some parameters is given on the command line."""
    return any(context.get_parameter_source(it) is ParameterSource.COMMANDLINE for it in names)


def other_variables() -> dict[str, Limit | None]:
    """The other variables of the package, with the limit that one sets; None for the cache's."""
    from dsd_trt import limits

    found = [it for it in vars(limits).values() if isinstance(it, limits.Limit)]
    return {PREFIX + _CACHE: None, **{it.variable: it for it in found}}


def refusal(variable: str, group: click.Command) -> str:
    """Why every command that has an option with a variable refuses its value; "" if one takes it.

    Args:
        variable: name of the variable, with its prefix.
        group: group of the commands. One that cannot be imported here is passed over.
    """
    said = ""
    if not os.environ.get(variable):
        return said
    for command in _commands(group):
        for it in command.params:
            if not (isinstance(it, Setting) and it.envvar == variable):
                continue
            context = click.Context(command, info_name=command.name)
            try:
                it.process_value(context, it.value_from_envvar(context))
            except (click.UsageError, DsdError) as error:
                wrong = error.message if isinstance(error, click.UsageError) else str(error)
                said = f"{variable} has no valid value: {wrong}"
            else:
                return ""
    return said


def _commands(group: click.Command) -> Iterator[click.Command]:
    """The commands of a group that can be imported here."""
    if not isinstance(group, click.Group):
        yield group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        with contextlib.suppress(Exception):  # a damaged file, or a package that is not installed
            if (command := group.get_command(context, name)) is not None:
                yield from _commands(command)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings, for a process that gets all of them as arguments."""
    return {name: it for name, it in environment.items() if name not in _variables()}


def with_settings(run: Callable[..., Any]) -> Callable[..., Any]:
    """A command's function for which settings of the environment fit the engine.

    A variable that no command reads is warned of. Errors of usage and of the machine name the
    settings that are from the environment.
    """

    @functools.wraps(run)
    def settled(*args: Any, **kwargs: Any) -> Any:
        from dsd_trt.log import get_logger  # imports logging, which help has no use for

        context = click.get_current_context()
        _warn_of_unknown()
        used = {it: value for it, value in _given(context).items() if it in kwargs}
        for name in used.keys() & _not_fitting(str(kwargs.get("engine", "auto"))):
            kwargs[name] = _NOT_FITTING[name]
            del used[name]
        if used and isinstance(context.command, SettingsCommand):
            for name in used.keys() & set(context.command.unread(kwargs)):
                del used[name]
        told = f"From the environment: {', '.join(used.values())}"
        if used:
            get_logger(__name__).info("%s", told)
        try:
            return run(*args, **kwargs)
        except DsdError as error:
            if used and error.exit_code in (2, 4) and not isinstance(error, MissingExtraError):
                error.args = (f"{error}\n{told}",)
            raise

    return settled


def _variables() -> set[str]:
    """Variables that set an option's default."""
    return {PREFIX + name for name in SETTINGS}


def _not_fitting(engine: str) -> set[str]:
    """Parameters that do not concern an engine."""
    from dsd_trt.engine import AUTO, ON_GPU

    if engine == AUTO:
        return set()
    return {"threads"} if engine in ON_GPU else {"device"}


def _given(context: click.Context) -> dict[str, str]:
    """Parameters of a command that are from the environment, each with NAME=VALUE."""
    return {
        str(it.name): f"{it.envvar}={os.environ.get(str(it.envvar), '')}"
        for it in context.command.params
        if isinstance(it, Setting) and from_environment(context, str(it.name))
    }


def _warn_of_unknown() -> None:
    known = {*_variables(), *other_variables()}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            from difflib import get_close_matches

            close = get_close_matches(name, known, 1)
            meant = f"; is {close[0]} meant?" if close else ""
            say(f"warning: no variable {name} is known, so it has no effect{meant}")
