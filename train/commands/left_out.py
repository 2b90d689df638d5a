"""Report and exit code of commands that left out questions."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dsd_trt.commands.log import say
from dsd_trt.errors import counted
from dsd_trt.results import Failure
from dsd_trt.train.left_out import LeftOut

_SHOWN = 20  # rows that are named


def asked(questions: int, images: int, left_out: LeftOut) -> str:
    """Numbers of questions asked, of images they are about, and of questions left out."""
    line = f"asked {counted(questions, 'question')} about {counted(images, 'image')}"
    if not left_out.questions:
        return line
    return f"{line}: {questions - left_out.questions} answered, {left_out.questions} left out"


def report_left_out(ctx: click.Context, left_out: LeftOut, rows: Sequence[Failure] = ()) -> None:
    """Print questions left out and their failures to standard error, and exit with 3.

    Args:
        ctx: click context of the command.
        left_out: questions left out; if there are none, and no rows either, nothing is printed
            and the command goes on.
        rows: rows of a table that could not be used.
    """
    if rows:
        say(f"{counted(len(rows), 'row')} left out:")
        for row in rows[:_SHOWN]:
            say(f"  {row}")
        if len(rows) > _SHOWN:
            say(f"  and {len(rows) - _SHOWN} more")
    for line in left_out.lines():
        say(line)
    if left_out.questions or rows:
        ctx.exit(3)
