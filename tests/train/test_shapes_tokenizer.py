"""The embedded model's tokenizer: whole words for captions, bytes for anything else."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from dsd_trt.bundle.manifest import TokenizerSpec
from dsd_trt.tokenizer import Tokenizer
from dsd_trt.train.diffusion.checkpoint import token_mask
from dsd_trt.train.shapes.caption import caption, words
from dsd_trt.train.shapes.scene import sample_scene
from dsd_trt.train.shapes.tokenizer import build_tokenizer, learn_merges

# Characters this Python knows: of newer ones the tokenizer may know a lower case that it does not.
any_text = st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=60)
properties = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> CLIPTokenizer:
    """Read anew, as a user of the model does."""
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def runtime(clip: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same through a tokenizer.json and the runtime's own code."""
    path = tmp_path_factory.mktemp("runtime") / "tokenizer.json"
    clip.backend_tokenizer.save(str(path))
    spec = TokenizerSpec(path.name, 77, clip.bos_token_id, clip.eos_token_id, clip.pad_token_id)
    return Tokenizer(path, spec, "words_eos")


def test_every_caption_word_is_one_token(clip: CLIPTokenizer) -> None:
    spoken = set()
    rng = np.random.default_rng(31)
    for _ in range(2000):
        spoken.update(caption(sample_scene(rng), rng).replace(",", " ,").removesuffix(".").split())
    assert len(spoken) > 60
    for word in (*words(), *spoken):
        assert clip.tokenize(word) == [f"{word.lower()}</w>"], word


def test_merges_follow_from_the_words_alone() -> None:
    in_order = learn_merges(words())
    assert learn_merges(reversed(words())) == in_order
    # By hand: "lo" thrice, then "w</w>" behind it twice, then what is left of each word.
    assert learn_merges(["low", "low", "lots"]) == [
        ("l", "o"), ("lo", "w</w>"), ("t", "s</w>"), ("lo", "ts</w>"),
    ]  # fmt: skip


def test_every_token_has_an_id_of_its_own(clip: CLIPTokenizer, folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(len(clip)))
    assert clip.bos_token == "<|startoftext|>"
    assert clip.eos_token == clip.pad_token == "<|endoftext|>"
    assert clip.model_max_length == 77


def byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, from their definition."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


@properties
@given(text=any_text)
def test_any_text_can_be_spelt_back(clip: CLIPTokenizer, text: str) -> None:
    tokens = clip.tokenize(text)
    assert clip.unk_token_id not in clip.convert_tokens_to_ids(tokens)
    letters = "".join(tokens).replace("</w>", "")
    spelt = bytes(byte_of()[letter] for letter in letters)
    # CLIP composes, lowers, and forgets white space.
    expected = "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))
    assert without_space(spelt.decode("utf-8")) == without_space(expected)


def without_space(text: str) -> str:
    return "".join(text.split())


@properties
@given(text=any_text)
def test_the_runtime_reads_what_training_reads(
    clip: CLIPTokenizer, runtime: Tokenizer, text: str
) -> None:
    expected = clip([text], padding="max_length", truncation=True, max_length=77).input_ids
    tokens = runtime([text])
    assert tokens.input_ids.tolist() == expected
    ids = clip([text], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    counted = token_mask(ids.input_ids, clip.eos_token_id)
    assert tokens.mask.tolist() == counted.tolist()


@pytest.mark.parametrize(
    ("counted", "places"),
    [("words", range(1, 4)), ("words_eos", range(1, 5)), ("all", range(77))],
)
def test_tokens_are_counted_as_selected(clip: CLIPTokenizer, counted: str, places: range) -> None:
    texts = ["a red circle", "", "red " * 100]
    ids = clip(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    mask = token_mask(ids.input_ids, clip.eos_token_id, counted)  # type: ignore[arg-type]
    assert mask[0].tolist() == [float(j in places) for j in range(77)]
    assert mask[1].sum() == {"words": 0, "words_eos": 1, "all": 77}[counted]
    assert mask[2].sum() == {"words": 75, "words_eos": 76, "all": 77}[counted]
