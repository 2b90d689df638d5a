"""Texts of requests to Triton: what is encoded or tokenised again, and what costs only itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle

from dsd_trt.bundle.method import TokenMask
from dsd_trt.engines.triton.scoring.texts import Texts
from dsd_trt.pipeline import EncodedTexts
from dsd_trt.text_cache import TextCache
from dsd_trt.tokenizer import Tokenizer, Tokens


class Parts:
    """A tokenizer and an encoder that note what they are given; states are the ids themselves."""

    def __init__(self, folder: Path, token_mask: TokenMask = "words") -> None:
        bundle = make_bundle(folder, token_mask=token_mask)
        spec = bundle.manifest.tokenizer
        self.tokenizer: Any = Tokenizer(bundle.path(spec.file), spec, token_mask)
        self.tokenised: list[str] = []
        self.batches: list[int] = []
        self.broken = False

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        self.tokenised += texts
        return self.tokenizer(texts)

    def encode(self, tokens: Tokens) -> EncodedTexts:
        self.batches.append(len(tokens.mask))
        states = tokens.input_ids[..., None].astype(np.float32)
        if self.broken:
            states[-1] = np.nan
        return EncodedTexts(states, tokens.mask)

    def texts(self, cache_mb: float = 1) -> Texts:
        tokenize: Any = self.tokenize
        return Texts(self.encode, tokenize, TextCache(cache_mb), 40)

    def expect(self, encoded: EncodedTexts | None, texts: Sequence[str]) -> None:
        assert encoded is not None
        tokens = self.tokenizer(texts)
        np.testing.assert_array_equal(encoded.states[..., 0], tokens.input_ids)
        np.testing.assert_array_equal(encoded.mask, tokens.mask)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_a_text_is_tokenised_and_encoded_once(parts: Parts) -> None:
    texts = parts.texts()
    encoded, errors = texts.encode([b"a dog", b"blue", b"a dog"])
    parts.expect(encoded, ["a dog", "blue", "a dog"])
    assert errors == ["", "", ""]
    encoded, _ = texts.encode([b"red", b"blue"])
    parts.expect(encoded, ["red", "blue"])
    encoded, _ = texts.encode([b"blue", b"red", b"a dog"])
    parts.expect(encoded, ["blue", "red", "a dog"])
    assert parts.tokenised == ["a dog", "blue", "red"]
    assert parts.batches == [2, 1]


def test_without_a_cache_all_are_encoded_again(parts: Parts) -> None:
    texts = parts.texts(cache_mb=0)
    for _ in range(2):
        parts.expect(texts.encode([b"blue", b"red"])[0], ["blue", "red"])
    assert parts.batches == [2, 2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\xff\xfe", "not UTF-8: "),
        (b"x" * 41, "more than 40 characters"),
        (b" \n", "a text has no words to score: ' \\n'"),
        (b"", "a text has no words to score: ''"),
    ],
)
def test_what_cannot_be_used_costs_only_itself(parts: Parts, bad: bytes, reason: str) -> None:
    texts = parts.texts()
    for _ in range(2):
        encoded, errors = texts.encode([b"red", bad, "größer".encode(), bad])
        parts.expect(encoded, ["red", "größer"])
        assert errors[::2] == ["", ""]
        assert errors[1] == errors[3]
        assert errors[1].startswith(reason)
    assert texts.encode([bad]) == (None, [errors[1]])


def test_a_text_whose_tokens_do_not_count_costs_only_itself(parts: Parts) -> None:
    """The tokenizer alone can tell, and refuses all it is given at once."""
    encoded, errors = parts.texts().encode([b"red", b"<eos>", b"blue"])
    parts.expect(encoded, ["red", "blue"])
    assert errors == ["", "a text has no words to score: '<eos>'", ""]


def test_states_that_are_not_finite_are_named_and_not_kept(parts: Parts) -> None:
    texts = parts.texts()
    parts.broken = True
    encoded, errors = texts.encode([b"red", b"blue"])
    parts.expect(encoded, ["red"])
    assert errors == ["", "dsd_text_encoder gave NaN or infinity"]
    assert texts.encode([b"blue"])[0] is None
    parts.broken = False
    parts.expect(texts.encode([b"red", b"blue"])[0], ["red", "blue"])
    assert parts.batches == [2, 1, 1]
