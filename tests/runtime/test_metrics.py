"""Metrics against loops over pairs and thresholds, closed forms and, if installed, scikit-learn."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_trt.errors import InputError
from dsd_trt.metrics import (
    ChosenThreshold,
    at_threshold,
    average_precision,
    bins_for,
    bootstrap,
    brier,
    calibration_error,
    chance_calibration_error,
    class_weights,
    cross_fitted,
    fit_logistic,
    log_loss,
    reliability,
    roc_auc,
    threshold_for_precision,
    threshold_for_recall,
    wilson_lower,
)
from dsd_trt.metrics.threshold import least_kept

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _pairs(seed: int, count: int = 40, step: float = 0.1) -> tuple[Floats, Ints, Floats]:
    """Scores with many ties, labels that go with them, and integer weights."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    labels[:2] = 0, 1
    scores = np.round((rng.normal(size=count) + labels) / step) * step
    return scores, labels, rng.integers(0, 4, size=count).astype(np.float64)


def _repeated(weights: Floats, *columns: NDArray[Any]) -> list[NDArray[Any]]:
    return [np.repeat(column, weights.astype(int)) for column in columns]


@pytest.mark.parametrize("seed", range(5))
def test_roc_auc_counts_pairs_of_pairs(seed: int) -> None:
    scores, labels, weights = _pairs(seed, step=0.5)

    def slow(scores: Floats, labels: Ints) -> float:
        wins = [
            1.0 if p > n else 0.5 if p == n else 0.0
            for p, n in product(scores[labels == 1], scores[labels == 0])
        ]
        return sum(wins) / len(wins)

    assert roc_auc(scores, labels) == pytest.approx(slow(scores, labels))
    repeated = _repeated(weights, scores, labels)
    assert roc_auc(scores, labels, weights) == pytest.approx(slow(*repeated))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_adds_precision_at_each_gain_of_recall(seed: int) -> None:
    scores, labels, weights = _pairs(seed, step=0.5)

    def slow(scores: Floats, labels: Ints) -> float:
        total, before = 0.0, 0.0
        for threshold in sorted(set(scores.tolist()), reverse=True):
            kept = [
                label for score, label in zip(scores, labels, strict=True) if score >= threshold
            ]
            recall = sum(kept) / labels.sum()
            total += (recall - before) * sum(kept) / len(kept)
            before = recall
        return float(total)

    assert average_precision(scores, labels) == pytest.approx(slow(scores, labels))
    repeated = _repeated(weights, scores, labels)
    assert average_precision(scores, labels, weights) == pytest.approx(slow(*repeated))


