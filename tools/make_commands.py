"""Write commands.md, the help text of every command, and the table of variables in settings.md.

python tools/make_commands.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import click

from dsd_trt.commands.environment import PREFIX, SETTINGS, Setting, other_variables
from dsd_trt.commands.main import cli
from dsd_trt.limits import COMPILED_BYTES, described

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


def variables() -> str:
    """Table of every environment variable of the package, as lines of Markdown."""
    options: dict[str, list[str]] = {}  # by variable
    users: dict[str, list[str]] = {}
    for path, command in commands(cli, "dsd-trt"):
        for it in command.params:
            if isinstance(it, Setting):
                option = max(it.opts, key=len)
                if option not in options.setdefault(str(it.envvar), []):
                    options[str(it.envvar)].append(option)
                users.setdefault(str(it.envvar), []).append(path.removeprefix("dsd-trt "))
    everybody = users[f"{PREFIX}QUIET"]
    rows = ["| variable | sets | read by |", "|---|---|---|"]
    for name, meaning in SETTINGS.items():
        variable = PREFIX + name
        flags = ", ".join(f"`{it}`" for it in options[variable])
        readers = "every command" if users[variable] == everybody else ", ".join(users[variable])
        rows.append(f"| `{variable}` | {flags}: {meaning} | {readers} |")
    for variable, limit in other_variables().items():
        if limit is None:
            sets, readers = "folder of the [cache](speed.md#cache); empty: none", "Python"
        else:
            amount = described(limit.default, limit.unit)
            sets = f"a [limit](limits.md#limits-of-a-call), else {amount}"
            readers = "Python" if limit is COMPILED_BYTES else "Python, C++"
        rows.append(f"| `{variable}` | {sets} | every command, {readers} |")
    return "\n".join(rows) + "\n"


def with_variables(page: str) -> str:
    """The content of settings.md with the table as it is now."""
    found = re.search(r"^\| variable .*\n(?:\|.*\n)+", page, re.MULTILINE)
    assert found
    return page[: found.start()] + variables() + page[found.end() :]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    (ROOT / "docs" / "commands.md").write_text(render(), encoding="utf-8")
    settings = ROOT / "docs" / "settings.md"
    settings.write_text(with_variables(settings.read_text("utf-8")), encoding="utf-8")
