"""Pairs scored before anything is made of their scores, by a run that can be resumed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from dsd_trt.commands.console import progress_bar
from dsd_trt.commands.log import note
from dsd_trt.commands.score_run import describe_run, kept
from dsd_trt.commands.stopping import saying_how_to_go_on
from dsd_trt.errors import counted
from dsd_trt.pairs.run import PairRun
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.scorer import Scorer


@contextlib.contextmanager
def scored_pairs(
    scorer: Scorer,
    survey: PairSurvey,
    levels: Sequence[float] | None,
    output: str,
    *,
    resume: bool,
) -> Iterator[PairRun]:
    """All pairs of a survey, scored; the journal stays until the block has ended.

    Args:
        scorer: scorer that computes the scores.
        survey: pairs to score, with equal ones found.
        levels: noise levels to average over; None is all of the bundle's.
        output: path of what is made of the scores, or "-": the journal is `OUTPUT.journal`.
        resume: whether to continue a stopped run.

    Raises:
        InputError: the stopped run was a different one, or another process writes there.
    """
    described = describe_run(scorer, survey, [], {"levels": levels or "all", "format": "filter"})
    with kept(output, described, resume=resume) as journal:
        before = journal.pairs if journal else 0
        started = time.perf_counter()
        with saying_how_to_go_on(journal, output, described):
            with progress_bar("pairs") as progress:
                run = PairRun(scorer, survey, levels, progress, journal)
                for _ in run:
                    pass
            seconds = time.perf_counter() - started
            again = f"; {before} were scored before" if before else ""
            scored = counted(run.computed - before, "pair")
            note(f"scored {scored} in {seconds:.1f} s{again}")
            yield run
