"""The page of an evaluation: what it notes of questions, and what a browser shows of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from chromium import Browser
from numpy.typing import NDArray
from page_parts import PageParts
from PIL import Image

from dsd_trt.train.evaluation.answers import grade
from dsd_trt.train.evaluation.figures import figures
from dsd_trt.train.evaluation.page import Asked
from dsd_trt.train.question import Question

pytest_plugins = ("chromium",)


def painted(*colour: int) -> NDArray[np.uint8]:
    return np.tile(np.array(colour, np.uint8), (16, 16, 1))


RED, BLUE = painted(255, 0, 0), painted(0, 0, 255)
QUESTIONS = [
    Question("word", ((RED, "a <b>red</b> dog"), (RED, "a blue dog")), 0, "one"),
    Question("word", ((RED, "a blue dog"), (RED, "a <b>red</b> dog")), 1, "two"),
    Question("word", ((BLUE, "a blue dog"), (BLUE, "a red dog")), 0, "three"),
    Question("picture", ((RED, "a blue dog"), (BLUE, "a blue dog")), 1, "four"),
]
SCORES = [(0.1, 0.9), (0.5, 0.5), (0.7, 0.2), (0.8, 0.1)]


def written(folder: Path) -> Path:
    asked = Asked()
    answers = [
        grade(question, row) for question, row in zip(asked.through(QUESTIONS), SCORES, strict=True)
    ]
    parts = asked.page("Test", answers, figures(answers), [], None, {"scorer": "<i>"})
    (folder / "page.html").write_text("".join(parts), "utf-8")
    return folder / "page.html"


def test_answers_name_what_was_chosen_and_show_it(tmp_path: Path) -> None:
    parts = PageParts(written(tmp_path).read_text("utf-8"))
    names, rows = parts.data("names"), parts.data("rows")
    columns = [it["name"] for it in parts.data("setup")["columns"]]
    assert columns == [
        *("Image", "Text", "Kind", "Chosen text", "Chosen image", "Rank of the right one"),
        *("Candidates", "Answer"),
    ]
    assert [row[7] for row in rows] == ["wrong", "wrong", "right", "wrong"]  # a tie is wrong
    chosen = [row[3] if row[3] is None else names["texts"][row[3]] for row in rows]
    assert chosen == ["a blue dog", "a blue dog", "a blue dog", None]
    assert names["images"][rows[3][4]] == "an image of four, candidate 1"
    means = []
    for picture in parts.data("pictures-0"):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        means.append("red" if pixels[..., 0].mean() > 128 else "blue")
    assert [means[row[0]] for row in rows] == ["red", "red", "blue", "blue"]
    assert means[rows[3][4]] == "red"


def test_confusions_count_wrong_texts_not_wrong_images(tmp_path: Path) -> None:
    parts = PageParts(written(tmp_path).read_text("utf-8"))
    (caption,) = (it.text for it in parts.all("caption") if "wrong text" in it.text)
    assert caption.startswith("Which wrong text won: 1 of 1")
    assert "a <b>red</b> doga blue dog2" in parts.all("tbody")[1].text
    assert parts.all("b") == []


def test_a_browser_shows_wrong_answers_and_their_candidates(
    chromium: Browser, tmp_path: Path
) -> None:
    opened = chromium.open(written(tmp_path))
    opened.status("4 answers.")
    opened.page.get_by_label("Only").select_option("wrong answers")
    opened.status("3 of 4 answers.")
    assert opened.page.locator(".best").count() == 0  # ranks are no scores
    opened.cell(0, 5).locator("button").click()
    opened.status("3 of 4 answers, sorted by Rank of the right one, highest first.")
    opened.cell(1, 1).click()
    shown = opened.page.get_by_role("dialog").inner_text()
    assert "All candidates\na <b>red</b> dog\na blue dog" in shown
    assert opened.complaints == []
    assert opened.requests == [(tmp_path / "page.html").as_uri()]


def test_axe_finds_nothing_serious(chromium: Browser, tmp_path: Path) -> None:
    """With the dialog of an answer open."""
    opened = chromium.open(written(tmp_path))
    opened.status("4 answers.")
    opened.cell(1, 1).click()
    opened.page.wait_for_selector("dialog[open]")
    assert opened.violations() == []
