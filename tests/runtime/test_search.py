"""Successive elimination: what it keeps, what it saves, and how often it errs."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from bundles import FRACTIONS, WORDS
from numpy.typing import NDArray

from dsd_trt import Bundle, Scorer
from dsd_trt.commands.main import main
from dsd_trt.errors import InputError
from dsd_trt.search import eliminate, same_best, student_quantile

LEVELS, ERROR = 4, 0.01


@pytest.mark.parametrize("probability", [0.5, 0.025, 1e-3, 1e-6, 1e-12])
def test_quantiles_of_students_t(probability: float) -> None:
    """Against the closed forms for 1, 2 and 4 degrees of freedom, and the normal distribution."""
    inside = 1 - 2 * probability
    four = 4 * probability * (1 - probability)
    angle = math.cos(math.acos(math.sqrt(four)) / 3) / math.sqrt(four)
    expected = {
        1: math.tan(math.pi * inside / 2),
        2: inside * math.sqrt(2 / four),
        4: 2 * math.sqrt(max(0.0, angle - 1)),
    }
    for freedom, quantile in expected.items():
        found = student_quantile(probability, freedom)
        # What is left of a probability so close to 1 has few digits.
        assert found == pytest.approx(quantile, rel=1e-8 + 1e-16 / probability, abs=1e-7)
    normal = NormalDist().inv_cdf(1 - probability)
    assert normal <= student_quantile(probability, 10_000) + 1e-12
    assert student_quantile(probability, 10_000) == pytest.approx(normal, rel=0.07, abs=1e-9)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(3, 3.182), (5, 2.571), (11, 2.201), (29, 2.045)]
)
def test_quantiles_in_a_table(freedom: int, quantile: float) -> None:
    """Those that books print for 0.025."""
    assert student_quantile(0.025, freedom) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_scatter_that_was_estimated_from_few_drops_few(count: int) -> None:
    """Two candidates at two levels can agree by chance."""
    rng = np.random.default_rng(2)
    lost = 0
    for _ in range(2000):
        table = scattered(rng, count, 1.0)
        found = eliminate(table, count, LEVELS, 1, ERROR)
        lost += not same_best(found[None], table.scores.mean(axis=1)[None], 1)[0]
    assert lost <= 20


@pytest.mark.parametrize("error", [1e-15, 1e-300])
def test_the_smallest_errors_are_alike(error: float) -> None:
    assert student_quantile(error, 5) == student_quantile(1e-15, 5)
    table = scattered(np.random.default_rng(3), 5, 1.0)
    eliminate(table, 5, LEVELS, 1, error)
    assert (table.asked == 1).all()  # none can be dropped before it has all levels


class Table:
    """Scores by candidate and level, and how many were asked for."""

    def __init__(self, scores: NDArray[np.float64]) -> None:
        self.scores, self.asked = scores, np.zeros(scores.shape, int)

    def __call__(self, candidates: NDArray[np.intp], level: int) -> NDArray[np.float64]:
        self.asked[candidates, level] += 1
        return self.scores[candidates, level]


def scattered(rng: np.random.Generator, count: int, scatter: float) -> Table:
    """Candidates of unit spread, levels with offsets of their own, and scatter about both."""
    means = rng.normal(size=(count, 1)) + rng.normal(size=(1, LEVELS))
    return Table(means + scatter * rng.normal(size=(count, LEVELS)))


@pytest.mark.parametrize("best", [1, 3])
@pytest.mark.parametrize("scatter", [0.05, 0.2, 0.5])
def test_the_best_are_lost_no_more_often_than_accepted(best: int, scatter: float) -> None:
    rng = np.random.default_rng(7)
    same = []
    for _ in range(400):
        table = scattered(rng, 60, scatter)
        found = eliminate(table, 60, LEVELS, best, ERROR)
        full = table.scores.mean(axis=1)
        same.append(same_best(found[None], full[None], best)[0])
    assert np.mean(same) >= 0.99


def test_the_best_are_not_lost_where_neighbouring_levels_agree() -> None:
    """Scores that drift from level to level: the first two say little of the last."""
    rng = np.random.default_rng(11)
    drift = np.array([-0.3, -0.25, -0.15, 0.7])
    lost = 0
    for _ in range(400):
        means = rng.normal(size=(60, 1))
        scores = means + rng.normal(size=(60, 1)) * drift + 0.02 * rng.normal(size=(60, LEVELS))
        found = eliminate(Table(scores), 60, LEVELS, 1, ERROR)
        lost += not same_best(found[None], scores.mean(axis=1)[None], 1)[0]
    assert lost <= 4


def test_the_less_levels_scatter_the_more_is_saved() -> None:
    rng = np.random.default_rng(3)
    asked = []
    for scatter in (0.02, 0.2, 2.0):
        table = scattered(rng, 100, scatter)
        eliminate(table, 100, LEVELS, 1, ERROR)
        asked.append(int(table.asked.sum()))
    assert asked[0] < 100 * LEVELS / 2.5
    assert asked[0] < asked[1] < asked[2] <= 100 * LEVELS


def test_what_is_kept_has_its_mean_and_nothing_is_scored_twice() -> None:
    table = scattered(np.random.default_rng(1), 50, 0.2)
    found = eliminate(table, 50, LEVELS, 2, ERROR)
    kept = np.isfinite(found)
    assert 2 <= kept.sum() < 50
    assert found[kept] == pytest.approx(table.scores[kept].mean(axis=1), abs=1e-6)
    assert table.asked.max() == 1
    assert (table.asked[kept] == 1).all()


@pytest.mark.parametrize(("count", "levels", "best"), [(1, 4, 1), (5, 1, 2), (3, 4, 8), (2, 2, 1)])
def test_small_searches_end(count: int, levels: int, best: int) -> None:
    scores = np.random.default_rng(0).normal(size=(count, levels))
    found = eliminate(Table(scores), count, levels, best, ERROR)
    order = np.argsort(-scores.mean(axis=1))[: min(best, count)]
    assert found[order] == pytest.approx(scores[order].mean(axis=1), abs=1e-6)


def test_equal_candidates_are_all_kept() -> None:
    found = eliminate(Table(np.ones((40, LEVELS))), 40, LEVELS, 1, ERROR)
    assert np.isfinite(found).all()


def test_same_best_looks_at_the_set() -> None:
    few, full = np.array([[np.nan, 2, np.nan]]), np.array([[3.0, 2, 1]])
    assert not same_best(few, full, 2)[0]  # one is lost, whatever its place
    assert same_best(few, few, 2)[0]
    full = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    pruned = np.array([[2.0, 3.0, np.nan], [1.0, np.nan, 3.0]])
    assert same_best(pruned, full, 2).tolist() == [True, False]
    assert same_best(pruned, full, 1).tolist() == [False, True]


# With a bundle


@pytest.fixture
def pictures() -> list[Any]:
    return list(np.random.default_rng(2).integers(0, 256, (6, 8, 8, 3), np.uint8))


TEXTS = [f"{a} {b}" for a in WORDS[4:] for b in WORDS[4:]]


def test_a_scorer_finds_each_images_best_texts(bundle: Bundle, pictures: list[Any]) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    full = scorer.score(pictures, TEXTS)
    found = scorer.score([pictures[0], b"no image", *pictures[1:]], TEXTS, top_k=2)
    kept = np.delete(found.scores, 1, axis=0)
    assert full.passes == full.scores.size * len(FRACTIONS)
    assert found.passes < full.passes
    assert same_best(kept, full.scores, 2).all()
    known = np.isfinite(kept)
    assert not known.all()
    assert kept[known] == pytest.approx(full.scores[known], abs=1e-6)
    assert np.isnan(found.scores[1]).all()
    assert [failure.image for failure in found.errors] == ["image 1"]


def test_best_is_the_former_name_of_top_k(bundle: Bundle, pictures: list[Any]) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    found = scorer.score(pictures, TEXTS, top_k=2)
    before = scorer.score(pictures, TEXTS, best=2)
    assert np.isnan(found.scores).any()
    np.testing.assert_array_equal(found.scores, before.scores)
    assert found.passes == before.passes
    streamed = [image.scores for image in scorer.stream(pictures, TEXTS, best=2).images]
    np.testing.assert_array_equal(found.scores, streamed)
    both = scorer.score(pictures, TEXTS, top_k=2, best=2)
    np.testing.assert_array_equal(found.scores, both.scores)
    with pytest.raises(InputError, match="give top_k alone"):
        scorer.score(pictures, TEXTS, top_k=2, best=3)


def test_a_scorer_finds_a_texts_best_images(bundle: Bundle) -> None:
    pictures = list(np.random.default_rng(4).integers(0, 256, (80, 8, 8, 3), np.uint8))
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    told: list[tuple[int, int | None]] = []
    found = scorer.rank(
        "a red circle", [*pictures, b""], 3, progress=lambda *it: told.append(it), prune=True
    )
    full = scorer.rank("a red circle", pictures, 3)
    assert [it.index for it in found] == [it.index for it in full]
    # The engine rounds differently in batches of other sizes.
    assert [it.score for it in found] == pytest.approx([it.score for it in full], abs=1e-6)
    assert told[-1] == (81, 81)


def test_what_cannot_be_pruned_is_refused(bundle: Bundle, pictures: list[Any]) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    with pytest.raises(InputError, match="top_k must be a whole number above 0"):
        scorer.score(pictures, TEXTS, top_k=0)
    with pytest.raises(InputError, match="say how many with top_k"):
        scorer.rank("a red circle", pictures, prune=True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--prune"], "give --top-k"),
        (["--top-k", "1", "--check-prune", "2"], "--check-prune is for --prune"),
    ],
)
def test_options_that_belong_together(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", "a.png", "b.txt", *options])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