@pytest.mark.parametrize("step", [1e-6, 0.5, 100.0])
def test_scikit_learn_agrees(step: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        scores, labels, weights = _pairs(seed, step=step)
        for weight in (None, weights):
            assert roc_auc(scores, labels, weight) == pytest.approx(
                metrics.roc_auc_score(labels, scores, sample_weight=weight)
            )
            assert average_precision(scores, labels, weight) == pytest.approx(
                metrics.average_precision_score(labels, scores, sample_weight=weight)
            )
            p = 1 / (1 + np.exp(-scores))
            assert brier(p, labels, weight) == pytest.approx(
                metrics.brier_score_loss(labels, p, sample_weight=weight)
            )
            assert log_loss(p, labels, weight) == pytest.approx(
                metrics.log_loss(labels, p, sample_weight=weight)
            )
        for threshold in np.unique(scores):
            point = at_threshold(scores, labels, float(threshold))
            kept = scores >= threshold
            assert point.precision == pytest.approx(metrics.precision_score(labels, kept))
            assert point.recall == pytest.approx(metrics.recall_score(labels, kept))


def test_one_label_alone_has_no_ranking() -> None:
    assert math.isnan(roc_auc([0.1, 0.2], [1, 1]))
    assert math.isnan(roc_auc([0.1, 0.2], [0, 0]))
    assert math.isnan(average_precision([0.1, 0.2], [0, 0]))
    assert average_precision([0.1, 0.2], [1, 1]) == 1


def test_a_threshold_keeps_equal_scores() -> None:
    point = at_threshold([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 1], 0.5)
    assert (point.kept, point.precision, point.recall) == (3, 2 / 3, 2 / 3)
    nothing = at_threshold([0.9, 0.5], [1, 0], 0.95)
    assert nothing.kept == 0
    assert math.isnan(nothing.precision)
    assert nothing.recall == 0
    assert math.isnan(at_threshold([0.9, 0.5], [0, 0], 0.5).recall)


def test_bins_hold_equal_numbers_and_keep_ties_together() -> None:
    rng = np.random.default_rng(0)
    p = rng.permutation(np.linspace(0.01, 0.99, 60))
    labels = rng.integers(2, size=60)
    order = np.argsort(p)
    found = reliability(p, labels, bins=4)
    for at, part in enumerate(np.split(order, 4)):
        assert found[at].pairs == 15
        assert found[at].probability == pytest.approx(p[part].mean())
        assert found[at].positives == pytest.approx(labels[part].mean())
    gap = sum(15 / 60 * abs(it.probability - it.positives) for it in found)
    assert calibration_error(p, labels, bins=4) == pytest.approx(gap)
    # One value for all: one bin, whatever the order of the pairs.
    assert reliability([0.25] * 8, [0, 1] * 4, bins=4)[0].pairs == 8
    assert calibration_error([0.25] * 8, [0, 1] * 4, bins=4) == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_calibration_count_repeated_pairs(seed: int) -> None:
    scores, labels, weights = _pairs(seed)
    p = 1 / (1 + np.exp(-scores))
    repeated = _repeated(weights, p, labels)
    for metric in (brier, log_loss):
        assert metric(p, labels, weights) == pytest.approx(metric(*repeated))
    assert calibration_error(p, labels, 5, weights) == pytest.approx(
        calibration_error(repeated[0], repeated[1], 5)
    )


def test_the_number_of_bins_follows_the_number_of_pairs() -> None:
    assert [bins_for(n) for n in (1, 29, 30, 150, 10**6)] == [1, 1, 2, 10, 10]


def test_perfect_probabilities_have_the_calibration_error_of_chance() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(300)
    measured = [calibration_error(p, rng.random(300) < p) for _ in range(100)]
    assert chance_calibration_error(p) == pytest.approx(np.mean(measured), rel=0.1)
    assert calibration_error(p, rng.random(300) < p**3) > 2 * chance_calibration_error(p)
    # Probabilities for half as many positives as were drawn: weights make up for it.
    labels = rng.random((100, 3000)) < (share := rng.random(3000))
    rarer = 0.25 * share / (0.25 * share + 0.75 * (1 - share))
    weighed = [
        calibration_error(rarer, each, weights=np.where(each, 0.25, 0.75)) for each in labels
    ]
    assert np.mean(weighed) < 0.03
    chance = chance_calibration_error(rarer, weights=(0.75, 0.25))
    assert chance == pytest.approx(np.mean(weighed), rel=0.1)


def test_proper_losses_in_closed_form() -> None:
    assert brier([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)
    assert log_loss([0.8, 0.3], [1, 0]) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)
    assert math.isfinite(log_loss([0.0, 1.0], [1, 0]))


def test_class_weights_make_a_prior() -> None:
    labels = np.array([1, 0, 0, 0])
    weights = class_weights(labels, 0.2)
    assert weights @ labels / weights.sum() == pytest.approx(0.2)
    assert weights.sum() == pytest.approx(4)
    with pytest.raises(InputError, match="2 pairs without a negative one"):
        class_weights([1, 1], 0.2)


def test_bootstrap_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    hits = (rng.random(400) < 0.8).astype(np.float64)
    ((low, high),) = bootstrap(lambda drawn: [drawn @ hits / drawn.sum()], range(400))
    error = math.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    # Ten copies of every pair say no more than one, if they are of one group.
    ten = np.repeat(hits, 10)
    ((low10, high10),) = bootstrap(
        lambda drawn: [drawn @ ten / drawn.sum()], np.repeat(range(400), 10).tolist()
    )
    assert (low10, high10) == pytest.approx((low, high))


def test_bootstrap_omits_draws_without_a_value() -> None:
    labels = np.array([1, 0, 0])
    ((low, high),) = bootstrap(
        lambda drawn: [roc_auc([0.9, 0.1, 0.2], labels, drawn)], ["a", "b", "c"]
    )
    assert (low, high) == (1, 1)
    ((low, high),) = bootstrap(lambda drawn: [float("nan")], ["a"])
    assert math.isnan(low)
    assert math.isnan(high)


def test_wilson_inverts_the_normal_test() -> None:
    """The bound is the share from which the observed one is z standard errors away."""
    for share, n, confidence in ((0.9, 50.0, 0.9), (1.0, 30.0, 0.95), (0.02, 200.0, 0.8)):
        bound = float(wilson_lower(np.array(share), np.array(n), confidence))
        z = (share - bound) / math.sqrt(bound * (1 - bound) / n)
        assert z == pytest.approx(NormalDist().inv_cdf(confidence))


def _slow_bound(labels: Ints, kept: Ints, confidence: float | None) -> float:
    n, share = len(kept), float(labels[kept].mean())
    z = 0 if confidence is None else NormalDist().inv_cdf(confidence)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (share + z * z / (2 * n) - spread) / (1 + z * z / n)


def _slow_precision(
    scores: Floats, labels: Ints, asked: float, confidence: float | None
) -> set[int] | None:
    """The pairs above the threshold that is to be chosen; None if there is none."""
    sets = [np.flatnonzero(scores >= it) for it in sorted(set(scores.tolist()), reverse=True)]
    good = [_slow_bound(labels, kept, confidence) >= asked - 1e-12 for kept in sets]
    if confidence is None:
        fitting = [kept for kept, enough in zip(sets, good, strict=True) if enough]
        return set(fitting[-1].tolist()) if fitting else None
    perfect = np.ones(len(labels), np.int64)
    able = [
        i
        for i, it in enumerate(sets)
        if _slow_bound(perfect, it, confidence) >= asked - 1e-12 and len(it) >= 20
    ]
    best, wanted = None, 0
    for i in able:  # twice as many each
        if len(sets[i]) >= wanted:
            best, wanted = i if good[i] else best, 2 * len(sets[i])
    while best is not None and best + 1 < len(sets) and good[best + 1]:
        best += 1
    return None if best is None else set(sets[best].tolist())


@pytest.mark.parametrize("confidence", [None, 0.8, 0.9])
@pytest.mark.parametrize("step", [1e-6, 0.5])
def test_the_threshold_for_a_precision_is_the_smallest_that_reaches_it(
    step: float, confidence: float | None
) -> None:
    outcomes = set()
    for seed in range(20):
        scores, labels, _ = _pairs(seed, 60, step)
        for asked in (0.5, 0.7, 0.95):
            found = threshold_for_precision(scores, labels, asked, confidence=confidence)
            wanted = _slow_precision(scores, labels, asked, confidence)
            assert found.reached == (wanted is not None)
            outcomes.add(found.reached)
            kept = set(np.flatnonzero(scores >= found.threshold).tolist())
            if wanted is not None:
                assert kept == wanted
            assert found.kept == len(kept)
            assert found.precision == pytest.approx(labels[list(kept)].mean())
            assert found.recall == pytest.approx(labels[list(kept)].sum() / labels.sum())
    assert outcomes == {True, False}


def test_the_threshold_for_a_recall_is_the_largest_that_reaches_it() -> None:
    for seed, asked in product(range(10), (0.3, 0.6, 0.9)):
        scores, labels, _ = _pairs(seed, 60, 0.25)
        found = threshold_for_recall(scores, labels, asked, confidence=None)
        enough = [
            t for t in set(scores.tolist()) if labels[scores >= t].sum() >= asked * labels.sum()
        ]
        assert (scores >= found.threshold).tolist() == (scores >= max(enough)).tolist()
        assert found.reached
        sure = threshold_for_recall(scores, labels, asked, confidence=0.9)
        assert sure.threshold <= found.threshold
        assert sure.bound >= asked or not sure.reached


def test_what_cannot_be_reached_is_said_with_the_closest() -> None:
    few = threshold_for_precision([0.9, 0.8, 0.1], [1, 1, 0], 0.95)
    assert not few.reached
    assert few.precision == 1
    assert few.kept == 2
    assert few.bound < 0.95
    # Three positives cannot show a recall of 95 %: everything is kept.
    all_kept = threshold_for_recall([0.9, 0.8, 0.1, 0.4], [1, 1, 0, 1], 0.95)
    assert not all_kept.reached
    assert all_kept.recall == 1


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_a_precision_asked_for_is_reached_on_other_pairs(confidence: float) -> None:
    """Two normal distributions, whose precision and recall at a threshold are closed forms."""
    rng = np.random.default_rng(0)
    normal, apart, asked = NormalDist(), 2.5, 0.9
    reached = []
    for _ in range(300):
        labels = (rng.random(200) < 0.5).astype(int)
        found = threshold_for_precision(
            rng.normal(size=200) + apart * labels, labels, asked, confidence=confidence
        )
        positives = 1 - normal.cdf(found.threshold - apart)
        negatives = 1 - normal.cdf(found.threshold)
        reached.append(positives / (positives + negatives) >= asked)
    assert np.mean(reached) >= confidence - 0.03


def test_luck_at_the_top_is_no_evidence() -> None:
    """No threshold has the precision asked for; of many tried alone, one would often pass."""
    rng = np.random.default_rng(0)
    found, alone = [], []
    for _ in range(200):
        labels = (rng.random(300) < 0.88).astype(np.float64)
        scores = rng.random(300)  # say nothing about the labels
        found.append(threshold_for_precision(scores, labels, 0.9).reached)
        trials = np.arange(1.0, 301)
        share = np.cumsum(labels[np.argsort(-scores)]) / trials
        alone.append((wilson_lower(share, trials, 0.9) >= 0.9).any())
    assert np.mean(found) < 0.2
    assert np.mean(alone) > 1.5 * np.mean(found)


def _of_images(rng: np.random.Generator, images: int, of_each: int) -> tuple[Floats, Ints, Ints]:
    """Pairs whose images are easy or hard as a whole, so that they err together."""
    image = np.repeat(np.arange(images), of_each)
    labels = rng.integers(2, size=len(image))
    ease = rng.choice([0.5, 4.0], size=images, p=[0.3, 0.7])[image]
    return rng.normal(size=len(image)) * 0.5 + np.where(labels == 1, 2, 2 - ease), labels, image


def test_pairs_of_one_image_count_less() -> None:
    rng = np.random.default_rng(1)
    scores, labels, image = _of_images(rng, 40, 10)
    alone = threshold_for_precision(scores, labels, 0.7)
    grouped = threshold_for_precision(scores, labels, 0.7, groups=image.tolist())
    own = threshold_for_precision(scores, labels, 0.7, groups=range(len(image)))
    assert (own.threshold, own.reached) == (alone.threshold, True)
    assert own.bound == pytest.approx(alone.bound)
    assert grouped.threshold > alone.threshold
    # The effective number of pairs, by a loop over the groups at the threshold that was chosen.
    kept = scores >= grouped.threshold
    share = labels[kept].mean()
    of_groups = [
        (labels[kept & (image == g)].sum() - share * (kept & (image == g)).sum()) ** 2
        for g in range(40)
    ]
    effect = max(sum(of_groups) / (kept.sum() * share * (1 - share)), 1)
    bound = wilson_lower(np.array(share), np.array(kept.sum() / effect), 0.9)
    assert grouped.bound == pytest.approx(float(bound))


def test_groups_count_for_recall_too() -> None:
    scores, labels, image = _of_images(np.random.default_rng(2), 30, 8)
    scores = scores + np.random.default_rng(3).normal(size=30)[image] * 3
    found = threshold_for_recall(scores, labels, 0.7, groups=image.tolist())
    kept, positive = scores >= found.threshold, labels == 1
    share = (kept & positive).sum() / positive.sum()
    of_groups = [
        ((kept & positive)[image == g].sum() - share * positive[image == g].sum()) ** 2
        for g in range(30)
    ]
    effect = sum(of_groups) / (positive.sum() * share * (1 - share))
    assert effect > 1.5
    bound = wilson_lower(np.array(share), np.array(positive.sum() / effect), 0.9)
    assert found.bound == pytest.approx(float(bound))


def test_a_prior_changes_precision_and_not_recall() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    scores = rng.normal(size=1000) + 2.5 * labels

    def threshold(prior: float | None) -> ChosenThreshold:
        return threshold_for_precision(scores, labels, 0.8, prior=prior)

    assert threshold(0.5) == threshold(None)
    rare = threshold(0.1)
    assert rare.threshold > threshold(None).threshold
    kept = scores >= rare.threshold
    true, false = 0.1 * kept[labels == 1].mean(), 0.9 * kept[labels == 0].mean()
    assert rare.precision == pytest.approx(true / (true + false))
    assert rare.precision >= rare.bound >= 0.8
    recall = threshold_for_recall(scores, labels, 0.9, prior=0.1)
    assert recall.threshold == threshold_for_recall(scores, labels, 0.9).threshold


def test_thresholds_are_short_and_hold_in_single_precision() -> None:
    labels = [1] * 60 + [0] * 60
    scores = np.concatenate([np.linspace(0.8312, 1, 60), np.linspace(0, 0.8299, 60)])
    assert threshold_for_precision(scores, labels, 0.95).threshold == 0.83
    # Neighbours in FP32: nothing shorter lies between them.
    near = np.nextafter(np.float32(0.83), np.float32(1))
    single = np.array([near] * 60 + [np.float32(0.83)] * 60, np.float32)
    found = threshold_for_precision(single, labels, 0.95)
    assert (single >= found.threshold).sum() == 60


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "no pairs"),
        ([0.1, float("nan")], [0, 1], "scores that are not finite: 1 of 2"),
        ([0.1, 0.2], [0, 2], "0 or 1"),
        ([0.1, 0.2], [1], "one length"),
        ([0.1, 0.2], [0, 0], "positives"),
    ],
)
def test_unusable_pairs_are_refused(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        threshold_for_precision(scores, labels, 0.9)


@pytest.mark.parametrize(("asked", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.9, 0.4), (0.9, 1.0)])
def test_unusable_demands_are_refused(asked: float, confidence: float) -> None:
    with pytest.raises(InputError):
        threshold_for_recall([0.1, 0.2], [0, 1], asked, confidence=confidence)


