"""Pages of scores in a real browser: what it complains of, fetches, shows and answers to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, OpenPage
from in_process import Run
from PIL import Image

from dsd_trt.commands.html import write_html
from dsd_trt.commands.layout import MATRIX
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, shortest
from dsd_trt.commands.record_images import GivenImages
from dsd_trt.failure import Failure

pytest_plugins = ("chromium", "in_process")

HOSTILE = "</script><img src=x onerror=alert(1)><b>"
SIZES = {"small": (10, 10), "large": (2000, 50)}
THEMES = ("light", "dark")


def names(size: str) -> tuple[list[str], list[str]]:
    """Images and texts, the last of each hostile; those with a number come before."""
    images, texts = SIZES[size]
    return (
        [*(f"photos/{place:04}.jpg" for place in range(images - 1)), f"photos/{HOSTILE}"],
        [*(f"text {place:02}" for place in range(texts - 1)), HOSTILE],
    )


def scores(size: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(1).random(SIZES[size]).astype(np.float32)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each size; the scores are random."""
    folder = tmp_path_factory.mktemp("pages")
    files = []
    for place, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (120, 90), colour).save(folder / f"{place}.png")
        files.append(folder / f"{place}.png")
    for size in SIZES:
        images, _ = names(size)

        def records(size: str = size) -> Iterator[Record]:
            images, texts = names(size)
            for place, (image, row) in enumerate(zip(images, scores(size), strict=True)):
                for text, score in zip(texts, row, strict=True):
                    yield Record(image, text, shortest(score), shortest(score / 2), place=place)

        sources = list(itertools.islice(itertools.cycle(files), len(images)))
        origin = Origin(
            MATRIX,
            True,
            lambda: {"bundle": HOSTILE},
            GivenImages(sources),
            lambda: [Failure("broken.jpg", f"truncated {HOSTILE}")],
        )
        write_html(str(folder / f"{size}.html"), records(), origin)
    return {size: folder / f"{size}.html" for size in SIZES}


@pytest.fixture
def small(chromium: Browser, pages: dict[str, Path]) -> Iterator[OpenPage]:
    """The small page in a browser, which must have had nothing to complain of at the end."""
    opened = chromium.open(pages["small"])
    yield opened
    assert opened.complaints == []
    assert opened.requests == [pages["small"].as_uri()]
    opened.page.context.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_it_loads_without_a_complaint_and_without_a_request(
    chromium: Browser, pages: dict[str, Path], size: str, theme: str
) -> None:
    opened = chromium.open(pages[size], theme)
    images, texts = SIZES[size]
    opened.status(f"{images:,} images, texts 1 to {texts} of {texts}.")
    opened.page.wait_for_selector(".explorer img")
    assert opened.page.locator(".explorer tbody tr").count() < 60  # rows in sight alone
    table = opened.page.locator(".explorer")
    assert table.get_attribute("aria-rowcount") == str(images + 1)
    assert table.get_attribute("aria-colcount") == str(texts + 1)
    decoded = "Array.from(document.images).every(it => it.complete && it.naturalWidth > 0)"
    opened.page.wait_for_function(decoded)
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 380) == (theme == "light")
    assert opened.complaints == []
    assert opened.requests == [pages[size].as_uri()]
    opened.page.context.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious(
    chromium: Browser, pages: dict[str, Path], size: str, theme: str
) -> None:
    opened = chromium.open(pages[size], theme)
    opened.page.wait_for_selector(".explorer img")
    assert opened.violations() == []
    opened.page.get_by_role("button", name="List").click()
    assert opened.violations() == []
    opened.page.locator(".explorer td.number").first.click()
    opened.page.wait_for_selector("dialog[open]")
    assert opened.violations() == []
    opened.page.context.close()


def column(opened: OpenPage, at: int, count: int) -> list[str]:
    """What the first rows show in a column, without the mark of the best."""
    return [
        opened.cell(row, at).inner_text().replace("★", "").replace("best:", "").strip()
        for row in range(1, count + 1)
    ]


def test_a_heading_sorts_down_up_and_not_at_all(small: OpenPage) -> None:
    of_text = scores("small")[:, 3]
    expected = [f"{it:.4f}" for it in of_text]
    head = small.cell(0, 4)
    assert column(small, 4, 10) == expected
    for order, way in ((-1, "descending"), (1, "ascending")):
        head.locator("button").click()
        ordered = [expected[it] for it in np.argsort(order * of_text, kind="stable")]
        assert column(small, 4, 10) == ordered
        assert head.get_attribute("aria-sort") == way
        said = "highest" if order < 0 else "lowest"
        small.status(f"10 images, texts 1 to 10 of 10, sorted by text 03, {said} first.")
    head.locator("button").click()
    assert column(small, 4, 10) == expected
    assert head.get_attribute("aria-sort") == "none"


