"""`dsd-trt score`: images against texts, from files to a table."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dsd_trt.commands.options import bundle_option, parse_levels, signature_option
from dsd_trt.engine import ENGINES
from dsd_trt.errors import InputError

# numpy, Pillow and rich are imported where they are used: help should not wait for them.
if TYPE_CHECKING:
    from rich.console import Console

    from dsd_trt.jobs import Scorable
    from dsd_trt.output import Record
    from dsd_trt.results import Failure, PairScores, ScoreMatrix
    from dsd_trt.scorer import Scorer


EXAMPLES = """\b
Examples:
  dsd-trt score photos/ texts.txt
  dsd-trt score 'photos/*.jpg' texts.txt --top-k 3 -f csv -o scores.csv
  echo 'a red circle' | dsd-trt score photos/ -
  dsd-trt score --pairs pairs.csv -f jsonl
"""


@click.command(epilog=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="IMAGES... TEXTS")
@click.option(
    "--pairs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Score these pairs instead: CSV or JSONL with image and text; its image paths are "
    "relative to the file.",
)
@bundle_option("score with")
@signature_option
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["auto", "pair", "matrix"]),
    default="auto",
    show_default=True,
    help="One pass of the U-Net a pair, or one an image: faster, another score.",
)
@click.option(
    "--levels",
    metavar="S,S...",
    callback=parse_levels,
    help="Noise levels to average, such as 0.2,0.4.  [default: all]",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Only the K best texts of each image.")
@click.option(
    "--prune",
    is_flag=True,
    help="With --top-k: give up on texts that will not be among the K best after as few noise "
    "levels as possible.",
)
@click.option(
    "--check-prune",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --prune: score the first N images in full as well, and tell how often the K best "
    "are the same.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Find the fastest batch size meanwhile, and remember it on this machine. Scores then "
    "differ in their last digits between the first run and later ones.",
)
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
)
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="Where results go; - is standard output.",
    show_default=True,
)
@click.pass_context
def score(
    ctx: click.Context,
    paths: tuple[str, ...],
    pairs: Path | None,
    bundle: str | None,
    require_signature: Path | None,
    engine: str,
    mode: Literal["auto", "pair", "matrix"],
    levels: tuple[float, ...] | None,
    top_k: int | None,
    prune: bool,
    check_prune: int | None,
    tune: bool,
    form: str,
    output: str,
) -> None:
    """Score every image against every text.

    IMAGES are files, directories (searched through), globs and indexes (see dsd-trt index); TEXTS
    is a UTF-8 file with one text a line, or - for standard input. With --pairs, give neither.
    """
    from rich.console import Console

    from dsd_trt.console import progress_bar, warnings_on
    from dsd_trt.inputs import open_images, read_pairs, read_texts
    from dsd_trt.output import refuse_unwritable, to_records, top_texts, write_output
    from dsd_trt.results import ScoreMatrix
    from dsd_trt.scorer import Scorer

    unreadable: tuple[Failure, ...] = ()
    if prune and (pairs or not top_k):
        raise InputError("--prune looks for the best texts of images: give --top-k, and no --pairs")
    if check_prune and not prune:
        raise InputError("--check-prune is for --prune: give both")
    if pairs:
        if paths:
            raise InputError("with --pairs, images and texts come from its file: leave out others")
        rows = read_pairs(pairs)
    else:
        if len(paths) < 2:
            raise InputError("give IMAGES and, last, the file of TEXTS; see: dsd-trt score --help")
        (images, unreadable), texts = open_images(paths[:-1]), read_texts(paths[-1])
    refuse_unwritable(output)

    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with warnings_on(console):
        scorer = Scorer.load(
            bundle, engine, mode=mode, tune=tune, require_signature=require_signature
        )
        console.print(f"engine: {scorer.engine}; {scorer.mode} mode")
        result: ScoreMatrix | PairScores
        started = time.perf_counter()
        with progress_bar(console, "pairs") as progress:
            if pairs:
                result = scorer.score_pairs(
                    [(row.image, row.text) for row in rows], levels, progress
                )
                scored = [(row.name, row.text) for row in rows]
            else:
                best = top_k if prune else None
                result = scorer.score(images, texts, levels, progress, best)
                scored = list(itertools.product(result.images, result.texts))
        seconds = time.perf_counter() - started
    records = to_records(scored, result.scores, result.probabilities)
    console.print(
        f"scored {len(records)} pairs in {seconds:.1f} s ({len(records) / seconds:.1f} pairs/s)"
    )
    if prune and top_k and isinstance(result, ScoreMatrix):
        _report_pruning(console, scorer, result, levels, top_k, images, check_prune)
    if top_k:
        records = top_texts(records, top_k)
    whole = pairs is None and top_k is None
    write_output(output, _render(records, form, whole, terminal=output == "-"))
    if failures := unreadable + result.errors:
        images_alone = all(failure.text is None for failure in failures)
        what = "images" if images_alone else "images, texts and pairs"
        console.print(f"{what} that could not be scored: {len(failures)}")
        for failure in failures:
            console.print(f"  {failure}")
        ctx.exit(3)


def _report_pruning(
    console: Console,
    scorer: Scorer,
    pruned: ScoreMatrix,
    levels: tuple[float, ...] | None,
    top_k: int,
    images: Sequence[Scorable],
    check: int | None,
) -> None:
    """How many passes were saved, and, if asked for, how often nothing was lost."""
    import numpy as np

    from dsd_trt.search import same_best

    count = len(levels or scorer.manifest.method.noise_levels.fractions)
    images_left = len(pruned.images) - sum(failure.text is None for failure in pruned.errors)
    texts_left = len(pruned.texts) - sum(failure.image is None for failure in pruned.errors)
    whole = images_left * texts_left * count
    if not whole or not pruned.passes:
        return  # nothing could be scored
    console.print(f"{pruned.passes} passes instead of {whole}: {whole / pruned.passes:.1f} x fewer")
    if check:
        full = scorer.score(images[:check], pruned.texts, levels)
        readable = np.isfinite(full.scores).any(axis=1)
        same = same_best(pruned.scores[:check][readable], full.scores[readable], top_k)
        console.print(
            f"the {top_k} best are those of the full computation for {same.sum()} of the first "
            f"{len(same)} images that could be read"
        )


def _render(records: Sequence[Record], form: str, whole: bool, terminal: bool) -> str:
    from dsd_trt import output
    from dsd_trt.table import to_table

    if form == "table":
        width = shutil.get_terminal_size((100, 24)).columns if terminal else 100
        color = terminal and sys.stdout.isatty()
        return to_table(records, matrix=whole, width=width, color=color)
    write = {"json": output.to_json, "jsonl": output.to_jsonl, "csv": output.to_csv}[form]
    return write(records)