def _sigmoid(logit: NDArray[Any]) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def test_a_fit_to_two_scores_has_a_closed_form() -> None:
    """Each score then predicts its own share of positives, of Platt's targets."""
    scores = np.repeat([0.25, 0.75], [60, 40])
    labels = np.array([1] * 8 + [0] * 52 + [1] * 32 + [0] * 8)
    a, b = fit_logistic(scores, labels)
    yes, no = 41 / 42, 1 / 62
    assert _sigmoid(np.array(a * 0.25 + b)) == pytest.approx((8 * yes + 52 * no) / 60)
    assert _sigmoid(np.array(a * 0.75 + b)) == pytest.approx((32 * yes + 8 * no) / 40)
    # With a prior, positives and negatives weigh as much as their share asks for.
    a, b = fit_logistic(scores, labels, prior=0.1)
    up, down = 0.1 / 0.4, 0.9 / 0.6
    low = (8 * up * yes + 52 * down * no) / (8 * up + 52 * down)
    assert _sigmoid(np.array(a * 0.25 + b)) == pytest.approx(low)


def test_a_fit_finds_the_probabilities_that_labels_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.02, 0.06, 40_000)
    labels = rng.random(40_000) < _sigmoid(150 * scores - 7)
    a, b = fit_logistic(scores, labels)
    assert a == pytest.approx(150, rel=0.05)
    assert a * 0.04 + b == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_separated_labels_give_a_finite_fit_at_any_scale(scale: float) -> None:
    scores = np.array([0.1, 0.11, 0.4, 0.41]) * scale
    a, b = fit_logistic(scores, [0, 0, 1, 1])
    p = _sigmoid(a * scores + b)
    assert p == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.03)  # Platt's targets of two pairs
    a, b = fit_logistic(-scores, [0, 0, 1, 1])
    assert a < 0


