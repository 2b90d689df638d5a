"""How commands end that left out questions."""

from __future__ import annotations

import click

from dsd_trt.train.left_out import LeftOut


def report_left_out(ctx: click.Context, left_out: LeftOut) -> None:
    """Say on standard error what was left out, and why, and exit with 3; nothing if nothing was."""
    for line in left_out.lines():
        click.echo(line, err=True)
    if left_out.questions:
        ctx.exit(3)
