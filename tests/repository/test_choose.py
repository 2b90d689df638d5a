"""docs/choose.md repeats figures of other pages: each is there, on a page that its row links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "choose.md").read_text("utf-8")
ROWS = [
    row for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE) if re.search(r"\]\(\w+\.md", row)
]
FIGURE = re.compile(r"(?<![\w.])\d[\d,]*\.?\d*(?= (?:pairs|passes|images|MiB|%)|\]| instead| for)")


def figures(row: str) -> list[str]:
    text = re.sub(r"Stable Diffusion 2\.1|BF16|\]\([^)]*\)|`[^`]*`", lambda it: it[0][:1], row)
    return FIGURE.findall(text)


def test_figures_are_found() -> None:
    assert figures("| 22.9 passes per image instead of 400, 97 % | [127](speed.md) MiB |") == [
        "22.9",
        "97",
        "127",
    ]
    assert sum(len(figures(row)) for row in ROWS) > 12


@pytest.mark.parametrize("row", [row for row in ROWS if figures(row)])
def test_figures_are_those_of_the_pages(row: str) -> None:
    linked = "".join((DOCS / it).read_text("utf-8") for it in re.findall(r"\((\w[\w-]*\.md)", row))
    missing = [
        it for it in figures(row) if not re.search(rf"(?<![\d.]){re.escape(it)}(?!\d)", linked)
    ]
    assert missing == []
