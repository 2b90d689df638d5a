"""Scores of tokens: words joined again, and in every output format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import EOS, LEVEL_BIAS, PROJECTION, RESOLUTION, TABLE, make_bundle, token_ids
from in_process import Run
from PIL import Image

from dsd_trt import Bundle, InputError, Scorer
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.journal import open_journal
from dsd_trt.tokenizer import Tokenizer
from dsd_trt.words import END, PADDING, START

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "a blue square"]


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray[Any, Any]:
    """An image on disk, a.png, and texts.txt beside it."""
    random = np.random.default_rng(3)
    drawn: np.ndarray[Any, Any] = random.integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    Image.fromarray(drawn).save(tmp_path / "a.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "pairs.csv").write_text(
        "image,text,words\n" + "".join(f"a.png,{text},mine\n" for text in TEXTS)
    )
    return drawn


def closed_tokens(pixels: np.ndarray[Any, Any], text: str) -> list[float]:
    """Scores of the words of a text and of EOS, as `bundles` defines the stand-in model."""
    direction = pixels.astype(np.float64).mean(axis=(0, 1)) / 255 @ PROJECTION
    logits = TABLE[[*token_ids(text), EOS]] @ direction
    return [float(np.mean(1 / (1 + np.exp(-(logit + LEVEL_BIAS))))) for logit in logits]


def checked(rows: list[dict[str, Any]], pixels: np.ndarray[Any, Any]) -> list[list[Any]]:
    """The words of each row, whose scores are those of the closed form."""
    for row in rows:
        expected = closed_tokens(pixels, row["text"])
        assert [it["word"] for it in row["words"]] == [*row["text"].split(), END]
        assert [it["score"] for it in row["words"]] == pytest.approx(expected, abs=1e-6)
        assert float(row["score"]) == pytest.approx(np.mean(expected), abs=1e-6)
        for it in row["words"]:
            assert [token["score"] for token in it["tokens"]] == [it["score"]]
    return [row["words"] for row in rows]


def test_every_format_has_the_same_words(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: np.ndarray[Any, Any]
) -> None:
    import pyarrow.parquet

    def run(form: str, *more: str) -> str:
        ended = dsd_trt("score", "a.png", "texts.txt", "--tokens", "-f", form, *more)
        assert ended.code == 0, ended.err
        return ended.out

    whole = checked(json.loads(run("json")), pixels)
    assert checked([json.loads(it) for it in run("jsonl").splitlines()], pixels) == whole
    rows = list(csv.DictReader(io.StringIO(run("csv"))))
    assert checked([{**it, "words": json.loads(it["words"])} for it in rows], pixels) == whole
    run("parquet", "-o", "out.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    in_parquet = checked(rows, pixels)
    assert [[it["word"] for it in words] for words in in_parquet] == [
        [it["word"] for it in words] for words in whole
    ]
    shown = " ".join(run("table").split())
    for text in TEXTS:
        for word, score in zip([*text.split(), END], closed_tokens(pixels, text), strict=True):
            assert f"{word} {score:.3f}" in shown


@pytest.mark.usefixtures("pixels")
def test_without_the_option_there_is_no_column(dsd_trt: Callable[..., Run]) -> None:
    rows = json.loads(dsd_trt("score", "a.png", "texts.txt", "-f", "json").out)
    assert all("words" not in row for row in rows)


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize("best", [(), ("--top-k", "1"), ("--top-k", "1", "--by", "text")])
def test_a_table_of_pairs_has_words_beside_its_own(
    dsd_trt: Callable[..., Run], best: tuple[str, ...], pixels: np.ndarray[Any, Any]
) -> None:
    ended = dsd_trt("score", "--pairs", "pairs.csv", "--tokens", "-f", "json", *best)
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert {row["input_words"] for row in rows} == {"mine"}
    checked(rows, pixels)
    assert len(rows) == (1 if best == ("--top-k", "1") else 2)


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prune", "--top-k", "1"), "--prune scores most texts at some levels only"),
        (("--by", "text", "--top-k", "1"), "leave out --by text"),
        (("-o", "page.html"), "a page of scores has no words: leave out --tokens"),
    ],
)
def test_options_that_score_no_tokens(
    dsd_trt: Callable[..., Run], options: tuple[str, ...], message: str
) -> None:
    ended = dsd_trt("score", "a.png", "texts.txt", "--tokens", *options)
    assert ended.code == 2
    assert message in ended.err


def test_matrix_mode_has_none(dsd_trt: Callable[..., Run], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "both", matrix=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "texts.txt").write_text("dog\n")
    arguments = ("a.png", "texts.txt", "--tokens", "--mode", "matrix")
    ended = dsd_trt("score", *arguments, "--bundle", str(bundle.folder))
    assert (ended.code, "--mode pair" in ended.err) == (2, True)
    with Scorer(bundle, "onnxruntime", mode="matrix") as scorer:
        with pytest.raises(InputError, match="mode 'pair'"):
            scorer.stream(["a.png"], ["dog"], tokens=True)
        with pytest.raises(InputError, match="mode 'pair'"):
            scorer.stream_pairs([("a.png", "dog")], tokens=True)
    with (
        Scorer(bundle, "onnxruntime", mode="pair") as scorer,
        pytest.raises(InputError, match="leave out top_k"),
    ):
        scorer.stream(["a.png"], ["dog"], top_k=1, tokens=True)


def test_a_resumed_run_reads_them_from_its_journal(
    bundle: Bundle, tmp_path: Path, pixels: np.ndarray[Any, Any]
) -> None:
    """And computes nothing again: the image is gone."""
    path, image = tmp_path / "journal", str(tmp_path / "a.png")
    with Scorer(bundle, "onnxruntime") as scorer:
        found = []
        for resume in (False, True):
            journal = open_journal(path, {}, resume=resume)
            (row,) = scorer.stream([image], TEXTS, journal=journal, tokens=True).images
            assert row.tokens is not None
            found.append(row.tokens)
            journal.close()
            Path(image).unlink(missing_ok=True)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[1][0, 1:5], closed_tokens(pixels, TEXTS[0]), atol=1e-6)


def tokenizer_of(bundle: Bundle, mask: Any = "words_eos") -> Tokenizer:
    manifest = bundle.manifest
    return Tokenizer(bundle.path(manifest.tokenizer.file), manifest.tokenizer, mask)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    """CLIP's tokenizer with the vocabulary of the demonstration, which spells most words out."""
    from dsd_trt import read_bundle

    return tokenizer_of(read_bundle(EMBEDDED))


