"""The cache of text states: what is encoded again and what is not, and how much it holds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import closed_form, make_bundle
from numpy.typing import NDArray

from dsd_trt import Bundle, Scorer
from dsd_trt.errors import EngineError, InputError
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.text_cache import TextCache

PICTURES = list(np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts that the text encoder was given, call by call."""
    calls: list[list[str]] = []
    encode = Pipeline.encode_texts

    def note(self: Pipeline, texts: Sequence[str]) -> EncodedTexts:
        calls.append(list(texts))
        return encode(self, texts)

    monkeypatch.setattr(Pipeline, "encode_texts", note)
    return calls


@pytest.fixture
def scorer(bundle: Bundle) -> Iterator[Scorer]:
    with Scorer.load(bundle.folder, "onnxruntime") as scorer:
        yield scorer


def expected(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[closed_form(picture, text) for text in texts] for picture in PICTURES])


def test_a_text_that_comes_again_is_not_encoded_again(
    scorer: Scorer, encoded: list[list[str]]
) -> None:
    for texts, new in (
        (["a dog", "blue"], [["a dog", "blue"]]),
        (["blue", "a dog", "blue"], []),
        (["red", "blue", "a circle"], [["red", "a circle"]]),
    ):
        encoded.clear()
        np.testing.assert_allclose(scorer.score(PICTURES, texts).scores, expected(texts), atol=1e-6)
        assert encoded == new
    encoded.clear()
    scorer.score_pairs([(PICTURES[0], "a circle"), (PICTURES[1], "red")])
    scorer.rank("a dog", PICTURES, 1, prune=True)
    scorer.rank(["red", "blue"], PICTURES)
    scorer.rank_texts(PICTURES, ["blue", "a circle"], 1, prune=True)
    assert encoded == []
    assert (scorer.text_cache.hits, scorer.text_cache.misses) == (2 + 1 + 2 + 1 + 2 + 2, 4)
    assert repr(scorer.text_cache) == "TextCache(4 texts, 0.0 of 128.0 MiB, 10 hits, 4 misses)"


@pytest.mark.parametrize("mode", ["pair", "matrix"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_are_those_of_an_empty_cache(
    mode: Any, precision: Any, tmp_path: Path, encoded: list[list[str]]
) -> None:
    bundle = make_bundle(tmp_path, precision=precision, matrix=True, score="attention")
    texts = ["a dog", "blue circle", "red"]
    with (
        Scorer.load(bundle.folder, "onnxruntime", mode=mode) as kept,
        Scorer.load(bundle.folder, "onnxruntime", mode=mode, text_cache_mb=0) as plain,
    ):
        for some in (texts[:2], texts, texts[::-1], texts[1:]):
            ours, theirs = (it.score(PICTURES, some).scores for it in (kept, plain))
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert sum(map(len, encoded)) == 3 + 2 + 3 + 3 + 2
    assert len(plain.text_cache) == 0


def test_another_bundle_has_another_cache(bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path, token_mask="all")
    with Scorer.load(bundle.folder, "onnxruntime") as one, Scorer(other, "onnxruntime") as two:
        one.score(PICTURES, ["a dog"])
        scores = two.score(PICTURES, ["a dog"]).scores[:, 0]
    wanted = [closed_form(picture, "a dog", token_mask="all") for picture in PICTURES]
    np.testing.assert_allclose(scores, wanted, atol=1e-6)


def test_a_closed_scorer_keeps_nothing_and_scores_nothing(scorer: Scorer) -> None:
    scorer.score(PICTURES, ["a dog"])
    scorer.close()
    assert len(scorer.text_cache) == 0
    with pytest.raises(EngineError, match="closed"):
        scorer.score(PICTURES, ["a dog"])


def test_a_text_that_cannot_be_scored_is_refused_every_time(
    tmp_path: Path, encoded: list[list[str]]
) -> None:
    bundle = make_bundle(tmp_path, token_mask="words")
    with Scorer.load(bundle.folder, "onnxruntime") as scorer:
        for _ in range(2):
            with pytest.raises(InputError, match="is empty"):
                scorer.score(PICTURES, ["dog", " "])
        assert scorer.score(PICTURES, ["dog"]).errors == ()


# The cache alone, of rows of 1 KiB and their texts


def row(text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    value = float(int(text)) if text.isdigit() else np.nan
    return np.full((1, 128), value, np.float32), np.full(128, 1, np.float32)


class Encoder:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        self.calls.append(list(texts))
        states, mask = zip(*map(row, texts), strict=True)
        return EncodedTexts(np.stack(states), np.stack(mask))


def values(encoded: EncodedTexts) -> list[float]:
    return [float(it) for it in encoded.states[:, 0, 0]]


def test_it_holds_the_texts_used_last() -> None:
    cache, encoder = TextCache(4.5 / 1024), Encoder()
    for text in "0123":
        cache.encode([text], encoder)
    assert len(cache) == 4
    cache.encode(["0"], encoder)  # used again: 1 is the oldest
    cache.encode(["4"], encoder)
    assert values(cache.encode(["4", "0", "3", "2"], encoder)) == [4, 0, 3, 2]
    assert encoder.calls == [["0"], ["1"], ["2"], ["3"], ["4"]]
    cache.encode(["1"], encoder)
    assert encoder.calls[-1] == ["1"]
    assert len(cache) == 4


def test_a_call_of_more_texts_than_fit_drops_none_of_those_it_holds() -> None:
    cache, encoder = TextCache(4.5 / 1024), Encoder()
    cache.encode(["0", "1"], encoder)
    many = [str(i) for i in range(50)]
    assert values(cache.encode(many, encoder)) == list(range(50))
    assert encoder.calls[-1] == many[2:]
    cache.encode(["0", "1"], encoder)
    assert len(encoder.calls) == 2


def test_long_texts_count_beside_their_states() -> None:
    cache, encoder = TextCache(4.5 / 1024), Encoder()
    for digit in "123456":
        cache.encode([digit.zfill(1000)], encoder)
    assert len(cache) == 2
    assert [digit for digit in "123456" if digit.zfill(1000) in cache] == ["5", "6"]
    cache.encode(["x" * 5000], encoder)  # larger than all of it
    assert len(cache) == 2


def test_states_that_are_not_finite_are_computed_again() -> None:
    cache, encoder = TextCache(1), Encoder()
    for _ in range(2):
        assert not cache.encode(["1", "broken"], encoder).finite.all()
    assert encoder.calls == [["1", "broken"], ["broken"]]


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "64", None, True])
def test_a_size_that_is_none_is_refused(wrong: Any, bundle: Bundle) -> None:
    with pytest.raises(InputError, match="text_cache_mb must be a number of MiB"):
        Scorer.load(bundle.folder, "onnxruntime", text_cache_mb=wrong)


def test_threads_share_it() -> None:
    cache, encoder = TextCache(17 / 1024), Encoder()
    barrier = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(300):
            texts = [str(it) for it in rng.choice(40, rng.integers(1, 6), replace=False)]
            assert values(cache.encode(texts, encoder)) == list(map(float, texts))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(cache) == 16
    assert cache._bytes == 16 * 1024 + sum(map(sys.getsizeof, cache._rows))
    assert cache.misses == sum(map(len, encoder.calls))
