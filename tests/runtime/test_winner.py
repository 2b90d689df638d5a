"""With what probability rounding changes the winner, against closed forms and counted winners."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_trt.winner import winner_changes

Scores = NDArray[np.float64]


def with_gaps(gaps: NDArray[np.float64]) -> Scores:
    """Blocks of two images and two texts; both gaps of each, and of its texts, are given.

    Args:
        gaps: gaps, (blocks, 2): of the first image and text, and of the second ones.
    """
    scores = np.zeros((len(gaps), 2, 2))
    scores[:, 0, 0], scores[:, 1, 1] = gaps.T
    return scores


def noisy(reference: Scores, deviation: float, seed: int = 0) -> Scores:
    """Scores whose differences have normal noise of a standard deviation."""
    rng = np.random.default_rng(seed)
    noise: Scores = rng.normal(scale=deviation / math.sqrt(2), size=reference.shape)
    return reference + noise


def counted(scores: Scores, reference: Scores) -> float:
    """Share of images and texts whose winner is another one."""
    changed = [scores.argmax(axis) != reference.argmax(axis) for axis in (1, 2)]
    return float(np.mean(changed))


@pytest.mark.parametrize("times", [0.5, 1, 2])
def test_equal_gaps_have_the_normal_distributions_tail(times: float) -> None:
    """Gaps a little apart, so that one group lies between each two."""
    deviation = 0.01
    gaps = times * deviation * np.linspace(0.999999, 1.000001, 40000).reshape(-1, 2)
    reference = with_gaps(gaps)
    # The first of four groups counts as spread from 0 on, the others lie at the gap.
    tail = 0.5 * math.erfc(times / math.sqrt(2))
    integral = times * tail + (1 - math.exp(-(times**2) / 2)) / math.sqrt(2 * math.pi)
    expected = 0.75 * tail + 0.25 * integral / times
    found = winner_changes(noisy(reference, deviation), reference)
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("deviation", [0.02, 0.2, 1.0])
def test_gaps_spread_evenly_have_a_closed_form(deviation: float) -> None:
    """Over gaps from 0 to 1: s (1 / sqrt(2 pi) - ...), for small s 0.399 s."""
    reference = with_gaps(np.random.default_rng(1).uniform(size=(20000, 2)))
    scores = noisy(reference, deviation)
    x = 1 / deviation
    tail = 0.5 * math.erfc(x / math.sqrt(2))
    expected = deviation * (x * tail + (1 - math.exp(-x * x / 2)) / math.sqrt(2 * math.pi))
    assert winner_changes(scores, reference) == pytest.approx(expected, rel=0.03)
    assert counted(scores, reference) == pytest.approx(expected, rel=0.1)


def test_few_lines_tell_what_many_winners_do() -> None:
    """With exponential gaps 0.2 % of winners change, which counting among few could not show."""
    rng = np.random.default_rng(2)
    deviation = 0.005
    many = with_gaps(rng.exponential(size=(100000, 2)))
    # The mean over gaps g of mean 1: 1/2 - exp(s^2 / 2) Phi(-s)
    tail = 0.5 * math.erfc(deviation / math.sqrt(2))
    truth = 0.5 - math.exp(deviation**2 / 2) * tail
    assert truth == pytest.approx(0.002, rel=0.01)
    assert counted(noisy(many, deviation, 3), many) == pytest.approx(truth, rel=0.15)
    found = []
    for seed in range(200):
        few = many[rng.choice(len(many), 32)]  # 64 images and 64 texts
        found.append(winner_changes(noisy(few, deviation, seed), few))
    assert np.mean(found) == pytest.approx(truth, rel=0.3)
    assert np.std(found) < 0.5 * truth
    # Of one block of two images and two texts.
    single = [winner_changes(noisy(many[i : i + 1], deviation, i), many[i : i + 1]) for i in (0, 1)]
    assert all(0 <= it <= 0.5 for it in single)


def test_what_moves_all_scores_of_an_image_alike_changes_no_winner_of_it() -> None:
    """Rank correlation over everything would refuse it; texts of an image keep their order."""
    rng = np.random.default_rng(4)
    reference = rng.normal(scale=1e-4, size=(8, 8, 8))
    moved = reference + rng.normal(scale=1.0, size=(8, 1, 1))
    assert winner_changes(moved, reference) == pytest.approx(0, abs=1e-9)
    # Images of a text are then in another order: half of the lines, of which most change.
    per_image = reference + rng.normal(scale=1.0, size=(8, 8, 1))
    assert 0.2 < winner_changes(per_image, reference) <= 0.5


def test_scores_close_together_are_judged_by_their_own_gaps() -> None:
    reference = np.random.default_rng(5).normal(size=(4, 8, 8))
    noise = noisy(np.zeros_like(reference), 0.01)
    found = winner_changes(reference + noise, reference)
    assert found > 0
    close = 0.5 + 1e-5 * reference
    assert winner_changes(close + 1e-5 * noise, close) == pytest.approx(found, rel=1e-3)


def test_ties() -> None:
    rng = np.random.default_rng(6)
    reference = with_gaps(np.zeros((50, 2)))
    reference[0, 0, 0] = 1.0  # not all are equal
    # Broken by rounding: for either of both.
    broken = winner_changes(noisy(reference, 1e-6), reference)
    assert broken == pytest.approx(198 / 200 / 2, abs=0.01)
    # Ties that stay ties, as of two equal texts, have the same winner.
    assert winner_changes(reference, reference) == 0
    texts = rng.normal(size=(4, 8, 4)).repeat(2, axis=2)  # of every text another one that equals it
    scores = texts + rng.normal(scale=1e-6, size=(4, 8, 4)).repeat(2, axis=2)
    assert winner_changes(scores, texts) < 1e-4


def test_without_noise_no_winner_changes() -> None:
    reference = np.random.default_rng(7).normal(size=(2, 4, 6)).astype(np.float32)
    assert winner_changes(reference, reference) == 0


def test_a_useless_precision_changes_half_of_two() -> None:
    reference = with_gaps(np.full((500, 2), 1e-9))
    assert winner_changes(noisy(reference, 1.0), reference) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_probability(damage: float) -> None:
    reference = np.random.default_rng(8).normal(size=(1, 4, 4))
    damaged = reference.copy()
    damaged[0, 1, 2] = damage
    assert math.isnan(winner_changes(damaged, reference))
    assert math.isnan(winner_changes(reference, damaged))


def test_equal_references_have_no_winner() -> None:
    reference = np.full((2, 4, 4), 0.25)
    assert math.isnan(winner_changes(reference, reference))
    assert math.isnan(winner_changes(noisy(reference, 1e-3), reference))


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4), (1, 4, 1)])
def test_a_winner_needs_a_second(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two images and two texts"):
        winner_changes(np.zeros(shape), np.zeros(shape))
