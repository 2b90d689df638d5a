"""The C++ library refuses what computes anything else than a bundle knows, as Python does."""

from __future__ import annotations

import ctypes
import json
import random
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp import CppError, CppScorer, clip_bundle
from mutations import mutate_bytes
from self_checked import add_self_check, change_weight, fit_hash, known_tensors, tensor_file
from test_cpp_image import CASES, clip_tokenizer

from dsd_trt import Bundle, BundleError, Scorer, read_bundle
from dsd_trt.engine.self_check import FILE_NAME, SelfCheck

pytest_plugins = ("cpp",)

FILE = re.escape(FILE_NAME)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    return add_self_check(clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch))


def refusal(library: ctypes.CDLL, bundle: Bundle, mode: str = "auto") -> tuple[int, str]:
    """Status and message of opening it; 0 where it opens."""
    try:
        CppScorer(library, bundle.folder, mode=mode).close()
    except CppError as error:
        return error.status, str(error)
    return 0, ""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["attention", "released"])
def test_what_computes_the_closed_form_opens(
    precision: Any,
    score: Any,
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = {"precision": precision, "score": score, "matrix": True}
    bundle = add_self_check(clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, **kind))
    for mode in ("pair", "matrix"):
        assert refusal(cpp_library, bundle, mode) == (0, "")


def test_another_matrix_scorer_is_refused_in_its_mode(
    cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, matrix=True)
    short = {"matrix_scorer.score": np.zeros((2, 1), np.float32)}
    status, said = refusal(cpp_library, add_self_check(made, short))
    assert status == 2
    assert "tensor 'matrix_scorer.text_states' is not text_states float32 [?, 77, 4]" in said
    bundle = add_self_check(made)
    change_weight(bundle.folder, "matrix_scorer", "projection")
    assert refusal(cpp_library, bundle, "pair") == (0, "")
    status, said = refusal(cpp_library, bundle, "matrix")
    assert status == 4
    assert re.search(r"self-check of the matrix scorer: score\[\d, \d\] is \S+ instead of", said)


@pytest.mark.parametrize(
    ("graph", "weight"),
    [("image_encoder", None), ("text_encoder", "table"), ("pair_scorer", "projection")],
)
def test_other_weights_whose_hashes_fit_are_refused_with_pythons_words(
    graph: str, weight: str | None, cpp_library: ctypes.CDLL, bundle: Bundle
) -> None:
    if weight == "table":  # a row that the check's texts have: padding
        bundle = add_self_check(bundle, {"text_encoder.input_ids": np.zeros((2, 77), np.int32)})
    change_weight(bundle.folder, graph, weight)
    with pytest.raises(Exception, match="self-check") as python:
        Scorer.load(bundle.folder, "onnxruntime")
    status, said = refusal(cpp_library, bundle)
    assert status == 4
    both = r"self-check of the \w+ \w+: \w+\[[\d, ]+\] is (\S+) instead of (\S+) \("
    mine, theirs = (re.search(both, text) for text in (said, str(python.value)))
    assert mine
    assert theirs
    assert mine[2] == theirs[2]  # expected, of the same place
    assert float(mine[1]) == pytest.approx(float(theirs[1]), rel=1e-4)
    assert mine[1] != mine[2]
    assert said.partition("(allowed")[2][:80] == str(python.value).partition("(allowed")[2][:80]
    CppScorer(cpp_library, bundle.folder, self_check=False).close()


