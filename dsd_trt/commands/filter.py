"""`dsd-trt filter`: keep the pairs whose text describes the image."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dsd_trt.commands.formats import FORMATS
from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import (
    Share,
    TablePath,
    bundle_option,
    levels_option,
    mode_option,
    pair_options,
)
from dsd_trt.commands.pair_table import open_labels, open_table
from dsd_trt.commands.tracing import trace_option
from dsd_trt.errors import InputError

# numpy, Pillow and rich are imported where they are used, so that help is fast.
if TYPE_CHECKING:
    from dsd_trt.pairs.choice import Choice
    from dsd_trt.pairs.run import PairRun
    from dsd_trt.results import Failure
    from dsd_trt.tables.columns import ColumnNames

EXAMPLES = """\b
Examples:
  dsd-trt filter pairs.csv --keep-best 30% -o kept.csv
  dsd-trt filter pairs.parquet --min-probability 0.9 -o kept.parquet --dropped dropped.parquet
  dsd-trt filter shards/ --target-precision 0.95 -o kept/
  dsd-trt filter pairs.csv --target-precision 0.95 --labelled labels.csv -o kept-%06d.tar
"""
SHOWN = 20  # failures and reasons listed
BY_SCORE = "Without it, choose by score: --keep-best"


def _keep_best(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from dsd_trt.pairs.share import require_share

    try:
        return require_share(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(name="filter", epilog=EXAMPLES)
@click.argument(
    "pairs", type=TablePath(exists=True, allow_dash=True, path_type=Path), metavar="PAIRS"
)
@click.option(
    "--min-probability",
    type=Share(0, 1),
    metavar="P",
    help="Keep pairs whose match probability is at least P.",
)
@click.option(
    "--keep-best",
    callback=_keep_best,
    metavar="N|SHARE%",
    help="Keep the N pairs with the best scores, or a share such as 30% of those that can be "
    "scored.",
)
@click.option(
    "--target-precision",
    type=Share(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Keep as many pairs as possible with a share P of positive ones: measured on labels if "
    "there are any, else expected from the calibrated probabilities.",
)
@click.option(
    "--labelled",
    type=TablePath(exists=True, dir_okay=False, path_type=Path),
    metavar="TABLE",
    help="Table with columns image, text and label, 1 or 0, for --target-precision.  [default: "
    "rows of PAIRS that have a label]",
)
@pair_options("label")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="KEPT",
    help="Kept pairs: a table, by its suffix; a new folder for a WebDataset; numbered tar files, "
    "such as kept-%06d.tar; or - for standard output.",
)
@click.option("--dropped", metavar="FILE", help="Table of the dropped pairs, with reasons.")
@click.option(
    "--copy-to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="New folder for copies of the kept images.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Samples per tar file.",
)
@click.option("--force", is_flag=True, help="Replace folders and tar files that are there.")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice([name for name in FORMATS if name not in ("table", "html")]),
    help="Format of tables.  [default: by their suffix, else that of PAIRS]",
)
@click.option(
    "--resume", is_flag=True, help="Continue the scoring of a run that was stopped or refused."
)
@bundle_option("score with")
@opening_options
@mode_option("Mode to score in; see dsd-trt score.")
@levels_option
@trace_option
@click.pass_context
def filter_pairs(
    ctx: click.Context,
    pairs: Path,
    min_probability: float | None,
    keep_best: str | None,
    target_precision: float | None,
    labelled: Path | None,
    columns: ColumnNames,
    images_at: Path | None,
    text_field: str | None,
    output: str,
    dropped: str | None,
    copy_to: Path | None,
    shard_size: int,
    force: bool,
    form: str | None,
    resume: bool,
    bundle: str | None,
    opening: Opening,
    mode: Literal["auto", "pair", "matrix"],
    levels: tuple[float, ...] | None,
) -> None:
    """Keep the pairs whose text describes the image, and drop the others.

    PAIRS is a CSV, JSONL or Parquet table with columns image and text, or - for one on standard
    input; a tar file in WebDataset's format, whose samples have an image and a .txt; or a folder of
    such tar files.

    Nothing is written before all pairs are scored. Until then, scores are saved in KEPT.journal.
    """
    asked = [it for it in (min_probability, keep_best, target_precision) if it is not None]
    if len(asked) != 1:
        raise InputError(
            "say which pairs to keep, in one way: --min-probability P, --keep-best N or SHARE%, or "
            "--target-precision P"
        )
    if labelled and target_precision is None:
        raise InputError("--labelled is for --target-precision: give both")
    table = open_table(pairs, columns, images_at, text_field)
    if labelled:
        open_labels(labelled, columns)

    from dsd_trt.bundle.probability import why_no_probability
    from dsd_trt.commands.bundle_checks import require_bundle
    from dsd_trt.commands.filter_labels import Labels
    from dsd_trt.commands.kept import KeptOutputs
    from dsd_trt.commands.pairs import open_pairs, surveyed
    from dsd_trt.commands.scored_pairs import scored_pairs
    from dsd_trt.spans import span

    opening.require_possible()  # before pairs are read
    manifest, wanted = require_bundle(bundle, mode, levels)
    if min_probability is not None and (
        why := why_no_probability(manifest, wanted, levels, bundle or "BUNDLE")
    ):
        raise InputError(f"{why}. {BY_SCORE}")
    source = open_pairs(pairs, table, columns, images_at, text_field)
    outputs = KeptOutputs(source, output, dropped, copy_to, form, shard_size, force=force)
    survey = surveyed(source)
    labels = None
    if target_precision is not None:
        labels = Labels.read(survey, labelled, columns, images_at)
    scorer = opening.scorer(bundle, mode)
    if keep_best is None and labels is None and scorer.calibration(levels) is None:
        raise InputError(f"{scorer.why_no_probability(levels)}. {BY_SCORE}")
    with contextlib.ExitStack() as stack:
        place = outputs.journal_place
        run = stack.enter_context(scored_pairs(scorer, survey, levels, place, resume=resume))
        labelled_run = run
        if labels is not None and labels.survey is not survey:
            place = f"{place}.labelled"
            labelled_run = stack.enter_context(
                scored_pairs(scorer, labels.survey, levels, place, resume=resume)
            )
        choice = _choose(run, min_probability, keep_best, target_precision)
        if labels is not None and target_precision is not None:
            choice = labels.choose(run, labelled_run, target_precision)
        report_choice(run, choice)
        if keep_best is None and labels is None:
            asked_precision = target_precision is not None
            warn_of_training(run, bundle or "shapes", of_precision=asked_precision)
        with span("write", "filtered pairs"):
            failures = outputs.write(run, choice)
    if report_failed(run, failures):
        ctx.exit(3)


def _choose(
    run: PairRun, least: float | None, best_of: str | None, precision: float | None
) -> Choice:
    """The choice by scores or probabilities alone."""
    from dsd_trt.pairs.choice import above, best, expected_precision

    if best_of is not None:
        return best(run.scores, best_of)
    probabilities = run.probabilities(range(run.survey.count))
    if least is not None:
        return above(probabilities, least)
    assert precision is not None
    return expected_precision(probabilities, precision)


def report_choice(run: PairRun, choice: Choice) -> None:
    """Print the rule, the counts and a histogram."""
    from dsd_trt.pairs.choice import histogram

    total, kept = run.survey.count, int(choice.kept.sum())
    share = f" ({100 * kept / total:.1f}%)" if total else ""
    note(choice.rule)
    note(
        f"rows: {total}, kept {kept}{share}, dropped {total - kept - run.failed}, "
        f"could not be scored {run.failed}"
    )
    by_score = run.calibration is None
    values = run.scores if by_score else run.probabilities(range(total))
    for line in histogram(values, choice.kept, "score" if by_score else "probability"):
        note(line)


def warn_of_training(run: PairRun, bundle: str, *, of_precision: bool) -> None:
    """Say that probabilities fitted in training may not hold for these pairs."""
    if run.calibration is not None and run.calibration.fitted_on is None:
        measure = "measure it on some with labels, --labelled TABLE, or " if of_precision else ""
        say(
            "warning: the probabilities were fitted in training, not to pairs like these, so the "
            f"precision may be far lower than they say: {measure}fit them anew, dsd-trt calibrate "
            f"{shlex.quote(bundle)} --data TABLE --out CALIBRATED"
        )


def report_failed(run: PairRun, failures: list[Failure]) -> bool:
    """List what could not be read, scored or written; True if there is anything."""
    told = [*run.survey.source.faults, *failures]
    for failure in told[:SHOWN]:
        say(f"  {failure}")
    if len(told) > SHOWN:
        say(f"  and {len(told) - SHOWN} more")
    if run.failed:
        reasons = Counter(filter(None, map(run.error, range(run.survey.count))))
        say(f"rows that could not be scored: {run.failed} of {run.survey.count}")
        for reason, count in reasons.most_common(SHOWN):
            say(f"  {count} x {reason}")
    return bool(told or run.failed)
