from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from bundles import BOS, EOS, LENGTH, PAD, make_bundle, token_ids
from transformers import CLIPTokenizer

from dsd_trt import BundleError, InputError
from dsd_trt.bundle.manifest import Manifest, TokenizerSpec
from dsd_trt.bundle.method import TokenMask
from dsd_trt.tokenizer import Tokenizer

SPEC = TokenizerSpec("tokenizer.json", LENGTH, BOS, EOS, PAD)

TEXTS = [
    "a red circle to the left of a blue square",
    "A RED  circle,\tin front of: it!",
    "café über naïve 東京 🙂",
    "it's 12345 l'été",
    "<|endoftext|> in the middle <|startoftext|>",
    "!",
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_bundle(path)
    return path / "tokenizer.json"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """A CLIP tokenizer of the real kind: byte-level BPE with end-of-word marks, few merges."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    letters = sorted(byte_level)
    merges = ["r e", "re d</w>", "t h", "th e</w>", "o f</w>", "l e", "c i", "s q"]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += [merge.replace(" ", "") for merge in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, pad_token="!")


def test_ids_equal_those_of_transformers(clip: CLIPTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    clip.backend_tokenizer.save(str(path))
    spec = TokenizerSpec(path.name, 77, clip.bos_token_id, clip.eos_token_id, clip.pad_token_id)
    texts = [*TEXTS, "red " * 200]
    expected = clip(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    tokens = Tokenizer(path, spec, "words_eos")(texts)
    assert tokens.input_ids.dtype == np.int32
    assert tokens.input_ids.tolist() == expected
    assert clip.pad_token_id != clip.eos_token_id


@pytest.mark.parametrize(
    ("token_mask", "counted"),
    [("words", range(1, 4)), ("words_eos", range(1, 5)), ("all", range(77))],
)
def test_the_mask_counts_what_its_mode_says(
    tokenizer_file: Path, token_mask: TokenMask, counted: range
) -> None:
    tokens = Tokenizer(tokenizer_file, SPEC, token_mask)(["a red circle"])
    assert tokens.mask.dtype == np.float32
    assert tokens.mask[0].tolist() == [float(j in counted) for j in range(LENGTH)]
    assert tokens.input_ids[0].tolist() == [BOS, *token_ids("a red circle"), EOS, *[PAD] * 72]


def test_a_text_too_long_keeps_eos_and_is_named(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fits, too_long = "red " * 75, "blue " * 76
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        tokens = Tokenizer(tokenizer_file, SPEC, "words_eos")([fits, too_long])
    assert tokens.input_ids[0].tolist() == [BOS, *token_ids(fits), EOS]
    assert tokens.input_ids[1].tolist() == [BOS, *token_ids(too_long)[:75], EOS]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "blue blue" in caplog.text
    assert "75 of 76" in caplog.text


def test_many_long_texts_are_named_once_in_all(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{'blue ' * 80}{number}" for number in range(50)]
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        Tokenizer(tokenizer_file, SPEC, "words_eos")([*texts, "a dog"])
    assert len(caplog.records) == 4
    assert "47 other texts are too long as well" in caplog.text


def test_the_files_own_padding_and_truncation_do_not_interfere(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    meddling = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    meddling.enable_truncation(3)
    meddling.enable_padding(length=10, pad_id=9)
    meddling.save(str(tmp_path / "meddling.json"))
    texts = ["a red circle", "a blue square dog dog"]
    np.testing.assert_array_equal(
        Tokenizer(tmp_path / "meddling.json", SPEC, "words")(texts).input_ids,
        Tokenizer(tokenizer_file, SPEC, "words")(texts).input_ids,
    )


def test_a_text_without_words_is_refused_where_only_words_count(tokenizer_file: Path) -> None:
    with pytest.raises(InputError, match="no words"):
        Tokenizer(tokenizer_file, SPEC, "words")(["a dog", "  "])
    assert Tokenizer(tokenizer_file, SPEC, "words_eos")([""]).mask.sum() == 1


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        Tokenizer(path, SPEC, "words")


def test_a_token_without_a_row_of_the_embedding_is_named(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    held = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    rows = held.get_vocab_size()
    spec = replace(SPEC, vocabulary=rows)
    Tokenizer(tokenizer_file, spec, "words_eos")(TEXTS)
    held.add_tokens(["<cat>"])
    held.save(str(tmp_path / "more.json"))
    with pytest.raises(BundleError, match=f"has {rows + 1} tokens, .* has {rows} rows"):
        Tokenizer(tmp_path / "more.json", spec, "words_eos")
    plain = json.loads(tokenizer_file.read_text("utf-8"))
    plain["model"]["vocab"]["dog"] = 99  # as many tokens, one of them far away
    (tmp_path / "gap.json").write_text(json.dumps(plain), "utf-8")
    tokenize = Tokenizer(tmp_path / "gap.json", spec, "words_eos")
    tokenize(["a red circle"])
    with pytest.raises(BundleError, match=f"the token 'dog' has the id 99, .* has {rows} rows"):
        tokenize(["a red circle", "a dog"])


@pytest.mark.parametrize("field", ["bos_id", "eos_id", "pad_id"])
def test_special_ids_have_rows(tmp_path: Path, field: str) -> None:
    manifest = make_bundle(tmp_path).manifest
    for value, rows in ((-1, None), (7, 7)):
        changes: dict[str, Any] = {"vocabulary": rows, field: value}
        spec = replace(manifest.tokenizer, **changes)
        text = replace(manifest, tokenizer=spec).to_json()
        assert ("vocabulary" in text) == (rows is not None)  # which older bundles do not have
        with pytest.raises(BundleError, match=f"tokenizer.{field}"):
            Manifest.from_json(text)


def test_an_id_beyond_32_bits_is_named(tokenizer_file: Path, tmp_path: Path) -> None:
    plain = json.loads(tokenizer_file.read_text("utf-8"))
    plain["model"]["vocab"]["dog"] = 2**31
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(plain), "utf-8")
    with pytest.raises(
        BundleError, match=r"tokenizer\.json: the token 'dog' has the id 2147483648"
    ):
        Tokenizer(path, SPEC, "words_eos")(["a dog"])
