"""Advice of commands: options that an error names, and whether they are the command's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from dsd_trt.commands import main
from dsd_trt.commands.main import cli

# A command line within a sentence ends with it; other programs have options of their own.
_COMMAND = re.compile(r"\b(dsd-trt|docker|hf|minisign|pip|tritonserver|uv) ((?:[^.;\n]|\.(?! ))*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options_of(command: str) -> set[str]:
    """Long options of a command; those of all its subcommands, if it has some."""
    context = click.Context(cli)
    found = cli.get_command(context, command)
    assert found is not None, command
    inner = found.commands.values() if isinstance(found, click.Group) else [found]
    every = [option for it in inner for parameter in it.params for option in _names(parameter)]
    return {"--help", "--version", *every}


def foreign_options(message: str, command: str) -> list[str]:
    """Options in a message that are neither the command's nor in a command line with their own.

    Args:
        message: an error or a note of the command.
        command: name of the command, such as "score".
    """
    known = options_of(command)
    return [it for it in _OPTION.findall(_COMMAND.sub("", message)) if it not in known]


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `dsd-trt COMMAND` of a text, and the options that follow it."""
    for program, words in _COMMAND.findall(text):
        for part in f"{program} {words}".split("dsd-trt ")[1:]:
            if named := re.match(r"[a-z][a-z-]*", part):
                yield named[0], _OPTION.findall(part)


def watch_errors(patch: pytest.MonkeyPatch) -> None:
    """Let every error of a command within this process fail that names an option it lacks."""
    show = main._shown

    def shown(message: str, exit_code: int) -> click.ClickException:
        name = click.get_current_context().invoked_subcommand
        if name is not None:
            assert foreign_options(message, name) == [], f"dsd-trt {name}: {message}"
        return show(message, exit_code)

    patch.setattr(main, "_shown", shown)


def _names(parameter: click.Parameter) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]
