"""Write commands.md: the help text of every command.

python tools/make_commands.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import click

from dsd_trt.commands.main import cli

ROOT = Path(__file__).parents[1]
WIDTH = 96
INTRODUCTION = """\
# Commands

Written by `python tools/make_commands.py`; `dsd-trt COMMAND --help` prints the same.
"""


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that performs work, with the words that call it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def render() -> str:
    """Content of commands.md."""
    parts = [INTRODUCTION]
    for path, command in commands(cli, "dsd-trt"):
        context = click.Context(
            command,
            info_name=path,
            help_option_names=["-h", "--help"],
            terminal_width=WIDTH,
            max_content_width=WIDTH,
        )
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    (ROOT / "docs" / "commands.md").write_text(render(), encoding="utf-8")
