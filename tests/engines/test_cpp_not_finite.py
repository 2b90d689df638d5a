"""C++: numbers that are not finite cost their image, text or pair alone, as in Python."""

from __future__ import annotations

import csv
import ctypes
import itertools
import subprocess
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from cpp import ROOT, CppError, CppScorer, clip_bundle
from fragile_bundles import BLACK, WHITE, make_fragile_bundle
from PIL import Image
from test_cpp_image import clip_tokenizer

from dsd_trt import Bundle, Scorer
from dsd_trt.errors import EngineError

pytest_plugins = ("cpp",)

NOISE = np.random.default_rng(6).integers(0, 256, (2, 8, 8, 3), np.uint8)
# The fragile bundle's "dog" is a star here, which is one token of the embedded tokenizer.
IMAGES = [NOISE[0], WHITE, BLACK, NOISE[1]]
TEXTS = ["a red circle", "a star", "a blue circle", "green star", "a star"]
LOST = [[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 0, 0]]


def fragile(folder: Path, **kind: Any) -> Bundle:
    tokenizer = clip_tokenizer()
    kind = {
        "blue": tokenizer.token_to_id("blue</w>"),
        "dog": tokenizer.token_to_id("star</w>"),
        **kind,
    }
    with pytest.MonkeyPatch.context() as patch:
        return clip_bundle(folder, tokenizer, patch, make=make_fragile_bundle, **kind)


@pytest.mark.parametrize(
    ("precision", "score", "mode"),
    [
        ("fp32", "attention", "pair"),
        ("fp16", "attention+denoising", "pair"),
        ("fp32", "attention", "matrix"),
    ],
)
def test_an_image_a_text_and_a_pair_cost_no_more_than_themselves(
    precision: str, score: str, mode: Any, cpp_build: Path, cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    kind = {"precision": precision, "score": score, "matrix": mode == "matrix"}
    bundle = fragile(tmp_path / "bundle", **kind)
    expected = Scorer.load(bundle.folder, "onnxruntime", mode=mode).score(IMAGES, TEXTS)
    assert np.isnan(expected.scores).tolist() == np.array(LOST, bool).tolist()
    half = precision == "fp16"
    advice = "dsd-trt export --precision fp32" if half else f"dsd-trt ranges {bundle.folder}"
    # One image and one triple at a time, and all of them at once.
    for budget in (1e-3, 0):
        scorer = CppScorer(cpp_library, bundle.folder, budget, mode=mode)
        scores, probabilities, errors = scorer.score([*IMAGES, b"none"], TEXTS)
        statuses = scorer.statuses
        scorer.close()
        np.testing.assert_allclose(scores[:-1], expected.scores, atol=1e-5)
        np.testing.assert_allclose(probabilities[:-1], expected.probabilities, atol=1e-5)
        assert np.isnan(scores[-1]).all()
        assert statuses == [4, 4, 4, 4, 3]
        blue = "'a blue circle': the text encoder gave states with"
        parts = (
            "the image encoder gave a latent with",
            f"'a star': the {mode} scorer gave a score",
        )
        for error, part in zip(errors, (blue, *parts, blue), strict=False):
            assert error.startswith(part)
            assert error.endswith(advice)
        assert "neither a JPEG nor a PNG" in errors[-1]

    for name, pixels in zip("abcd", IMAGES, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "c.jpg").write_bytes(b"none")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    command = [
        cpp_build / "dsd-score",
        "--mode",
        mode,
        bundle.folder,
        *sorted(tmp_path.glob("[a-d].*g")),
    ]
    done = subprocess.run(
        [*command, tmp_path / "texts.txt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    rows = [(Path(row[0]).stem, row[1]) for row in list(csv.reader(done.stdout.splitlines()))[1:]]
    pairs = zip(itertools.product("abcd", TEXTS), np.ravel(LOST), strict=True)
    assert rows == [pair for pair, lost in pairs if not lost]
    told = [line.removeprefix(f"{tmp_path}/").split(": ")[0] for line in done.stderr.splitlines()]
    assert told == [
        "'a blue circle'",
        "b.png",
        "c.jpg",
        "c.png and 'a star'",
        "c.png and 'green star'",
    ]


def test_all_of_a_damaged_part_is_named(cpp_build: Path, tmp_path: Path) -> None:
    """A text alone and an image alone are no special case, and are named as by Python."""
    bundle = fragile(tmp_path / "bundle")
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    for pixels, texts in (
        (WHITE, ["a star"]),
        (BLACK, ["a star"]),
        (BLACK, ["a star", "star"]),
        (BLACK, ["a star", "a star"]),
        (BLACK, ["a star", "blue"]),
        (NOISE[0], ["blue"]),
    ):
        Image.fromarray(pixels).save(tmp_path / "it.png")
        (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
        command = [cpp_build / "dsd-score", bundle.folder, tmp_path / "it.png"]
        done = subprocess.run(
            [*command, tmp_path / "texts.txt"], capture_output=True, text=True, check=False
        )
        expected = scorer.score([tmp_path / "it.png"], texts).errors
        assert (done.returncode, done.stdout.count("\n")) == (3, 1)
        # What computed it is in parentheses, which Python says at more length.
        assert [line.split(" (")[0] for line in done.stderr.splitlines()] == [
            str(failure).split(" (")[0] for failure in expected
        ]
    scorer.close()


def test_a_denoising_term_without_states_of_the_empty_text_is_refused(
    cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    """Padding is NaN here, so a text that fills all tokens is fine, and nothing can be scored."""
    bundle = fragile(tmp_path, blue=bundles.PAD, score="denoising")
    text = "red " * 90
    scorer = CppScorer(cpp_library, bundle.folder)
    with pytest.raises(
        CppError, match="text encoder gave states of the unconditional text"
    ) as caught:
        scorer.score(IMAGES[:1], [text])
    assert caught.value.status == 4
    scorer.close()
    with (
        Scorer.load(bundle.folder, "onnxruntime") as python,
        pytest.raises(EngineError, match="text encoder gave states of the unconditional text"),
    ):
        python.score(IMAGES[:1], [text])
