"""What results show of themselves: repr, a table of pandas, a picture in a notebook."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import Bundle, Failure, Index, PairScores, ScoreMatrix, Scorer, update_index
from dsd_trt.errors import MissingExtraError
from dsd_trt.results import ScoredImage


def matrix(
    images: list[str], texts: list[str], scores: Any, probabilities: Any, *errors: Failure
) -> ScoreMatrix:
    f, p = (
        np.array(it, np.float32).reshape(len(images), len(texts)) for it in (scores, probabilities)
    )
    return ScoreMatrix(tuple(images), tuple(texts), f, p, errors, 0)


NAN = float("nan")
PAIRED = matrix(
    ["a.png", "b.png", "c.png"],
    ["a dog", "a <b>cat</b>"],
    [[0.25, 0.5], [NAN, NAN], [0.125, NAN]],
    [[0.5, 0.75], [NAN, NAN], [0.25, NAN]],
    Failure("b.png", "no image"),
    Failure("c.png", "not finite", "a <b>cat</b>"),
)
NO_PROBABILITY = matrix(["a.png"], ["a dog"], [[0.25]], [[NAN]])


def test_reprs_say_what_is_there() -> None:
    assert repr(PAIRED) == (
        "ScoreMatrix(3 images x 2 texts, scores 0.1250 to 0.5000, probabilities 0.250 to 0.750, "
        "3 without a score, 2 errors)"
    )
    assert repr(NO_PROBABILITY) == (
        "ScoreMatrix(1 image x 1 text, scores 0.2500 to 0.2500, no probabilities)"
    )
    assert repr(matrix([], ["a dog"], [], [])) == (
        "ScoreMatrix(0 images x 1 text, scores none, probabilities none)"
    )
    row = NO_PROBABILITY.scores[0]
    assert repr(PairScores(("a.png",), ("a dog",), row, row, ())) == (
        "PairScores(1 pair, scores 0.2500 to 0.2500, probabilities 0.250 to 0.250)"
    )
    assert repr(ScoredImage("a.png", row, (), 4)) == (
        "ScoredImage('a.png', 1 text, scores 0.2500 to 0.2500)"
    )


def test_opened_things_say_what_they_are(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    update_index(tmp_path / "index", [tmp_path / "a.png"], bundle.folder, "onnxruntime")
    index = Index.open(tmp_path / "index")
    latents = "1 image, latents float32 3 x 2 x 2"
    assert repr(index) == f"Index({str(tmp_path / 'index')!r}: {latents})"
    assert repr(index[0]) == f"IndexedImage({index[0].name!r} of {str(tmp_path / 'index')!r})"
    assert repr(bundle) == f"Bundle({str(bundle.folder)!r}: fp32, attention score, pair mode)"
    with Scorer.load(bundle.folder, "onnxruntime") as scorer:
        assert re.fullmatch(r"Scorer\('.*': onnxruntime .* on CPU, fp32, pair mode\)", repr(scorer))


# pandas


def test_a_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"needs pandas.*pip install .dsd-trt.pandas"):
        PAIRED.to_pandas()


def test_a_table_has_a_row_per_pair() -> None:
    pd = pytest.importorskip("pandas")
    table = PAIRED.to_pandas()
    assert list(table.columns) == ["image", "text", "score", "probability", "error"]
    assert list(table.image) == ["a.png", "a.png", "b.png", "b.png", "c.png", "c.png"]
    assert list(table.text) == ["a dog", "a <b>cat</b>"] * 3
    assert np.array_equal(table.score, PAIRED.scores.ravel(), equal_nan=True)
    assert (table.score.dtype, table.probability.dtype) == (np.float32, np.float32)
    assert [None if pd.isna(it) else it for it in table.error] == [
        *(None, None, "no image", "no image", None, "not finite")
    ]
    wide = table.pivot(index="image", columns="text", values="score")
    assert wide.loc["a.png", "a dog"] == 0.25
    scores, probabilities = PAIRED.scores.T[:, :2]
    pairs = PairScores(("a.png", "b.png"), ("x", "y"), scores, probabilities, PAIRED.errors)
    assert list(pairs.to_pandas().error.isna()) == [True, False]
    assert len(matrix([], ["a dog"], [], []).to_pandas()) == 0


# In a notebook


class Cells(HTMLParser):
    """Text of every cell of a table, and the sources of its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "b", "img"}
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "img":
            self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def cells(shown: ScoreMatrix) -> list[list[str]]:
    return Cells(shown._repr_html_()).rows


def test_the_picture_has_scores_and_escaped_names() -> None:
    assert cells(PAIRED) == [
        ["", "a dog", "a <b>cat</b>"],
        ["a.png", "0.2500", "0.5000"],
        ["b.png", "-", "-"],
        ["c.png", "0.1250", "-"],
    ]
    page = PAIRED._repr_html_()
    assert "<b>0.5000</b>" in page
    assert 'title="probability 0.750"' in page
    assert 'title="no probability"' in NO_PROBABILITY._repr_html_()
    broken = matrix(["\udcff<i>"], ["\"'&"], [[0.5]], [[0.5]])._repr_html_()
    assert "<i>" not in broken
    broken.encode("utf-8")


@pytest.fixture
def wide() -> ScoreMatrix:
    scores = np.random.default_rng(0).random((300, 200))
    return matrix(["x" * 5000] * 300, ["<" * 5000] * 200, scores, scores)


def test_a_large_matrix_is_a_small_picture(wide: ScoreMatrix) -> None:
    page = wide._repr_html_()
    assert len(page) < 100_000
    assert "280 more images and 188 more texts" in page
    assert len(Cells(page).rows) == 21


def test_small_files_have_thumbnails_and_others_none(tmp_path: Path) -> None:
    red = tmp_path / "red.png"
    Image.new("RGB", (640, 320), "red").save(red)
    (tmp_path / "broken.png").write_bytes(b"no image")
    noise: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")  # 2.4 MB
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # small, but of many pixels
    names = [str(tmp_path / name) for name in ("broken.png", "large.png", "bomb.png", "no.png")]
    names += ["image 3", "\0", str(tmp_path)]
    shown = matrix([str(red), *names], ["a dog"], [[0.5]] * 8, [[0.5]] * 8)
    (source,) = Cells(shown._repr_html_()).sources
    kind, _, data = source.partition(";base64,")
    assert kind == "data:image/jpeg"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (48, 24)
    assert picture.getpixel((20, 10))[0] > 200  # type: ignore[index]
