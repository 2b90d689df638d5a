"""Report and exit code of commands that left out questions."""

from __future__ import annotations

import click

from dsd_trt.train.left_out import LeftOut


def report_left_out(ctx: click.Context, left_out: LeftOut) -> None:
    """Print questions left out and their failures to standard error, and exit with 3.

    Args:
        ctx: click context of the command.
        left_out: questions left out; if there are none, nothing is printed and the command goes
            on.
    """
    for line in left_out.lines():
        click.echo(line, err=True)
    if left_out.questions:
        ctx.exit(3)
