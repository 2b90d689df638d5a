"""Recall@k and MRR, against values worked out by hand and a slow definition."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from dsd_trt.errors import InputError
from dsd_trt.metrics import mean_reciprocal_rank, recall_at

FOUND = {"q1": ["b", "a", "c"], "q2": ["x", "y", "z"], "q3": ["m"], "extra": ["a"]}
RELEVANT = {"q1": {"a", "d"}, "q2": ["z"], "q3": {"n"}, "q4": {"o"}}


def test_figures_are_those_worked_out_by_hand() -> None:
    # q1 finds one of its two in second place, q2 its only one in third, q3 and q4 nothing.
    assert recall_at(FOUND, RELEVANT, 1) == 0
    assert recall_at(FOUND, RELEVANT, 2) == pytest.approx((1 / 2) / 4)
    assert recall_at(FOUND, RELEVANT, 3) == recall_at(FOUND, RELEVANT, 99)
    assert recall_at(FOUND, RELEVANT, 3) == pytest.approx((1 / 2 + 1) / 4)
    assert mean_reciprocal_rank(FOUND, RELEVANT) == pytest.approx((1 / 2 + 1 / 3) / 4)


def test_figures_are_their_definitions() -> None:
    chance = random.Random(0)
    for _ in range(20):
        found = {q: chance.sample(range(12), 8) for q in range(5)}
        relevant = {q: chance.sample(range(12), chance.randint(1, 4)) for q in range(5)}
        k = chance.randint(1, 9)
        recalls, reciprocals = [], []
        for query in range(5):
            hits = [item in relevant[query] for item in found[query]]
            recalls.append(sum(hits[:k]) / len(relevant[query]))
            reciprocals.append(1 / (hits.index(True) + 1) if any(hits) else 0)
        assert recall_at(found, relevant, k) == pytest.approx(sum(recalls) / 5)
        assert mean_reciprocal_rank(found, relevant) == pytest.approx(sum(reciprocals) / 5)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3"])
def test_k_is_a_count(k: Any) -> None:
    with pytest.raises(InputError, match="k must be a whole number above 0"):
        recall_at(FOUND, RELEVANT, k)


def test_k_may_be_a_number_of_numpy() -> None:
    count: Any = np.int64(2)
    assert recall_at(FOUND, RELEVANT, count) == recall_at(FOUND, RELEVANT, 2)


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(InputError, match="there is no query to measure"):
        recall_at(FOUND, {}, 1)
    with pytest.raises(InputError, match="nothing is relevant to the query 'q1'"):
        mean_reciprocal_rank(FOUND, {"q1": []})