def test_the_example_can_do_without(cpp_build: Path, bundle: Bundle, tmp_path: Path) -> None:
    change_weight(bundle.folder, "pair_scorer", "projection")
    (tmp_path / "image.png").write_bytes(CASES["png rgba"])
    (tmp_path / "texts.txt").write_text("a red circle\n")
    rest = [str(bundle.folder), str(tmp_path / "image.png"), str(tmp_path / "texts.txt")]
    refused, scored = (
        subprocess.run([cpp_build / "dsd-score", *options, *rest], capture_output=True, text=True)
        for options in ([], ["--no-self-check"])
    )
    assert refused.returncode == 4
    assert "dsd-score --no-self-check" in refused.stderr
    assert scored.returncode == 0
    assert len(scored.stdout.splitlines()) == 2


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A file with another header before the same numbers."""

    def changed(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return changed


def header_of(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: struct.pack("<Q", len(text)) + text


SCORE = "pair_scorer.score"

# What is done to the file, and what the message says then.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "header of 0 bytes is longer than the file's 0"),
    "cut in its length": (lambda content: content[:5], "is longer than the file's 5"),
    "cut in its header": (lambda content: content[:40], "is longer than the file's 40"),
    "an endless header": (lambda content: b"\xff" * 8 + content[8:], "is longer than the file's"),
    "cut": (lambda content: content[:-1], "data_offsets"),
    "longer": (lambda content: content + b"\0", "its tensors end at"),
    "no JSON": (header_of(b"{"), "not valid JSON"),
    "no UTF-8": (header_of(b'{"\xff": 1}'), "not valid JSON"),
    "no object": (header_of(b"[]"), "its header is no JSON object"),
    "deep": (header_of(b'{"a":' * 100_000), "nested deeper"),
    "twice": (header_of(b'{"a": 1, "a": 1}'), "'a' is there twice"),
    "metadata": (with_header(lambda h: h.update(__metadata__={"a": 1})), "__metadata__.a"),
    "no fields": (with_header(lambda h: h.update({SCORE: 1})), "must be an object"),
    "unknown": (with_header(lambda h: h[SCORE].update(new=1)), "'pair_scorer.score.new' is not"),
    "F64": (with_header(lambda h: h[SCORE].update(dtype="F64")), "unknown value, 'F64'"),
    "a negative size": (with_header(lambda h: h[SCORE].update(shape=[-3])), "must be of sizes"),
    "a broken size": (with_header(lambda h: h[SCORE].update(shape=[3.0])), "must be of sizes"),
    "a size that overflows": (
        with_header(lambda h: h[SCORE].update(shape=[2**32, 2**32, 3])),
        "data_offsets",
    ),
    "sizes whose product is back": (
        with_header(lambda h: h[SCORE].update(shape=[2**62, 4, 3])),
        "data_offsets",
    ),
    "offsets that overflow": (
        with_header(lambda h: h[SCORE].update(data_offsets=[2**64 - 4, 8])),
        "data_offsets",
    ),
    "one offset": (with_header(lambda h: h[SCORE].update(data_offsets=[0])), "must be two"),
    "shared bytes": (
        with_header(lambda h: h[SCORE].update(data_offsets=[0, 12])),
        "data_offsets",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_both_runtimes(
    damage: str, cpp_library: ctypes.CDLL, bundle: Bundle
) -> None:
    change, message = DAMAGES[damage]
    path = bundle.path(FILE_NAME)
    path.write_bytes(change(path.read_bytes()))
    fit_hash(bundle.folder, FILE_NAME)
    status, said = refusal(cpp_library, bundle)
    assert status == 2
    assert re.search(f"file '{FILE}': .*{message}", said)
    with pytest.raises(BundleError, match=FILE):
        SelfCheck.read(read_bundle(bundle.folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({SCORE: None}, "is missing"),
        ({SCORE: np.zeros(2, np.float32)}, "is not"),  # three pairs
        ({SCORE: np.zeros((3, 1), np.float32)}, "is not score float32"),
        ({SCORE: np.zeros(3, np.float16)}, "is not score float32"),
        ({SCORE: np.zeros((), np.float32)}, "is not"),
        ({SCORE: np.array([0, 1, np.nan], np.float32)}, "is not finite"),
        ({"pair_scorer.token_mask": np.full((3, 77), np.inf, np.float32)}, "is not finite"),
        ({"pair_scorer.level": np.array([0, 1, 3], np.int32)}, "is beyond its table"),
        ({"pair_scorer.level": np.array([0, 1, -1], np.int32)}, "is beyond its table"),
        ({"image_encoder.pixels": np.zeros((0, 8, 8, 3), np.uint8)}, "is not"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    changes: Any, message: str, cpp_library: ctypes.CDLL, bundle: Bundle
) -> None:
    add_self_check(bundle, changes)
    status, said = refusal(cpp_library, bundle)
    assert status == 2
    assert re.search(f"file '{FILE}': tensor '.*{message}", said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.safetensors"}, "'self_check.file' names 'none.safetensors', which is not"),
        ({"tolerance": 0}, "'self_check.tolerance' must lie between 0 and 1"),
        ({"tolerance": "1e-3"}, "'self_check.tolerance' must be a finite number"),
        ({"new": 1}, "'self_check.new' is not known"),
    ],
)
def test_what_a_bundle_says_of_it_is_read_strictly(
    change: dict[str, Any], message: str, cpp_library: ctypes.CDLL, bundle: Bundle
) -> None:
    path = bundle.path("bundle.json")
    plain = json.loads(path.read_text())
    plain["self_check"].update(change)
    path.write_text(json.dumps(plain))
    status, said = refusal(cpp_library, bundle)
    assert status == 2
    assert message in said


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=pytest.mark.torture)])
def test_a_mutated_file_is_read_as_in_python(
    count: int, cpp_library: ctypes.CDLL, bundle: Bundle
) -> None:
    content = tensor_file(known_tensors(bundle))
    refused = 0
    for seed in range(count):
        bundle.path(FILE_NAME).write_bytes(mutate_bytes(content, random.Random(seed)))
        fit_hash(bundle.folder, FILE_NAME)
        status, said = refusal(cpp_library, bundle)
        wanted: tuple[int, ...] = (0, 4)
        try:
            SelfCheck.read(read_bundle(bundle.folder))
        except BundleError:
            wanted = (2,)
            refused += 1
        assert status in wanted or "beyond its table" in said, (seed, said)
    assert count / 8 < refused < count