def test_a_fit_is_the_optimum_with_outliers_too() -> None:
    scores = np.concatenate([np.linspace(0, 1, 100), [1e4, -1e4]])
    labels = np.concatenate([np.linspace(0, 1, 100) > 0.4, [1, 0]]).astype(int)
    a, b = fit_logistic(scores, labels)
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(a: float, b: float) -> float:
        logit = a * scores + b
        return float((np.logaddexp(0, logit) - target * logit).sum())

    for near in ((a * 1.01, b), (a * 0.99, b), (a, b + 0.01), (a, b - 0.01)):
        assert loss(a, b) < loss(*near)


def test_scikit_learn_fits_the_same() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    scores = rng.normal(size=200) + labels
    a, b = fit_logistic(scores, labels)
    theirs = calibration._sigmoid_calibration(scores, labels)  # of sigmoid(-(a s + b))
    assert (a, b) == pytest.approx((-theirs[0], -theirs[1]), rel=1e-3)


def test_nothing_can_be_fitted_to_one_label_or_one_score() -> None:
    with pytest.raises(InputError, match="3 pairs without a positive one"):
        fit_logistic([0.1, 0.2, 0.3], [0, 0, 0])
    for score in (0.5, 0.1, 0.3):  # the mean of equal scores may be another number than each
        for count in range(2, 60):
            with pytest.raises(InputError, match=rf"every score is {score}, of {count} pairs"):
                fit_logistic([score] * count, [0, *[1] * (count - 1)])
    with pytest.raises(InputError, match="not finite"):
        fit_logistic([0.5, float("nan")], [0, 1])