@pytest.mark.parametrize(
    "text",
    [
        "a large yellow star",
        "A Glimmering   starfish",
        "\u00fcbergro\u00df \U0001f642",
        "star " * 9,
    ],
)
def test_words_are_joined_as_they_were_written(clip: Tokenizer, text: str) -> None:
    words = clip.words(text)
    assert [it.text for it in words] == [*text.split(), END]
    assert [it.special for it in words] == [False] * (len(words) - 1) + [True]
    places = [place for it in words for place in it.places]
    mask = clip([text]).mask[0]
    assert places == np.flatnonzero(mask).tolist()  # every token that counts, once
    ids = clip([text]).input_ids[0]
    split = any(len(it.tokens) > 1 for it in words)
    assert split == (np.count_nonzero(mask) > len(words))
    assert ids[places[-1]] == 686  # EOS


def test_marks_are_words_of_their_own(clip: Tokenizer) -> None:
    words = [it.text for it in clip.words("a star, (blue)")]
    assert words == ["a", "star", ",", "(", "blue", ")", END]


def test_a_long_text_has_the_words_that_count(clip: Tokenizer) -> None:
    words = clip.words("star " * 100)
    assert [it.text for it in words] == ["star"] * 75 + [END]


def test_what_counts_besides_words(bundle: Bundle) -> None:
    names = [it.text for it in tokenizer_of(bundle, "all").words("red dog")]
    assert names == [START, "red", "dog", END, PADDING]
    padding = tokenizer_of(bundle, "all").words("red dog")[-1]
    assert padding.places == list(range(4, 77))
    assert [it.text for it in tokenizer_of(bundle, "words").words("red dog")] == ["red", "dog"]


def test_a_text_that_spells_its_end_ends_there(bundle: Bundle) -> None:
    words = tokenizer_of(bundle).words("red <eos> dog")
    assert [it.text for it in words] == ["red", "<eos>"]
