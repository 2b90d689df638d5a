"""Lists: where they are cut, what is measured for that, and audits that notice when it fails."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from numpy.typing import NDArray
from synthetic_lists import COUNT, SLOPE, draw, measured

from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import BundleError
from dsd_trt.lists import OF_LIST, Audits, Rule, at_least, gap_of, list_order, need_of, reach
from dsd_trt.pruned_search import PrunedSearch, smallest_error
from dsd_trt.search import answered

# The bound


def test_the_bound_is_a_quantile_of_the_needs() -> None:
    it = Measured(240, tuple(np.arange(64.0)))
    assert it.bound(0.05) == 11  # the 12th: floor(0.05 x 241)
    assert it.bound(0.0075) == 0
    assert it.bound(1 / 242) == -math.inf  # floor(241 / 242) is 0: too few lists for this error
    assert it.bound(0.5) == 63  # the last one stored
    assert Measured(240, ()).bound(0.5) == math.inf  # none would have lost a winner
    assert Measured(240, ()).bound(0.001) == -math.inf


def test_the_margin_is_a_quantile_of_the_gaps() -> None:
    it = Measured(240, (), tuple(np.arange(64.0)[::-1]))
    assert it.margin(0.05) == 52  # the 12th largest
    assert it.margin(0.0075) == 63
    assert it.margin(0.5) == 0  # the last one stored
    assert it.margin(1 / 242) == math.inf
    assert Measured(240, ()).margin(0.5) == math.inf  # gaps were not measured


def test_the_gap_in_numbers() -> None:
    first = np.array([0.5, 0.9, 0.7, 0.8])
    assert gap_of(first, np.array([1]), 1) == 0
    assert gap_of(first, np.array([2]), 1) == pytest.approx(0.9 - 0.7)
    assert gap_of(first, np.array([2, 1]), 2) == pytest.approx(0.8 - 0.7)
    assert gap_of(first, np.array([3, 1]), 2) == 0


def test_those_within_the_margin_alone_are_scored_at_further_levels() -> None:
    scores = np.zeros((20, 3))
    scores[:, 0] = np.arange(20.0)
    scores[:, 1:] = -scores[:, :1] * 2  # so that the worst of those within the margin wins
    asked = np.zeros((20, 3))

    def score_at(candidates: NDArray[np.intp], level: int) -> NDArray[np.float64]:
        asked[candidates, level] += 1
        return scores[candidates, level]

    rule = Rule(1, math.inf, 0.0, 20, margin=4.0)
    search = PrunedSearch(3, 1, 0.01, rule, 4)
    found = answered(search.steps("list", 20, scores[:, 0]), score_at)
    assert int(np.nanargmax(found.scores)) == 16
    assert asked[16:].tolist() == [[1, 1, 1]] * 4
    assert not asked[:16].any()


def test_a_new_list_is_below_the_bound_as_often_as_accepted() -> None:
    """The n-th smallest of `count` exchangeable needs: exactly n / (count + 1) of new ones."""
    rng = np.random.default_rng(5)
    below = [
        it.need(1) < bound
        for bound in (measured(rng, 119, 1).bound(0.1) for _ in range(40))
        for it in draw(rng, 100)
    ]
    # Of 4,000 in groups that share a bound: the deviation is that of the share of 40 bounds.
    assert np.mean(below) == pytest.approx(12 / 120, abs=0.02)


def test_the_measured_number_is_the_smallest_that_is_enough() -> None:
    one, five = Measured(300, (0.1,)), Measured(400, (0.2,))
    lists = Lists(0, 100, 0.0, {"5": five, "1": one}, {"5": five}, RULE)
    assert lists.measured("texts", 1) == (1, one)
    assert lists.measured("texts", 2) == (5, five)
    assert lists.measured("images", 1) == (5, five)
    assert lists.measured("texts", 6) is None
    assert Rule.of(lists, "images", 3, 0.01) == Rule(5, 0.2, 0.0, 100)
    assert Rule.of(lists, "texts", 6, 0.01) is None
    assert Rule.of(lists, "texts", 1, 0.001) is None  # no list would be cut
    for other in (None, RULE + 1):  # measured for an earlier rule, or a later one
        assert Rule.of(replace(lists, rule=other), "texts", 1, 0.01) is None


@pytest.mark.parametrize("count", [20, 21, 300, 900, 64_000])
def test_the_smallest_error_is_the_smallest_of_two_digits_that_cuts(count: int) -> None:
    for lists in range(count, count + 60):
        error = smallest_error(lists)
        assert float(f"{error:.1e}") == error
        needs = Measured(lists, (0.0,))
        assert needs.bound(OF_LIST * error) == 0
        digits = 1 - math.floor(math.log10(error))
        assert needs.bound(OF_LIST * (error - 10.0**-digits) * (1 - 1e-12)) == -math.inf


# The rule


def test_the_reach_in_numbers() -> None:
    estimates = np.array([0.9, 0.8, 0.5, 0.4])
    scores = np.array([0.7, 0.75, np.nan, np.nan])
    following = 0.5 - (0.2 + 0.05) / 2  # less what the first two estimates were too high by
    assert reach(2, estimates, scores, 1, 0.0, 4) == pytest.approx(following - 0.75)
    assert reach(2, estimates, scores, 2, 0.0, 4) == pytest.approx(following - 0.7)
    # NaN counts not
    assert reach(3, estimates, scores, 2, 0.0, 4) == pytest.approx(0.4 - 0.125 - 0.7)
    assert reach(2, estimates, scores, 3, 0.0, 4) == math.inf
    # The second place of four is the 50th of 100.
    with_slope = reach(2, estimates, scores, 1, 0.01, 100)
    assert with_slope == pytest.approx(following - 0.75 - 0.01 * math.log(50))
    estimates[0] = np.nan
    assert reach(2, estimates, scores, 1, 0.0, 4) == pytest.approx(0.5 - 0.05 - 0.75)
    estimates[1] = np.nan
    assert reach(2, estimates, scores, 1, 0.0, 4) == math.inf  # nothing to correct by
    estimates[:3] = 0.9, 0.8, np.nan
    assert reach(2, estimates, scores, 1, 0.0, 4) == math.inf


def test_the_order_is_stable_and_begins_with_what_has_no_estimate() -> None:
    estimates = np.array([0.1, 0.5, np.nan, 0.5, 0.9, np.nan], np.float32)
    assert list_order(estimates).tolist() == [2, 5, 4, 1, 3, 0]


def loses(
    estimates: list[float], scores: list[float], winners: set[int], best: int, bound: float
) -> bool:
    """Whether a list that is cut as soon as it may be loses a winner, step by step."""
    total = len(estimates)
    order = sorted(range(total), key=lambda it: -math.inf if math.isnan(estimates[it]) else 0)
    order.sort(key=lambda it: -math.inf if math.isnan(estimates[it]) else -estimates[it])
    for k in range(1, total):
        known = sorted(scores[it] for it in order[:k] if not math.isnan(scores[it]))
        following = estimates[order[k]]
        missed = [scores[it] - estimates[it] for it in order[:k]]
        missed = [it for it in missed if not math.isnan(it)]
        if len(known) < best or math.isnan(following) or not missed:
            continue
        following += sum(missed) / len(missed)
        t = following - known[-best] - SLOPE * (math.log(k) + math.log(COUNT) - math.log(total))
        if t < bound:
            return not winners <= set(order[:k])
    return False


@pytest.mark.parametrize("best", [1, 3])
def test_the_need_is_the_bound_from_which_on_a_winner_is_lost(best: int) -> None:
    rng = np.random.default_rng(11)
    finite = 0
    for total in (1, 2, 5, 30) * 25:
        means = rng.normal(size=total).round(1)  # with ties
        estimates = (means + rng.normal(size=total)).round(1)
        first = means + 0.1 * rng.normal(size=total)
        estimates[rng.random(total) < 0.05] = np.nan
        first[rng.random(total) < 0.05] = np.nan
        means[np.isnan(first)] = -np.inf
        winners = np.argsort(-means, kind="stable")[:best]
        need = need_of(estimates, first, winners, best, SLOPE, COUNT)
        as_lists = estimates.tolist(), first.tolist(), set(winners.tolist()), best
        if math.isinf(need):
            assert need > 0
            assert not any(loses(*as_lists, bound) for bound in np.linspace(-9, 9, 50))
            continue
        finite += 1
        assert not loses(*as_lists, need - 1e-6)
        assert loses(*as_lists, need + 1e-6)
    assert finite > 10


@pytest.mark.parametrize("batch", [1, 3, 4, 8, 32, 256])
@pytest.mark.parametrize("best", [1, 5])
def test_a_list_is_followed_to_the_first_stop_that_may_end_it(best: int, batch: int) -> None:
    rng = np.random.default_rng(2)
    rule = Rule(best, -1.5, SLOPE, COUNT)
    stops = list(rule.stops(COUNT, batch))
    assert stops[-1] == COUNT
    assert stops[0] >= max(4, best + 3)
    steps = np.diff([0, *stops[:-1]])
    if batch <= 8:
        assert (steps % batch == 0).all()  # whole batches
    assert len(stops) > 3
    ended = set()
    for it in draw(rng, 30):
        asked: list[int] = []

        def score(
            some: NDArray[np.intp], level: int, it: Any = it, asked: list[int] = asked
        ) -> Any:
            asked.extend(some.tolist())
            return it.scores[some, level]

        kept = answered(rule.follow(it.estimates, batch), score)
        order = list_order(it.estimates)
        assert kept.tolist() == asked == order[: len(kept)].tolist()
        may_end = [
            stop
            for stop in stops[:-1]
            if reach(stop, it.estimates[order], it.scores[order, 0], best, SLOPE, COUNT) < -1.5
        ]
        assert len(kept) == min(may_end, default=COUNT)
        ended.add(len(kept))
    assert len(ended) > 1


@pytest.mark.parametrize("count", [1, 3, 4])
def test_few_candidates_are_all_scored(count: int) -> None:
    rule = Rule(1, math.inf, 0.0, 100)
    assert list(rule.stops(count, 4)) == [count]


# Audits


def test_some_lists_are_audited() -> None:
    audits, audited = Audits(0.01), []
    for number in range(300):
        if audits.due():
            audited.append(number)
        audits.add("passed" if audits.due() else "followed")
    assert audited == [0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    assert (audits.lists, audits.audits, audits.failures) == (300, 11, 0)
    assert not audits.ended


def test_the_lists_after_a_failure_are_audited() -> None:
    audits, audited = Audits(0.4), []
    for number in range(100):
        if audits.due():
            audited.append(number)
        audits.add(("failed" if number == 64 else "passed") if audits.due() else "followed")
    assert audited[-9:] == list(range(64, 73))
    assert not audits.ended


def test_the_probability_of_failures_is_exact() -> None:
    for trials, failures, p in [
        (1, 1, "0.0075"),
        (17, 2, "0.0075"),
        (300, 9, "0.02"),
        (5, 0, "0.1"),
    ]:
        share = Fraction(p)
        exact = sum(
            math.comb(trials, i) * share**i * (1 - share) ** (trials - i)
            for i in range(failures, trials + 1)
        )
        assert at_least(failures, trials, float(p)) == pytest.approx(float(exact), rel=1e-9)
    assert at_least(1000, 100_000, 0.01) == pytest.approx(0.5, abs=0.02)  # no underflow


def test_implausible_failures_end_the_lists_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    audits = Audits(0.0075)
    for _ in range(9):
        audits.add("passed")
    audits.add("failed")  # 1 of 10 has a probability of 7 %
    assert not audits.ended
    audits.add("failed")  # 2 of 11, 0.3 %
    assert audits.ended
    audits.add("failed")
    (record,) = caplog.records
    assert "2 of 11 audited lists" in record.message
    assert "dsd-trt imitate" in record.message


# bundle.json


def plain_lists(**changed: Any) -> dict[str, Any]:
    lists = {
        "level": 1,
        "candidates": 100,
        "slope": 0.01,
        "texts": {"1": {"count": 240, "needs": [-0.03, 0.0, 0.1]}},
        "images": {},
    }
    return lists | changed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundle = make_bundle(tmp_path_factory.mktemp("lists") / "bundle", matrix=True)
    read: dict[str, Any] = json.loads((Path(bundle.folder) / "bundle.json").read_text("utf-8"))
    return read


def test_lists_are_read_and_written(plain: dict[str, Any]) -> None:
    assert "lists" not in plain["matrix"]  # as in older bundles
    older = Manifest.from_json(json.dumps(plain))
    assert older.matrix is not None
    assert older.matrix.lists is None
    given = plain | {"matrix": plain["matrix"] | {"lists": plain_lists()}}
    manifest = Manifest.from_json(json.dumps(given))
    assert manifest.matrix is not None
    measured = Measured(240, (-0.03, 0.0, 0.1))
    assert manifest.matrix.lists == Lists(1, 100, 0.01, {"1": measured}, {})
    given["matrix"]["lists"]["rule"] = 2
    manifest = Manifest.from_json(json.dumps(given))
    assert manifest.matrix is not None
    assert manifest.matrix.lists == Lists(1, 100, 0.01, {"1": measured}, {}, 2)
    assert json.loads(manifest.to_json())["matrix"]["lists"] == plain_lists(rule=2)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"level": 3}, "matrix.lists.level' is not from 0 to 2"),
        ({"level": -1}, "matrix.lists.level' is not from 0"),
        ({"candidates": 0}, "matrix.lists.candidates"),
        ({"rule": 0}, "matrix.lists.rule"),
        ({"texts": {"1": {"count": 3, "needs": [], "gaps": [1.0, -0.5]}}}, "must not be negative"),
        ({"slope": math.inf}, "slope"),
        ({"slope": None}, "slope"),
        ({"texts": {"0": {"count": 1, "needs": []}}}, "matrix.lists.texts.0"),
        ({"texts": {"01": {"count": 1, "needs": []}}}, "named by no number"),
        ({"images": {"a": {"count": 1, "needs": []}}}, "matrix.lists.images.a' is named by no"),
        ({"texts": {"1": {"count": 1, "needs": [0.0, 1.0]}}}, "has more than 1, its count"),
        ({"texts": {"1": {"count": 0, "needs": []}}}, "matrix.lists.texts.1.count"),
        ({"texts": {"1": {"count": 3, "needs": [1.0, 0.5]}}}, "needs' must be ascending"),
        ({"texts": {"1": {"count": 3, "needs": [math.nan]}}}, "needs"),
        ({"more": 1}, "matrix.lists.more"),
    ],
)
def test_lists_that_cannot_be_are_refused(
    plain: dict[str, Any], changed: dict[str, Any], named: str
) -> None:
    given = plain | {"matrix": plain["matrix"] | {"lists": plain_lists(**changed)}}
    with pytest.raises(BundleError, match=named):
        Manifest.from_json(json.dumps(given))
