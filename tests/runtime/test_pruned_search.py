"""Pruned search with lists: what it saves, and that no estimate can make its answers wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRACTIONS, make_bundle
from listed_bundles import TEXTS, make_listed_bundle, random_pictures
from numpy.typing import NDArray
from synthetic_lists import COUNT, LEVELS, Candidates, draw, measured, rule_of

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.lists import Measured
from dsd_trt.commands.main import main
from dsd_trt.errors import InputError
from dsd_trt.job_scorer import JobScorer
from dsd_trt.lists import Rule
from dsd_trt.pruned_search import PrunedSearch
from dsd_trt.search import answered, eliminate

# Synthetic candidates, against the full computation

ERROR = 0.02


@functools.cache
def needs(best: int) -> Measured:
    return measured(np.random.default_rng(3), 600, best)


Changed = Callable[[int, np.random.Generator, Candidates], None]


def searched(
    best: int, seed: int, lists: int, change: Changed = lambda number, rng, it: None
) -> tuple[NDArray[np.bool_], int, int | None]:
    """Wrong answers of a run, the scores it took, and the first list without a cut, if any."""
    rng = np.random.default_rng(seed)
    search = PrunedSearch(LEVELS, best, ERROR, rule_of(needs(best), best, ERROR), 4)
    wrong, asked, ended = np.zeros(lists, np.bool_), 0, None
    for number, it in enumerate(draw(rng, lists)):
        change(number, rng, it)
        turn = search.turn(COUNT)
        if turn == "all" and ended is None:
            ended = number
        found = answered(search.steps(turn, COUNT, it.estimates), it)
        search.note(found.outcome, it.asked)
        order = np.argsort(-np.nan_to_num(found.scores, nan=-np.inf), kind="stable")
        wrong[number] = set(order[:best].tolist()) != set(it.best(best).tolist())
        asked += it.asked
    return wrong, asked, ended


def without_lists(best: int, seed: int, lists: int) -> int:
    """Scores that the same run takes if it makes no lists."""
    asked = 0
    for it in draw(np.random.default_rng(seed), lists):
        eliminate(it, COUNT, LEVELS, best, ERROR)
        asked += it.asked
    return asked


@pytest.mark.parametrize(("best", "saving"), [(1, 2.5), (5, 1.3)])
def test_lists_like_those_measured_save_and_err_no_more_than_accepted(
    best: int, saving: float
) -> None:
    wrong, asked, ended = searched(best, seed=1, lists=1000)
    assert wrong.mean() <= ERROR
    assert ended is None
    assert asked * saving < without_lists(best, 1, 1000)


@pytest.mark.parametrize("count", [10, 16, COUNT])
@pytest.mark.parametrize("best", [2, 3, 5])
def test_lists_measured_for_more_do_not_cost(best: int, count: int) -> None:
    """The best two or three with the rule for five, and few candidates."""
    search = PrunedSearch(LEVELS, best, ERROR, rule_of(needs(5), 5, ERROR), 4)
    asked, eliminated, wrong = 0, 0, 0
    for drawn in draw(np.random.default_rng(5), 300):
        it = Candidates(drawn.scores[:count], drawn.estimates[:count])
        found = answered(search.steps("list", count, it.estimates), it).scores
        order = np.argsort(-np.nan_to_num(found, nan=-np.inf), kind="stable")
        wrong += set(order[:best].tolist()) != set(it.best(best).tolist())
        asked += it.asked
        it.asked = 0
        eliminate(it, count, LEVELS, best, ERROR)
        eliminated += it.asked
    assert wrong <= 300 * ERROR
    assert asked < eliminated * 1.03


def useless(number: int, rng: np.random.Generator, it: Candidates) -> None:
    it.estimates = rng.permutation(it.estimates)


def misleading(number: int, rng: np.random.Generator, it: Candidates) -> None:
    it.estimates = -it.estimates


def equal(number: int, rng: np.random.Generator, it: Candidates) -> None:
    it.estimates = np.zeros(COUNT)


@pytest.mark.parametrize("best", [1, 5])
@pytest.mark.parametrize("change", [useless, misleading, equal])
@pytest.mark.filterwarnings("ignore:.*audited lists")
def test_an_estimator_that_is_wrong_costs_the_saving_alone(best: int, change: Changed) -> None:
    for seed in range(2):
        wrong, asked, ended = searched(best, seed, 300, change)
        assert wrong.mean() <= ERROR
        assert ended is not None
        assert ended < 20
        assert asked < 1.1 * without_lists(best, seed, 300)


@pytest.mark.parametrize("best", [1, 5])
@pytest.mark.filterwarnings("ignore:.*audited lists")
def test_an_estimator_that_becomes_useless_is_noticed(best: int) -> None:
    start = 500

    def change(number: int, rng: np.random.Generator, it: Candidates) -> None:
        if number >= start:
            useless(number, rng, it)

    for seed in range(3):
        wrong, _, ended = searched(best, seed, 1000, change)
        assert ended is not None
        assert start < ended <= start + 2 * 64 + 8  # two audits, and the lists after a failure
        apart = np.r_[wrong[:start], wrong[ended:]]
        assert apart.mean() <= ERROR


def test_an_audit_tells_lost_from_found() -> None:
    scores = np.tile(np.linspace(0, 1, 30)[:, None], LEVELS)
    hasty = Rule(1, np.inf, 0.0, 30)  # cuts at the first stop
    for estimates, outcome in ((scores[:, 0], "passed"), (-scores[:, 0], "failed")):
        it = Candidates(scores, estimates)
        search = PrunedSearch(LEVELS, 1, ERROR, hasty, 4)
        assert search.turn(30) == "audit"
        found = answered(search.steps("audit", 30, it.estimates), it)
        assert found.outcome == outcome
        assert np.nanargmax(found.scores) == 29  # audited lists lose nothing
    it = Candidates(np.ones((30, LEVELS)), np.arange(30.0))  # equal ones lose nothing to each other
    assert answered(search.steps("audit", 30, it.estimates), it).outcome == "passed"


def test_what_has_no_number_is_scored_or_dropped() -> None:
    rng = np.random.default_rng(8)
    (it,) = draw(rng, 1)
    winner = it.best(1)[0]
    it.estimates[winner] = np.nan
    search = PrunedSearch(LEVELS, 1, ERROR, rule_of(needs(1), 1, ERROR), 4)
    found = answered(search.steps("list", COUNT, it.estimates), it)
    assert np.nanargmax(found.scores) == winner
    assert it.asked < COUNT * LEVELS
    it.scores[winner] = np.nan
    second = answered(search.steps("list", COUNT, it.estimates), it).scores
    assert np.isnan(second[winner])
    assert np.nanargmax(second) == np.nanargmax(it.scores.mean(axis=1))
    it.scores[:] = np.nan  # no score at all: everything was tried
    it.asked = 0
    assert np.isnan(answered(search.steps("audit", COUNT, it.estimates), it).scores).all()
    assert it.asked == COUNT


def test_leaders_without_a_score_at_a_later_level_leave_an_audit_to_pass() -> None:
    levels = np.array([0.0, 0.01, -0.01, 0.0])  # equal for all: no scatter
    scores = np.r_[np.full(3, 1.0), np.full(30, 3.0), np.zeros(7)][:, None] + levels
    scores[3:33, 1] = np.nan  # which is scored third, when they have displaced the first three
    estimates = np.r_[np.full(3, 9.0), np.full(30, 1.0), np.full(7, 5.0)]  # they are behind the cut
    it = Candidates(scores, estimates)
    search = PrunedSearch(LEVELS, 3, ERROR, Rule(3, np.inf, 0.0, 40, 0.5), 4)
    assert search.turn(40) == "audit"
    found = answered(search.steps("audit", 40, it.estimates), it)
    assert np.isfinite(found.scores).sum() < 3
    assert found.outcome == "passed"


def test_few_candidates_are_searched_together() -> None:
    """As many as fill a run of the engine, whether there are no lists or no lists of so few."""
    for rule in (None, Rule(5, np.inf, 0.0, 60)):
        search = PrunedSearch(LEVELS, 3, ERROR, rule, 40)
        assert [search.together(it) for it in (0, 1, 6, 16)] == [32, 32, 7, 3]
    assert PrunedSearch(LEVELS, 3, ERROR, None, 40).together(41) == 1
    assert search.together(41) == 1  # the first list is audited before the next begins


def test_failures_as_often_as_accepted_end_no_lists() -> None:
    """Audits fail wherever a list loses a winner, so they are held against the whole error."""
    rng = np.random.default_rng(4)
    ended = 0
    for _ in range(100):
        search = PrunedSearch(LEVELS, 1, 0.2, Rule(1, np.inf, 0.0, 60), 4)
        for _ in range(300):
            turn = search.turn(60)
            failed = turn == "audit" and rng.random() < 0.2
            search.note("followed" if turn == "list" else "failed" if failed else "passed", 60)
            if search.turn(60) == "all":
                ended += 1
                break
    assert ended < 12


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_candidates_make_no_list(count: int) -> None:
    search = PrunedSearch(LEVELS, 3, ERROR, Rule(5, np.inf, 0.0, 60), 4)
    assert search.turn(count) == search.turn(16) == "all"  # 8 would be scored in any case
    assert search.turn(17) == "audit"
    scores = np.random.default_rng(0).normal(size=(count, LEVELS))
    it = Candidates(scores, scores[:, 0])
    found = answered(search.steps("all", count, None), it)
    assert np.nanargmax(found.scores) == it.best(1)[0]


# With a bundle


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_listed_bundle(tmp_path_factory.mktemp("listed") / "bundle")


@pytest.fixture
def scorer(listed: Bundle) -> Scorer:
    return Scorer.load(listed.folder, "onnxruntime")


def counted_runs(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, *graphs: str) -> dict[str, int]:
    """Rows that each scorer graph is run with: passes, and walks."""
    rows = dict.fromkeys(graphs or ("pair_scorer", "matrix_scorer"), 0)
    for name in rows:
        engine = scorer._pipeline.engine(name)

        def run(feeds: Any, name: str = name, real: Any = engine.run) -> Any:
            rows[name] += len(feeds["level"])
            return real(feeds)

        monkeypatch.setattr(engine, "run", run)
    return rows


def best_of(scores: NDArray[np.float32], top_k: int) -> list[list[float]]:
    """Best scores of each row, best first: of equal texts any may be found."""
    found = -np.sort(-np.nan_to_num(scores, nan=-np.inf), axis=1)[:, :top_k]
    rows: list[list[float]] = found.round(5).tolist()
    return rows


def test_each_images_best_texts_take_few_passes(
    scorer: Scorer, listed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_pictures(100, seed=2)
    full = scorer.score(images, TEXTS)
    assert scorer.manifest.matrix is not None
    found = scorer.score(images, TEXTS, top_k=2, error=0.05)
    assert best_of(found.scores, 2) == pytest.approx(np.array(best_of(full.scores, 2)), abs=2e-5)
    known = np.isfinite(found.scores)
    assert found.scores[known] == pytest.approx(full.scores[known], abs=1e-6)
    lacking = make_bundle(listed.folder.parent / "lacking")
    before = Scorer.load(lacking.folder, "onnxruntime").score(images, TEXTS, top_k=2, error=0.05)
    assert found.passes < 0.6 * before.passes

    rows = counted_runs(scorer, monkeypatch)
    again = scorer.score([*images[:9], b"no image"], TEXTS, top_k=2, error=0.05)
    assert rows["matrix_scorer"] == 9  # a walk per image
    assert again.passes == rows["pair_scorer"] + 9
    # Other batches, which the engine rounds differently.
    assert again.scores[:8] == pytest.approx(found.scores[:8], abs=1e-6, nan_ok=True)


def test_each_texts_best_images_share_walks(
    scorer: Scorer,
    listed: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = random_pictures(300, seed=3)
    full = scorer.rank(TEXTS, images, 3)
    rows = counted_runs(scorer, monkeypatch)
    told: list[tuple[int, int | None]] = []
    with caplog.at_level("INFO", "dsd_trt"):
        found = scorer.rank(
            TEXTS, [b"no image", *images], 3, None, lambda *it: told.append(it), True, error=0.2
        )
    assert rows["matrix_scorer"] == len(images)
    lacking = Scorer.load(make_bundle(listed.folder.parent / "plain").folder, "onnxruntime")
    before = counted_runs(lacking, monkeypatch, "pair_scorer")
    lacking.rank(TEXTS, images, 3, prune=True, error=0.2)
    assert sum(rows.values()) < 0.75 * before["pair_scorer"]
    expected = np.array([[it.score for it in each] for each in full])
    scores = np.array([[it.score for it in each] for each in found])
    assert (np.abs(scores - expected) < 1e-5).all(axis=1).mean() >= 0.8
    assert told[-1] == (301 * len(TEXTS), 301 * len(TEXTS))
    (message,) = [it.message for it in caplog.records if "passes each on average" in it.message]
    mean = (rows["matrix_scorer"] + rows["pair_scorer"]) / len(TEXTS)
    assert message.startswith(f"{len(TEXTS)} lists of {mean:.1f} passes each")


def test_the_matrix_scorer_is_opened_for_lists_alone(scorer: Scorer, listed: Bundle) -> None:
    images = random_pictures(20, seed=4)
    scorer.score(images, TEXTS)
    scorer.score(images, TEXTS, top_k=4)  # measured for three
    scorer.score(images, TEXTS, FRACTIONS[:2], top_k=1)
    scorer.score(images, TEXTS, top_k=1, error=1e-5)  # too few lists were measured
    scorer.score(images, TEXTS[:6], top_k=1, error=0.05)  # all are scored in any case
    scorer.rank(TEXTS[0], images, 1, prune=True, error=0.05)  # a walk per image costs as much
    without = Scorer.load(make_bundle(listed.folder.parent / "none", matrix=True).folder)
    without.score(images, TEXTS, top_k=1, error=0.05)
    for opened in (scorer, without):
        assert "matrix_scorer" not in opened._pipeline._engines
    scorer.score(images, TEXTS, top_k=1, error=0.05)
    assert "matrix_scorer" in scorer._pipeline._engines


def test_estimates_of_no_use_leave_the_answers(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_pictures(40, seed=5)
    full = scorer.score(images, TEXTS)
    real = JobScorer.estimates
    for change in (lambda it: -it, lambda it: it * np.nan, lambda it: it[:, ::-1]):
        with monkeypatch.context() as patch:
            patch.setattr(JobScorer, "estimates", lambda *given, it=change: it(real(*given)))
            found = scorer.score(images, TEXTS, top_k=2, error=0.05)
        best = np.array(best_of(full.scores, 2))
        assert best_of(found.scores, 2) == pytest.approx(best, abs=2e-5)


@pytest.mark.parametrize("error", [0, 0.51, -0.1, np.nan, True, "0.1", None])
def test_an_error_that_cannot_be_is_refused(scorer: Scorer, error: Any) -> None:
    for call in (
        lambda: scorer.score([], TEXTS, top_k=1, error=error),
        lambda: scorer.stream([], TEXTS, top_k=1, error=error),
        lambda: scorer.rank("dog", [], 1, prune=True, error=error),
        lambda: scorer.rank_texts([], TEXTS, 1, prune=True, error=error),
    ):
        with pytest.raises(InputError, match="error must be a probability"):
            call()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--top-k", "1", "--error", "0.1"], "--error is for --prune"),
        (["--top-k", "1", "--prune", "--error", "0.7"], "0.7 is not in the range"),
        (["--top-k", "1", "--prune", "--error", "0"], "0.0 is not in the range"),
    ],
)
def test_the_option_is_checked(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", "a.png", "b.txt", *options])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
