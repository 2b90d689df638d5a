"""`dsd-trt calibrate`: fit a bundle's match probabilities to labelled pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import (
    Share,
    TablePath,
    column_options,
    images_folder_option,
    mode_option,
    seed_option,
    table_format_option,
)
from dsd_trt.errors import InputError, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsd_trt.failure import Failure
    from dsd_trt.tables.columns import ColumnNames
    from dsd_trt.tables.labelled import LabelledPair

EXAMPLES = """\b
Examples:
  dsd-trt calibrate my-scorer --data labelled.csv
  dsd-trt calibrate my-scorer --data labelled.csv --target-precision 0.95
  dsd-trt calibrate shapes --data labelled.csv -o my-scorer --plot reliability.svg
"""
_SHARE = Share(0, 1, min_open=True, max_open=True)


@click.command(epilog=EXAMPLES)
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "--data",
    required=True,
    type=TablePath(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="TABLE",
    help="CSV, JSONL or Parquet file with columns image,text,label (1 or 0), or image,text and "
    "negatives; - for one on standard input.",
)
@column_options("image", "text", "label")
@images_folder_option
@click.option(
    "--by",
    metavar="COLUMN",
    help="Column of the table, such as a source: also report the calibration of each of its "
    "values.",
)
@click.option(
    "--prior",
    type=_SHARE,
    metavar="P",
    help="Share of positives in the data that probabilities are for.  [default: the table's]",
)
@click.option(
    "--target-precision",
    type=_SHARE,
    multiple=True,
    metavar="P",
    help="Also report the threshold from which on this share of the pairs kept is positive; may be "
    "repeated.",
)
@click.option(
    "--target-recall",
    type=_SHARE,
    multiple=True,
    metavar="R",
    help="Also report the threshold that keeps this share of the positives; may be repeated.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="NEW_BUNDLE",
    help="Write a calibrated copy of the bundle.  [default: change BUNDLE itself]",
)
@click.option("--dry-run", is_flag=True, help="Fit and report, and write no bundle.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Write a reliability diagram, before and after.",
)
@opening_options
@mode_option("Mode whose scores get probabilities; each mode has its own.")
@table_format_option
@seed_option("Random seed of the cross-validation and of the intervals.")
def calibrate(
    bundle: str,
    data: Path,
    columns: ColumnNames,
    images_at: Path | None,
    by: str | None,
    prior: float | None,
    target_precision: tuple[float, ...],
    target_recall: tuple[float, ...],
    out: Path | None,
    dry_run: bool,
    plot: Path | None,
    opening: Opening,
    mode: Literal["auto", "pair", "matrix"],
    form: str,
    seed: int,
) -> None:
    """Fit match probabilities to labelled pairs, without training.

    The probability of a score f is sigmoid(a f + b). This fits a and b by logistic regression and
    writes them into the bundle, a folder, ORG/NAME[@REVISION] on the Hugging Face Hub (with -o), or
    "shapes", the demonstration (with -o). Scores stay as they are. The calibration error after the
    fit is cross-validated: images that a probability is judged by took no part in its fit.

    A threshold for a precision or recall is chosen so that other pairs of the same kind reach it
    with 90 % confidence.
    """
    from dsd_trt.tables.labelled import doubts, labelled_columns, read_labelled
    from dsd_trt.tables.table import Table

    opened = Table.open(data, images_at)
    labelled_columns(opened, columns, by)  # a wrong name ends the command before slow imports

    from dsd_trt.calibration import require_writable, sign_again, write_calibrated
    from dsd_trt.commands.calibration_report import Targets, as_text, measure, to_json
    from dsd_trt.commands.console import progress_bar
    from dsd_trt.commands.output import refuse_input, refuse_unwritable, write_standard_output

    folder = _folder(bundle, in_place=out is None and not dry_run)
    if not dry_run:
        require_writable(folder, out)
    if plot:
        if plot.suffix != ".svg":
            raise InputError(f"the diagram is an SVG file: give --plot {plot.with_suffix('.svg')}")
        refuse_input(str(plot), [data])
        refuse_unwritable(str(plot))
    opening.require_possible()  # before pairs are read
    table = read_labelled(opened, columns, by)
    _require_both(opened.name, table.pairs, table.failures)
    for doubt in doubts(table.pairs):
        say(f"warning: {doubt}")

    from dsd_trt.commands.labelled import score_labelled
    from dsd_trt.commands.reliability import diagram

    scorer = opening.scorer(folder, mode)
    with progress_bar("pairs") as progress:
        scored = score_labelled(scorer, table, progress)
    _require_both(opened.name, scored.pairs, scored.failures)
    targets = Targets(target_precision, target_recall)
    report = measure(scorer, scored, table, Path(opened.name).name, prior, targets, seed)
    if not dry_run:
        written, signed = write_calibrated(scorer.bundle, scorer.mode, report.calibration, out)
        note(f"wrote the calibration of {scorer.mode} mode into {written.folder}")
        if signed:
            say(f"warning: {sign_again(written.folder)}")
    if plot:
        diagram(plot, report)
        note(f"wrote {plot}")
    if worse := report.worse():
        say(f"warning: {worse}")
    write_standard_output(to_json(report) if form == "json" else as_text(report))
    if scored.failures:
        say(f"rows, images and texts left out: {len(scored.failures)}")
        for failure in scored.failures:
            say(f"  {failure}")
        click.get_current_context().exit(3)


def _require_both(name: str, pairs: Sequence[LabelledPair], failures: Sequence[Failure]) -> None:
    """Refuse pairs of one label, and say what became of others.

    Raises:
        InputError: all pairs have the same label.
    """
    if (labels := {pair.label for pair in pairs}) == {True, False}:
        return
    others = f". {len(failures)} left out, such as {failures[0]}" if failures else ""
    raise InputError(
        f"{name} has {counted(len(pairs), 'pair')} without a "
        f"{'negative' if True in labels else 'positive'} one: a fit needs both{others}"
    )


def _folder(bundle: str, *, in_place: bool) -> Path:
    """Folder of the bundle; "shapes" is the demonstration's, unless there is such a folder."""
    from dsd_trt.bundle.place import EMBEDDED, bundle_folder, own_bundle_folder

    if bundle == "shapes" and not Path(bundle).exists():
        return EMBEDDED
    return own_bundle_folder(bundle, "match probabilities") if in_place else bundle_folder(bundle)
