"""Rankings: the best images of texts and the best texts of images, against sorting in Python."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bundles import WORDS, closed_form
from numpy.typing import NDArray

from dsd_trt import Bundle, RankedImage, ScoreMatrix, Scorer, ranking
from dsd_trt.errors import InputError
from dsd_trt.ranking import BestImages, best_first

TEXTS = ["a dog", "a red circle", "blue"]


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Iterator[Scorer]:
    with Scorer.load(bundle.folder, "onnxruntime") as scorer:
        yield scorer


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(4).integers(0, 256, (9, 8, 8, 3), np.uint8))


def by_hand(pictures: list[Any], text: str) -> list[int]:
    return sorted(range(len(pictures)), key=lambda i: -closed_form(pictures[i], text))


@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 8, 20, None])
def test_the_best_are_those_of_a_stable_sort(top_k: int | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 4, 8).astype(np.float32)
        scores[rng.random(8) < 0.2] = np.nan
        known = [i for i in range(8) if not np.isnan(scores[i])]
        assert best_first(scores, top_k) == sorted(known, key=lambda i: -scores[i])[:top_k]


@pytest.mark.parametrize("top_k", [2, None])
def test_scores_that_arrive_one_by_one_have_the_same_best(
    top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_CHUNK", 3)
    scores = np.random.default_rng(1).integers(0, 5, (20, 4)).astype(np.float32)
    scores[5, 1] = np.nan
    best = BestImages(4, top_k)
    for place, row in enumerate(scores):
        best.add(f"image {place}", row)
        if top_k:
            assert len(best._names) <= 4 * top_k + 3  # what else is held does not matter
    assert len(best) == 20
    for found, column in zip(best.rankings(), scores.T, strict=True):
        places = best_first(column, top_k)
        assert found == [(i, f"image {i}", column[i]) for i in places]
    assert BestImages(2, 3).rankings() == [[], []]


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_batch_of_texts_is_ranked_as_each_text_alone(
    scorer: Scorer, pictures: list[Any], prune: bool, kind: Any
) -> None:
    rankings = scorer.rank(kind(TEXTS), pictures, 4, prune=prune)
    for text, found in zip(TEXTS, rankings, strict=True):
        assert [it.index for it in found] == by_hand(pictures, text)[:4]
        alone = scorer.rank(text, pictures, 4, prune=prune)
        assert [it.index for it in alone] == [it.index for it in found]
        assert [it.score for it in alone] == pytest.approx([it.score for it in found], abs=1e-6)
    everything = scorer.rank(kind(TEXTS), (it for it in pictures))
    assert [len(found) for found in everything] == [9, 9, 9]


@pytest.mark.parametrize("prune", [False, True])
def test_ids_name_images_of_any_iterable(scorer: Scorer, pictures: list[Any], prune: bool) -> None:
    ids = [("shard", i) for i in range(10)]
    images = [*pictures[:3], b"no image", *pictures[3:]]
    for given in (images, iter(images)):
        found = scorer.rank("a dog", given, 3, prune=prune, ids=ids)
        assert [it.id for it in found] == [ids[it.index] for it in found]
        assert [it.index for it in found] == [i + (i > 2) for i in by_hand(pictures, "a dog")[:3]]
    with pytest.raises(InputError, match="9 ids for 10 images: give one for each"):
        scorer.rank("a dog", iter(images), 3, prune=prune, ids=ids[:9])
    with pytest.raises(InputError, match="ids must be a list"):
        scorer.rank("a dog", images, ids="abcdefghij")


def test_texts_of_images_are_ranked(
    scorer: Scorer, pictures: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    ids: Any = np.array([7, 8, 9])
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        first, broken, second = scorer.rank_texts(
            [pictures[0], b"no image", pictures[1]], TEXTS, ids=ids
        )
    assert broken == []
    assert "left out of the ranking: image 1: not an image" in caplog.text
    for picture, found in ((pictures[0], first), (pictures[1], second)):
        scores = [closed_form(picture, text) for text in TEXTS]
        assert [it.index for it in found] == sorted(range(3), key=lambda i: -scores[i])
        assert [it.score for it in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
        assert all((it.text, it.id) == (TEXTS[it.index], 7 + it.index) for it in found)
    many = [f"{a} {b}" for a, b in itertools.combinations(WORDS[4:], 2)]  # no two score alike
    best = scorer.rank_texts(pictures, many, top_k=2)
    pruned = scorer.rank_texts(pictures, many, top_k=2, prune=True)
    assert [[it.index for it in each] for each in pruned] == [
        [it.index for it in each] for each in best
    ]


def test_a_matrix_has_the_rankings_of_its_scores(scorer: Scorer, pictures: list[Any]) -> None:
    matrix = scorer.score(pictures, TEXTS)
    by_text, by_image = scorer.rank(TEXTS, pictures, 4), scorer.rank_texts(pictures, TEXTS, 2)
    assert [[it.index for it in each] for each in matrix.top_images(4)] == [
        [it.index for it in each] for each in by_text
    ]
    assert [[it.text for it in each] for each in matrix.top_texts(2)] == [
        [it.text for it in each] for each in by_image
    ]
    ids = list("abcdefghi")
    best = matrix.top_images(1, ids=ids)[0][0]
    assert best == RankedImage(
        best.index,
        matrix.images[best.index],
        float(matrix.scores[best.index, 0]),
        float(matrix.probabilities[best.index, 0]),
        ids[best.index],
    )
    with pytest.raises(InputError, match="top_k must be a whole number above 0, got 0"):
        matrix.top_texts(0)
    with pytest.raises(InputError, match="2 ids for 3 texts"):
        matrix.top_texts(ids=["a", "b"])


def test_pairs_have_the_rankings_of_their_scores(scorer: Scorer, pictures: list[Any]) -> None:
    """Texts have candidates of their own; one cannot be read, and one is there twice."""
    candidates = {"blue": [3, 0, 8, 5], "a dog": [1, 3, 1, 6, 2]}
    pairs: list[tuple[Any, str]] = [(pictures[3], "a red circle")]
    pairs += [(pictures[i], text) for text, own in candidates.items() for i in own]
    pairs.append((b"no image", "blue"))
    ids = [f"row {place}" for place in range(len(pairs))]

    found = scorer.score_pairs(pairs)
    best = found.top_images(3, ids=ids)

    assert list(best) == ["a red circle", "blue", "a dog"]
    for text in candidates:
        places = [i for i, (_, other) in enumerate(pairs[:-1]) if other == text]
        order = sorted(places, key=lambda i: -closed_form(pairs[i][0], text))[:3]
        assert [it.index for it in best[text]] == order
        assert [it.id for it in best[text]] == [ids[i] for i in order]
        assert [it.image for it in best[text]] == [found.images[i] for i in order]
        assert [it.score for it in best[text]] == [float(found.scores[i]) for i in order]
    assert len(found.top_images()["blue"]) == 4
    of_image = found.top_texts(ids=ids)
    third = found.images[0]  # in three pairs
    texts = sorted(["a red circle", "blue", "a dog"], key=lambda t: -closed_form(pictures[3], t))
    assert [it.text for it in of_image[third]] == texts
    assert [it.id for it in of_image[third]] == [ids[it.index] for it in of_image[third]]
    with pytest.raises(InputError, match="2 ids for 11 pairs"):
        found.top_images(ids=["a", "b"])
    with pytest.raises(InputError, match="top_k must be a whole number above 0"):
        found.top_texts(0)


def test_wrong_arguments_are_refused_before_anything_is_read(scorer: Scorer) -> None:
    for call, message in (
        (lambda: scorer.rank([], []), "texts is empty"),
        (lambda: scorer.rank(["a dog", 3], []), r"texts\[1\] must be a string"),  # type: ignore[list-item]
        (lambda: scorer.rank(3, []), "text must be a string, got int 3"),  # type: ignore[call-overload]
        (lambda: scorer.rank(["a dog"], [], prune=True), "say how many with top_k"),
        (lambda: scorer.rank_texts([], ["a dog"], prune=True), "say how many with top_k"),
        (lambda: scorer.rank_texts([], "a dog"), "texts must be a list"),
        (lambda: scorer.rank_texts("a.png", ["a dog"]), "a.png is no index"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert scorer.rank(["a dog", "blue"], [], 3) == [[], []]
    assert scorer.rank(["a dog", "blue"], [], 3, prune=True) == [[], []]
    assert scorer.rank_texts([], ["a dog"]) == []
    empty = scorer.score([], ["a dog"])
    assert isinstance(empty, ScoreMatrix)
    assert (empty.top_images(3), empty.top_texts(3)) == ([[]], [])
