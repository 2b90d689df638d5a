"""The C++ tokenizer against `tokenizers`: the same ids, on every code point and on nasty texts."""

# ruff: noqa: RUF001 (letters that look like others are the point)

from __future__ import annotations

import ctypes
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from cpp import CppError, CppScorer, clip_bundle
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

pytest_plugins = ("cpp",)

LENGTH = 3000  # of the longest text that is compared whole
FEW, MANY = 10_000, 100_000  # texts
CODE_POINTS = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")

MARKS = [chr(c) for c in CODE_POINTS if unicodedata.combining(chr(c))]
POOLS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789٠١٢３４½²Ⅷ",
    " \t\n\r\v\f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000",
    "'’!\"#$%&()*+,-./:;<=>?@[]^_`{|}~|>",
    "".join(map(chr, range(1, 32))) + "\x7f\u200b\u200d\u2060\ufeff\u202e\u2066\ufffd\ufffe",
    "".join(map(chr, range(0xC0, 0x250))),
    "ΑΒΣΩαβςσωИйЁёЇїǅǆẞßſKÅﬁŉİıΐ",
    "אבגדהוזחשלום" + "العربيةمرحبا",
    "हिन्दीকাজதமிழ்ไทยກ",
    "가각힣각각한국어",
    "漢字東京日本語かなカナガ゙",
    "🙂👨‍👩‍👧👍🏽🇩🇪🏴❤️",
    "".join(MARKS),
    "\U0001d400\U0001d7d8\U00010400\U0001e900\U000e0041\U000f0000\U0010ffff",
]
PIECES = [
    *("it's", "I'm", "they'll", "DON'T", "'S", "''re", "'ll've", "l'été", "red", "square"),
    *SPECIALS,
    *("<|ENDOFTEXT|>", "<|startoftext", "|>", "<|<|endoftext|>", "<|StartOfText|>'s", "<pad>"),
    *("a" * 300, "!" * 200, "e\u0301\u0323" * 40, "\u0301" * 60, "  \t " * 30),
]


def nasty_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Runs of characters of one kind, and pieces that tokenizers trip over, in any order."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.choice((1, 2, 3, 5, 8, 20))):
            kind = draw.random()
            if kind < 0.25:
                parts.append(draw.choice(PIECES))
            elif kind < 0.35:
                parts.append(chr(draw.choice(CODE_POINTS)))
            else:
                parts.append("".join(draw.choices(draw.choice(POOLS), k=draw.randint(1, 7))))
            parts.append(draw.choice(("", "", " ")))
        yield "".join(parts)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    """A CLIP tokenizer with merges in every script, trained on the nasty texts themselves."""
    tokenizer = Tokenizer(
        models.BPE(unk_token=SPECIALS[1], end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIALS),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(nasty_texts(5000, seed=1), trainer)
    assert tokenizer.get_vocab_size() > 4000
    # Found before normalizing, and after it.
    tokenizer.add_tokens([tokenizers.AddedToken("<pad>", special=False, normalized=True)])
    return tokenizer


@pytest.fixture(scope="module")
def cpp(
    clip: Tokenizer, cpp_library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CppScorer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    with pytest.MonkeyPatch.context() as monkeypatch:
        clip_bundle(folder, clip, monkeypatch, LENGTH)
    scorer = CppScorer(cpp_library, folder)
    yield scorer
    scorer.close()


def differences(cpp: CppScorer, clip: Tokenizer, texts: list[str]) -> list[str]:
    """Texts whose ids are not those of `tokenizers`."""
    encodings = clip.encode_batch_fast(texts, add_special_tokens=False)
    return [
        text
        for text, encoding in zip(texts, encodings, strict=True)
        if cpp.word_ids(text) != encoding.ids
    ]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_ids_are_those_of_tokenizers_on_nasty_texts(
    cpp: CppScorer, clip: Tokenizer, count: int
) -> None:
    texts = list(nasty_texts(count))
    assert max(map(len, texts)) > 1000
    total = 0
    for start in range(0, count, 5000):
        chunk = texts[start : start + 5000]
        wrong = differences(cpp, clip, chunk)
        assert not wrong, f"{len(wrong)} differ, such as {wrong[0]!r}"
        total += len(chunk)
    assert total == count


@pytest.mark.slow
def test_every_code_point_is_what_it_is_to_tokenizers(cpp: CppScorer, clip: Tokenizer) -> None:
    """Between letters: a letter joins them, a mark composes, a space parts them."""
    texts = [
        "".join(f" e{chr(c)}e{chr(c)}1" for c in CODE_POINTS[start : start + 100])
        for start in range(0, len(CODE_POINTS), 100)
    ]
    for start in range(0, len(texts), 1000):
        assert not differences(cpp, clip, texts[start : start + 1000])


def test_marks_are_ordered_as_by_tokenizers(cpp: CppScorer, clip: Tokenizer) -> None:
    """Every mark before and after one of every class, so that each order is seen both ways."""
    one_of_each = list({unicodedata.combining(mark): mark for mark in MARKS}.values())
    assert len(one_of_each) > 50
    for mark in MARKS:
        text = " ".join(f"a{mark}{other} a{other}{mark}" for other in one_of_each)
        assert not differences(cpp, clip, [text]), hex(ord(mark))


def test_a_text_that_is_not_utf_8_is_refused(cpp: CppScorer) -> None:
    for text in (
        b"red \xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\x80",
    ):
        with pytest.raises(CppError, match="not UTF-8") as caught:
            cpp.tokenize(text)
        assert caught.value.status == 1


def test_a_very_long_text_is_cut_and_quickly(cpp: CppScorer, clip: Tokenizer) -> None:
    """One word of half a million letters: merging must not take the square of that."""
    text = "ab" * 250_000
    ids, mask = cpp.tokenize(text)
    expected = clip.encode(text, add_special_tokens=False).ids
    assert cpp.count_words(text) == len(expected) > LENGTH
    assert ids[1:-1] == expected[: LENGTH - 2]
    assert ids[-1] == clip.token_to_id(SPECIALS[1])
    assert mask == [0.0] + [1.0] * (LENGTH - 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", normalizers.NFD()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda t: t.add_tokens([tokenizers.AddedToken("<x>", lstrip=True)]),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    change: object,
    clip: Tokenizer,
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Tokenizer.from_str(clip.to_str())
    change(other)  # type: ignore[operator]
    clip_bundle(tmp_path, other, monkeypatch)
    with pytest.raises(CppError, match="not a") as caught:
        CppScorer(cpp_library, tmp_path)
    assert caught.value.status == 2
