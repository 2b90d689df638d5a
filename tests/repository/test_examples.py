"""The examples are what their script draws, fit together, and are matched by the embedded model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_trt import Scorer
from dsd_trt.commands.inputs import read_pairs, read_texts
from dsd_trt.image.files import find_images

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from drawing import COLOURS, SHAPES, Thing, draw, plain
from make_examples import write_examples
from make_score_matrix import CELL, DEEP, FRAME, PALE, ROW, draw_matrix

EXAMPLES = Path(__file__).parents[2] / "examples"
RELATIONS = ("left of", "right of", "above", "below", "inside", "in front of")


def _files(folder: Path) -> list[Path]:
    """Everything the script writes, relative to its folder."""
    written = [it for kind in ("txt", "csv", "jsonl") for it in folder.glob(f"*.{kind}")]
    return sorted(path.relative_to(folder) for path in (*written, *(folder / "images").iterdir()))


def test_script_reproduces_the_committed_files(tmp_path: Path) -> None:
    write_examples(tmp_path)
    assert _files(tmp_path) == _files(EXAMPLES)
    for file in _files(tmp_path):
        if file.suffix == ".png":  # the same pixels; how they are compressed may change
            drawn, kept = (Image.open(folder / file) for folder in (tmp_path, EXAMPLES))
            assert drawn.size == kept.size == (256, 256)
            assert drawn.tobytes() == kept.tobytes(), file
        else:
            assert (tmp_path / file).read_bytes() == (EXAMPLES / file).read_bytes()


def test_pairs_name_every_image_and_its_text_once() -> None:
    images = find_images([str(EXAMPLES / "images")]).images
    texts = read_texts(str(EXAMPLES / "texts.txt"))
    pairs = read_pairs(EXAMPLES / "pairs.csv")
    assert len(images) >= 12
    assert len(pairs) == len(images)
    assert {pair.image for pair in pairs} == set(images)
    assert len(set(texts)) == len(texts)
    assert [pair.text for pair in pairs] == texts[: len(pairs)]
    assert len(texts) == len(pairs) + 2, "two texts describe none of the images"


def test_examples_show_the_whole_vocabulary() -> None:
    described = " ".join(pair.text for pair in read_pairs(EXAMPLES / "pairs.csv"))
    for word in (*SHAPES, *COLOURS, *RELATIONS, "small", "large"):
        assert re.search(rf"\b{word}\b", described), word


@pytest.mark.parametrize(
    ("shape", "area"),
    [("circle", np.pi), ("ring", np.pi * (1 - 0.62**2)), ("square", 1.76**2), ("cross", 2.1912)],
)
def test_shapes_cover_what_geometry_says(shape: str, area: float) -> None:
    picture = draw([Thing(shape, "black", 0.5, 0.5, 0.3, angle=11)], plain("white"))
    covered = (255 - np.asarray(picture.convert("L")).astype(float)).mean() / 255
    assert covered == pytest.approx(0.3**2 * area, rel=0.02)


def test_score_matrix_shades_by_probability_and_frames_what_belongs() -> None:
    probabilities = np.array([[0.9, 0.5, 0.1], [0.3, 0.1, 0.7]], np.float32)
    images = [plain("red"), plain("blue")]
    texts = ["red", "neither", "blue"]
    sheet = draw_matrix(images, texts, probabilities, ["red", "blue"])

    left, top = sheet.width - 12 - 2 * CELL, 24 + CELL
    pixels = np.asarray(sheet).astype(int)

    def cell(column: int, row: int, x: int, y: int) -> list[int]:
        color: list[int] = pixels[top + row * ROW + y, left + column * CELL + x].tolist()
        return color

    def fill(column: int, row: int) -> list[int]:
        return cell(column, row, 5, 5)

    assert fill(0, 0) == DEEP.tolist()
    assert fill(0, 2) == fill(1, 1) == PALE.tolist()
    shades = [sum(fill(0, 0)), sum(fill(1, 2)), sum(fill(0, 1)), sum(fill(1, 0)), sum(fill(0, 2))]
    assert shades == sorted(shades)
    framed = {(c, r) for c in range(2) for r in range(3) if cell(c, r, 0, 0) == list(FRAME)}
    assert framed == {(0, 0), (1, 2)}
    thumbnails = [pixels[12 + CELL // 2, left + c * CELL + CELL // 2].tolist() for c in range(2)]
    assert thumbnails == [[255, 0, 0], [0, 0, 255]]


# How far the engines agree is the matter of tests/runtime/test_embedded.py.
@pytest.mark.parametrize(
    "engine", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)]
)
def test_embedded_model_puts_the_right_text_on_top(engine: str) -> None:
    pairs = read_pairs(EXAMPLES / "pairs.csv")
    texts = read_texts(str(EXAMPLES / "texts.txt"))
    scores = Scorer.load(engine=engine).score([pair.image for pair in pairs], texts).scores
    right = 0
    for row, pair in zip(scores, pairs, strict=True):
        own = texts.index(pair.text)
        right += bool(row[own] > np.delete(row, own).max())  # a tie is wrong
    assert right >= 10
