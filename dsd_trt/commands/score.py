"""`dsd-trt score`: score image files against texts."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dsd_trt.commands.environment import from_environment, setting
from dsd_trt.commands.formats import FORMATS, AtEnd, format_of, formats_help
from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import (
    TablePath,
    bundle_option,
    levels_option,
    mode_option,
    pair_options,
)
from dsd_trt.commands.pair_table import open_table
from dsd_trt.commands.tracing import trace_option
from dsd_trt.errors import InputError, counted

# numpy, Pillow and rich are imported where they are used, so that help is fast.
if TYPE_CHECKING:
    from dsd_trt.commands.records import GridRecords
    from dsd_trt.jobs import Scorable
    from dsd_trt.results import Failure
    from dsd_trt.scorer import Scorer
    from dsd_trt.tables.columns import ColumnNames


EXAMPLES = """\b
Examples:
  dsd-trt score photos/ texts.txt
  dsd-trt score 'photos/*.jpg' texts.txt --top-k 3 -f csv -o scores.csv
  echo 'a red circle' | dsd-trt score photos/ -
  dsd-trt score --pairs pairs.csv -f jsonl
  dsd-trt score --pairs found.csv --top-k 5 --by text -o reranked.csv
  head -100 pairs.csv | dsd-trt score --pairs - -o scored.csv
  dsd-trt score photos/ texts.txt -o scores.html