def test_the_best_text_of_each_image_is_marked(small: OpenPage) -> None:
    best = scores("small").argmax(axis=1)
    for row, text in enumerate(best.tolist(), 1):
        marked = small.page.locator(f'tr[aria-rowindex="{row + 1}"] td.best')
        assert [marked.count(), marked.get_attribute("aria-colindex")] == [1, str(text + 2)]
        assert "best" in str(marked.text_content())  # to be heard as well
    small.page.get_by_role("button", name="List").click()
    small.page.get_by_label("Only").select_option("best matches")
    small.status("10 of 100 pairs.")
    assert column(small, 2, 10) == [f"{it:.4f}" for it in scores("small").max(axis=1)]


def test_it_searches_and_filters(small: OpenPage) -> None:
    small.page.get_by_label("Search images").fill("0003")
    small.status("1 of 10 images, texts 1 to 10 of 10.")
    small.page.get_by_label("Search images").fill("")
    small.page.get_by_label("Search texts").fill("TEXT 05")
    small.status("10 images, texts 1 to 1 of 1 found.")
    assert column(small, 1, 10) == [f"{it:.4f}" for it in scores("small")[:, 5]]
    least = float(np.sort(scores("small")[:, 5])[6]) - 1e-4
    small.page.get_by_label("Score at least").fill(f"{least}")
    small.status("4 of 10 images, texts 1 to 1 of 1 found.")
    small.page.get_by_label("Search texts").fill("<b>")  # a text, not an element
    small.page.get_by_label("Score at least").fill("")
    small.status("10 images, texts 1 to 1 of 1 found.")
    assert HOSTILE in small.cell(0, 1).inner_text()
    small.page.get_by_label("Search texts").fill("")
    small.page.get_by_label("Show").select_option("Probability")
    small.status("10 images, texts 1 to 10 of 10.")
    assert column(small, 1, 3) == [f"{shortest(it / 2):.3f}" for it in scores("small")[:3, 0]]


def test_keys_move_open_details_and_come_back(small: OpenPage) -> None:
    keys = small.page.keyboard
    small.page.get_by_label("Score at least").focus()
    keys.press("Tab")  # the table is one stop
    focused = (
        "[document.activeElement.closest('tr').ariaRowIndex, document.activeElement.ariaColIndex]"
    )
    assert small.page.evaluate(focused) == ["2", "1"]
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        keys.press(key)
    assert small.page.evaluate(focused) == ["3", "3"]
    outline = small.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is seen
    keys.press("Enter")
    dialog = small.page.get_by_role("dialog")
    score = scores("small")[1, 1]
    shown = dialog.inner_text()
    assert "photos/0001.jpg" in shown
    assert f"{shortest(score)}" in shown  # all digits, as in JSON
    rank = 1 + int((scores("small")[1] > score).sum())
    among = 1 + int((scores("small")[:, 1] > score).sum())
    assert f"{rank} of 10" in shown
    assert f"{among} of 10" in shown
    assert small.page.evaluate("document.activeElement.textContent") == "Close"
    keys.press("Escape")
    assert dialog.count() == 0
    assert small.page.evaluate(focused) == ["3", "3"]
    keys.press("Control+End")
    assert small.page.evaluate(focused) == ["11", "11"]
    keys.press("Enter")
    assert HOSTILE in dialog.inner_text()
    keys.press("Escape")
    keys.press("Control+Home")
    keys.press("ArrowUp")
    keys.press("ArrowRight")
    keys.press("Enter")  # the heading of the first text sorts
    small.status("10 images, texts 1 to 10 of 10, sorted by text 00, highest first.")


def test_the_last_of_many_rows_is_reached(chromium: Browser, pages: dict[str, Path]) -> None:
    opened = chromium.open(pages["large"])
    opened.page.locator(".explorer tbody th").first.focus()
    opened.page.keyboard.press("Control+End")
    last = opened.cell(2000, 50)
    assert f"{scores('large')[-1, -1]:.4f}" in last.inner_text()
    assert opened.page.evaluate("document.activeElement.textContent") == last.text_content()
    opened.page.get_by_role("button", name="List").click()
    opened.status("100,000 pairs.")
    opened.page.locator(".explorer tbody th").first.focus()
    opened.page.keyboard.press("Control+End")
    assert f"{scores('large')[-1, -1]:.4f}" in opened.cell(100_000, 2).inner_text()
    assert opened.page.locator(".explorer tbody tr").count() < 60
    assert opened.complaints == []
    opened.page.context.close()


