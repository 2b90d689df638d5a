"""Report and exit code of commands that left out questions."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dsd_trt.results import Failure
from dsd_trt.train.counted import counted
from dsd_trt.train.left_out import LeftOut

_SHOWN = 20  # rows that are named


def report_left_out(ctx: click.Context, left_out: LeftOut, rows: Sequence[Failure] = ()) -> None:
    """Print questions left out and their failures to standard error, and exit with 3.

    Args:
        ctx: click context of the command.
        left_out: questions left out; if there are none, and no rows either, nothing is printed
            and the command goes on.
        rows: rows of a table that could not be used.
    """
    if rows:
        click.echo(f"{counted(len(rows), 'row')} left out:", err=True)
        for row in rows[:_SHOWN]:
            click.echo(f"  {row}", err=True)
        if len(rows) > _SHOWN:
            click.echo(f"  and {len(rows) - _SHOWN} more", err=True)
    for line in left_out.lines():
        click.echo(line, err=True)
    if left_out.questions or rows:
        ctx.exit(3)