"""


@click.command(epilog=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="IMAGES... TEXTS")
@click.option(
    "--pairs",
    type=TablePath(exists=True, allow_dash=True, path_type=Path),
    metavar="TABLE|WEBDATASET",
    help="Pairs to score instead, row for row: a CSV, JSONL or Parquet table with columns image "
    "and text, or - for one on standard input; a tar file in WebDataset's format, or a folder of "
    "those.",
)
@pair_options()
@bundle_option("score with")
@opening_options
@mode_option(
    "pair: one U-Net pass per pair and level. matrix: one walk per image and level, which is "
    "faster; its scores are not comparable with pair mode's."
)
@levels_option
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Only the K best texts of each image, best first; with --by text, the K best images of "
    "each text.",
)
@click.option(
    "--by",
    type=click.Choice(["image", "text"]),
    help="With --top-k: what the best are taken of.  [default: image]",
)
@click.option(
    "--prune",
    is_flag=True,
    help="With --top-k: stop scoring a text once it can no longer reach the top K.",
)
@click.option(
    "--error",
    type=click.FloatRange(0, 0.5, min_open=True),
    metavar="E",
    help="With --prune: accepted probability that an image loses one of its K best texts, at most "
    "0.5.  [default: 0.01]",
)
@click.option(
    "--check-prune",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --prune: also score the first N images in full, and report how often the top K "
    "agree.",
)
@click.option(
    "--tokens",
    is_flag=True,
    help="Also the score of every word, with its tokens: column words. In pair mode, without "
    "--prune, and without --by text unless --pairs is given.",
)
@click.option(
    "--tune",
    **setting("TUNE"),
    is_flag=True,
    help="Find the fastest batch size while scoring, and remember it on this machine. Scores of "
    "the first run then differ from later ones in their last digits.",
)
@click.option(
    "-f",
    "--format",
    "form",
    **setting("FORMAT"),
    type=click.Choice(list(FORMATS)),
    help=formats_help(),
)
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="File for the results; - is standard output.",
    show_default=True,
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the same command where it was stopped, or start from the beginning.",
)
@trace_option
@click.pass_context
def score(
    ctx: click.Context,
    paths: tuple[str, ...],
    pairs: Path | None,
    bundle: str | None,
    opening: Opening,
    mode: Literal["auto", "pair", "matrix"],
    levels: tuple[float, ...] | None,
    top_k: int | None,
    by: Literal["image", "text"] | None,
    prune: bool,
    error: float | None,
    check_prune: int | None,
    tokens: bool,
    tune: bool,
    form: str | None,
    output: str,
    resume: bool,
    columns: ColumnNames,
    images_at: Path | None,
    text_field: str | None,
) -> None:
    """Score every image against every text.

    IMAGES are files, directories (searched recursively), globs, tar files and indexes (see dsd-trt
    index). TEXTS is a UTF-8 file with one text per line, or - for standard input. With --pairs,
    give neither.

    Scores are saved in a journal until the command ends: FILE.journal, or the cache without -o.
    """
    if form is None or from_environment(ctx, "form"):  # the suffix is of the command line
        form = format_of(output, form or "table")
    _require_consistent(pairs, top_k, by, prune, error, check_prune)
    _require_tokens(tokens, form, pairs, by, prune)
    if isinstance(written := FORMATS[form], AtEnd):
        written.check(output)
    if pairs and paths:
        raise InputError("with --pairs, images and texts come from its file: leave out others")
    if not pairs:
        if any((columns.image, columns.text, images_at is not None, text_field is not None)):
            raise InputError(
                "--image-column, --text-column, --images and --text-field: for --pairs"
            )
        _require_images_and_texts(paths)
    table = open_table(pairs, columns, images_at, text_field) if pairs else None

    from dsd_trt.commands.bundle_checks import require_bundle
    from dsd_trt.commands.console import progress_bar
    from dsd_trt.commands.inputs import images_named, read_texts
    from dsd_trt.commands.origin import Origin, RecordImages
    from dsd_trt.commands.output import refuse_input, refuse_unwritable
    from dsd_trt.commands.pairs import (
        open_pairs,
        refuse_output,
        report_failed_rows,
        report_renamed,
        surveyed,
    )
    from dsd_trt.commands.provenance import scoring_facts
    from dsd_trt.commands.record_images import GivenImages, SurveyedImages
    from dsd_trt.commands.records import GridRecords, PairRecords, write_records
    from dsd_trt.commands.score_run import describe_run, kept
    from dsd_trt.commands.stopping import saying_how_to_go_on
    from dsd_trt.pairs.run import PairRun
    from dsd_trt.pruned_search import ERROR

    unreadable: tuple[Failure, ...] = ()
    opening.require_possible()  # before images, texts or pairs are read
    described = require_bundle(bundle, mode, levels)
    if tokens and described[1] == "matrix":
        raise InputError("matrix mode computes no scores of tokens: give --mode pair with --tokens")
    if pairs:
        source = open_pairs(pairs, table, columns, images_at, text_field)
        refuse_output(output, source)
        survey = surveyed(source)
    else:
        (images, unreadable), texts = images_named(paths[:-1]), read_texts(paths[-1])
        refuse_input(output, (paths[-1], *(it for it in images if isinstance(it, Path))))
        refuse_unwritable(output)

    # Every text is scored in one call, so none comes again.
    scorer = opening.scorer(bundle, mode, tune=tune, text_cache_mb=0)
    error = ERROR if error is None else error
    settings = {
        "levels": levels or "all",
        "top-k": top_k or "all",
        "by": by or "image",
        "prune": "yes" if prune else "no",
        "error": str(error),
        "format": form,
        **({"tokens": "yes"} if tokens else {}),  # journals of earlier versions have no such key
    }
    if pairs:
        run = describe_run(scorer, survey, [], settings)
    else:
        run = describe_run(scorer, images, texts, settings)
    with kept(output, run, resume=resume) as journal:
        before = journal.pairs if journal else 0
        result: GridRecords | PairRecords
        started = time.perf_counter()
        with (
            progress_bar("pairs") as progress,
            saying_how_to_go_on(journal, output, run),
        ):
            if pairs:
                pair_run = PairRun(scorer, survey, levels, progress, journal, tokens=tokens)
                result = PairRecords(pair_run, top_k, by or "image")
                report_renamed(result.layout, source)
            else:
                result = GridRecords(
                    scorer,
                    images,
                    texts,
                    levels,
                    progress,
                    journal,
                    top_k,
                    prune,
                    by or "image",
                    error,
                    tokens=tokens,
                )
            pictures: RecordImages = SurveyedImages(survey) if pairs else GivenImages(images)

            def failed() -> tuple[Failure, ...]:
                """What has no record: rows of pairs have theirs, with the reason."""
                return unreadable + (() if pairs else tuple(result.errors))

            origin = Origin(
                result.layout,
                grid=pairs is None and top_k is None,
                facts=lambda: scoring_facts(scorer, levels),
                images=pictures,
                failures=failed,
            )
            write_records(result, origin, output, form, goes_on=resume)
    seconds = time.perf_counter() - started
    _report_time(seconds, result.scored - before, before, prune)
    if isinstance(result, GridRecords) and prune and top_k:
        _report_pruning(scorer, result, levels, top_k, images, check_prune)
    if isinstance(result, PairRecords):
        if report_failed_rows(result):
            ctx.exit(3)
        return
    if failures := unreadable + tuple(result.errors):
        _report_failures(failures)
        ctx.exit(3)


def _require_consistent(
    pairs: Path | None,
    top_k: int | None,
    by: Literal["image", "text"] | None,
    prune: bool,
    error: float | None,
    check_prune: int | None,
) -> None:
    """Refuse options about the best that do not fit each other."""
    if prune and (pairs or not top_k):
        raise InputError("--prune looks for the best texts of images: give --top-k, and no --pairs")
    if by and not top_k:
        raise InputError(f"--by says what the best are taken of: give --top-k K with --by {by}")
    if prune and by == "text":
        raise InputError(
            "--prune drops texts of an image: leave out --by text. In Python, Scorer.rank with "
            "prune=True drops images of a text"
        )
    if check_prune and not prune:
        raise InputError("--check-prune is for --prune: give both")
    if error is not None and not prune:
        raise InputError("--error is for --prune: give both")


def _require_tokens(
    tokens: bool,
    form: str,
    pairs: Path | None,
    by: Literal["image", "text"] | None,
    prune: bool,
) -> None:
    """Refuse scores of tokens where there are none, or where they would be held for all images."""
    if tokens and form == "html":
        raise InputError(
            "a page of scores has no words: leave out --tokens, or show them with "
            "dsd-trt explain IMAGES TEXT -o FILE.html"
        )
    if tokens and prune:
        raise InputError("--prune scores most texts at some levels only: leave out --tokens")
    if tokens and by == "text" and not pairs:
        raise InputError(
            "--tokens is of the texts of an image: leave out --by text, or score the best pairs "
            "again with --pairs and --tokens"
        )


def _require_images_and_texts(paths: tuple[str, ...]) -> None:
    """Refuse arguments that cannot be images and, last, a file of texts."""
    if len(paths) < 2:
        table_alone = paths and format_of(paths[0], "") in ("csv", "jsonl", "parquet")
        hint = f"; for a table of pairs: --pairs {shlex.quote(paths[0])}" if table_alone else ""
        raise InputError(
            f"give IMAGES and, last, the file of TEXTS{hint}; see: dsd-trt score --help"
        )


def _report_time(seconds: float, count: int, before: int, prune: bool) -> None:
    """Note how long scoring took.

    Args:
        seconds: time that the scores took.
        count: number of pairs that were scored now.
        before: number of pairs that were scored before, and read from the journal.
        prune: whether most pairs were scored at some levels only.
    """
    pairs, again = counted(count, "pair"), f"; {before} were scored before" if before else ""
    if prune:
        note(f"scored in {seconds:.1f} s: the best {pairs}{again}")
    else:
        note(f"scored {pairs} in {seconds:.1f} s ({count / seconds:.1f} pairs/s){again}")


def _report_failures(failures: Sequence[Failure]) -> None:
    """Say which images, texts and pairs could not be scored."""
    images_alone = all(failure.text is None for failure in failures)
    what = "images" if images_alone else "images, texts and pairs"
    say(f"{what} that could not be scored: {len(failures)}")
    for failure in failures:
        say(f"  {failure}")


def _report_pruning(
    scorer: Scorer,
    pruned: GridRecords,
    levels: tuple[float, ...] | None,
    top_k: int,
    images: Sequence[Scorable],
    check: int | None,
) -> None:
    """Report the number of passes saved and, on request, how often the top K agree."""
    import numpy as np

    from dsd_trt.search import same_best

    count = len(levels or scorer.manifest.method.noise_levels.fractions)
    images_left = pruned.images - sum(failure.text is None for failure in pruned.errors)
    texts_left = len(pruned.texts) - sum(failure.image is None for failure in pruned.errors)
    unpruned = images_left * texts_left * count
    if not unpruned or not pruned.passes:
        return  # no image could be scored
    note(f"passes: {pruned.passes} instead of {unpruned}, {unpruned / pruned.passes:.1f} x fewer")
    if check:
        full = scorer.score(images[:check], pruned.texts, levels)
        readable = np.isfinite(full.scores).any(axis=1)
        first = np.stack(pruned.first[:check])
        same = same_best(first[readable], full.scores[readable], top_k)
        say(
            f"images whose best {top_k} are those of the full computation: {same.sum()} of the "
            f"first {len(same)} that could be read"
        )