def test_pairs_show_reasons_and_the_columns_of_their_table(
    chromium: Browser, dsd_trt: Callable[..., Run], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text(
        f"image,text,source\na.png,dog,{HOSTILE}\nmissing.png,dog,mine\na.png,a red dog,yours\n"
    )
    dsd_trt("score", "--pairs", "pairs.csv", "-o", "pairs.html")
    opened = chromium.open(tmp_path / "pairs.html")
    opened.status("3 pairs.")
    opened.page.get_by_label("Only").select_option("pairs without a score")
    opened.status("1 of 3 pairs.")
    assert "no image file 'missing.png'" in opened.cell(1, 4).inner_text()
    opened.cell(1, 4).click()
    assert "missing.png" in opened.page.get_by_role("dialog").inner_text()
    opened.page.keyboard.press("Escape")
    opened.page.get_by_label("Only").select_option("all pairs")
    opened.status("3 pairs.")
    opened.cell(1, 1).click()
    assert HOSTILE in opened.page.get_by_role("dialog").inner_text()
    assert opened.complaints == []
    opened.page.context.close()


def page_of(folder: Path, rows: dict[str, list[float]]) -> Path:
    """A grid without pictures, whose texts are numbered; NaN for a pair without a record."""

    def records() -> Iterator[Record]:
        for place, (image, values) in enumerate(rows.items()):
            for text, value in enumerate(values):
                if value == value:
                    yield Record(image, f"text {text:03}", value, None, place=place)

    write_html(str(folder / "page.html"), records(), Origin(MATRIX, True))
    return folder / "page.html"


def test_many_texts_are_turned_like_pages(chromium: Browser, tmp_path: Path) -> None:
    opened = chromium.open(page_of(tmp_path, {"a.png": [it / 200 for it in range(130)]}))
    opened.status("1 image, texts 1 to 60 of 130.")
    opened.page.get_by_role("button", name="Next texts").click()
    opened.page.get_by_role("button", name="Next texts").click()
    opened.status("1 image, texts 121 to 130 of 130.")
    assert opened.page.get_by_role("button", name="Next texts").is_disabled()
    assert opened.cell(1, 10).inner_text().endswith("0.6450")
    assert "best" in opened.cell(1, 10).inner_text()  # of all texts, not of those in sight
    opened.page.get_by_role("button", name="Previous texts").click()
    opened.status("1 image, texts 61 to 120 of 130.")
    assert opened.complaints == []
    opened.page.context.close()


def test_a_lone_text_marks_the_best_image_and_a_missing_pair_is_a_dash(
    chromium: Browser, tmp_path: Path
) -> None:
    opened = chromium.open(page_of(tmp_path, {"a.png": [0.25], "b.png": [0.5], "c.png": [0.125]}))
    assert [opened.cell(row, 1).inner_text().split()[-1] for row in (1, 2, 3)] == [
        *("0.2500", "0.5000", "0.1250")
    ]
    assert opened.page.locator("td.best").count() == 1
    assert "0.5000" in opened.page.locator("td.best").inner_text()
    opened.page.context.close()
    holes = {"a.png": [0.25, float("nan")], "b.png": [float("nan"), 0.5]}
    opened = chromium.open(page_of(tmp_path, holes))
    shown = [opened.cell(row, at).inner_text() for row in (1, 2) for at in (1, 2)]
    assert shown == ["0.2500", "\u2013", "\u2013", "0.5000"]
    opened.cell(0, 1).locator("button").click()  # what has no score is last either way
    assert opened.cell(1, 0).inner_text() == "a.png"
    opened.cell(0, 1).locator("button").click()
    assert opened.cell(1, 0).inner_text() == "a.png"
    assert opened.complaints == []
    opened.page.context.close()


def test_a_page_of_nothing_says_so(chromium: Browser, tmp_path: Path) -> None:
    opened = chromium.open(page_of(tmp_path, {}))
    opened.status("0 images, texts 0 to 0 of 0.")
    opened.page.get_by_role("button", name="List").click()
    opened.status("0 pairs.")
    for key in ("Tab", "ArrowDown", "Enter", "Control+End"):
        opened.page.keyboard.press(key)
    assert opened.complaints == []
    opened.page.context.close()
