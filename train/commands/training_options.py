"""Options of commands that train; imports nothing heavy, so that help is fast."""

from __future__ import annotations

from typing import get_args

import click

from dsd_trt.commands.options import Command, Share, fair_resolution_option, parse_levels
from dsd_trt.train.scoring.choices import Loss


def few_shot_options(command: Command) -> Command:
    """Options of few-shot training, shared by all commands that train."""
    options = (
        click.option(
            "--loss",
            type=click.Choice(get_args(Loss)),
            help="Cross-entropy of each pair, of the positive pair against its negatives, or the "
            "latter with 0.1 of the former.  [default: bce for reproduce and train --paper, else "
            "softmax+bce]",
        ),
        click.option(
            "--negatives",
            type=click.IntRange(1),
            help="Negatives per positive pair.  [default: 3]",
        ),
        click.option(
            "--learning-rate",
            type=click.FloatRange(0, min_open=True),
            help="Learning rate that decays linearly to zero.  [default: 0.002 for reproduce and "
            "train --paper, else 0.008 for up to 40 training questions, falling to 0.003 for 149 "
            "and more]",
        ),
        click.option(
            "--levels",
            metavar="S,S...",
            callback=parse_levels,
            help="Noise levels, each between 0 and 1; the trained adapter is scored at the same "
            "levels.  [default: those of the adapter that training starts from, else "
            "0.2,0.4,0.6,0.8]",
        ),
        fair_resolution_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def validation_option(command: Command) -> Command:
    """--validation, the share of the examples held out for early stopping."""
    return click.option(
        "--validation",
        type=Share(0, 1, max_open=True),
        default=0.15,
        show_default=True,
        help="Share of the examples held out for early stopping; 0 trains to the last step.",
    )(command)