def test_cross_validation_never_sees_a_pair_of_its_group() -> None:
    """Labels of the held group are flipped: its own probabilities stay as they were."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    labels = rng.integers(2, size=100)
    scores = rng.normal(size=100) + 2 * labels
    known = cross_fitted(scores, labels, groups.tolist(), prior=0.5)
    assert known is not None
    assert len(np.unique(np.round(known - _sigmoid(scores), 12))) > 90
    held = groups == 7
    flipped = np.where(held, 1 - labels, labels)
    again = cross_fitted(scores, flipped, groups.tolist(), prior=0.5)
    assert again is not None
    assert again[held] == pytest.approx(known[held])
    assert not np.allclose(again, known)


def test_cross_validation_needs_both_labels_beside_each_part() -> None:
    assert cross_fitted([0.1, 0.2, 0.3], [1, 0, 0], ["a", "b", "c"]) is None
    assert cross_fitted([0.1, 0.2], [1, 0], ["a", "a"]) is None
    assert cross_fitted([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], ["a", "b", "c", "d"]) is not None


@pytest.mark.parametrize("precision", [0.9, 0.95, 0.975, 0.99])
def test_the_fewest_kept_pairs_reach_the_precision_and_one_less_does_not(precision: float) -> None:
    """Positives on top, as many negatives below: the only errors are those of too few pairs."""
    fewest = least_kept(precision)
    for positives, reached in ((fewest, True), (fewest - 1, False)):
        scores = np.linspace(1, 0, 2 * positives)
        labels = [True] * positives + [False] * positives
        found = threshold_for_precision(scores, labels, precision)
        assert found.reached is reached
    assert least_kept(0.5) == least_kept(0.85) == 20
