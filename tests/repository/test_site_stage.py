"""tools/make_site.py: files that pages link to, and folders that it may empty."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import make_site

BINARY = bytes(range(256))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the repository."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setattr(make_site, "ROOT", folder)
    return folder


def test_a_linked_binary_is_copied(root: Path, tmp_path: Path) -> None:
    (root / "model.bin").write_bytes(BINARY)
    (root / "page.md").write_text("[model](model.bin)\n", "utf-8")
    make_site.Stage(tmp_path / "stage").add_page(root / "page.md")
    assert (tmp_path / "stage" / "page.md").read_text("utf-8") == "[model](model.bin)\n"
    assert (tmp_path / "stage" / "model.bin").read_bytes() == BINARY


@pytest.mark.parametrize("ticks", [0, 3, 4, 7])
def test_a_fence_is_longer_than_those_in_its_file(root: Path, tmp_path: Path, ticks: int) -> None:
    """CommonMark: a block ends at the first line of at least as many backticks as it began with."""
    text = f"before\n{'`' * ticks}\nafter"
    (root / "notes.txt").write_text(text, "utf-8")
    (root / "page.md").write_text("[notes](notes.txt)\n", "utf-8")
    make_site.Stage(tmp_path / "stage").add_page(root / "page.md")
    shown = (tmp_path / "stage" / "notes.txt.md").read_text("utf-8")
    found = re.search(r"^(`{3,})text\n(.*?)\n\1`*$", shown, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert found[2] == text


def test_a_notebook_may_print_fences(tmp_path: Path) -> None:
    output = {"text": ["```\n", "inner\n", "```\n"]}
    cell = {"cell_type": "code", "source": ["print(page)"], "outputs": [output]}
    page = make_site.notebook_page({"cells": [cell]}, tmp_path)
    assert "````text\n```\ninner\n```\n````" in page


def test_a_folder_of_others_is_not_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="mine is not empty"):
        make_site.empty(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("there", [False, True])
def test_its_own_folder_is_emptied(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "deep" / "stage"
    if there:
        folder.mkdir(parents=True)
    for _ in range(2):
        make_site.empty(folder)
        assert [it.name for it in folder.iterdir()] == [make_site.MARK]
        (folder / "page.md").write_text("old")


def test_neither_folder_of_others_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MkDocs would empty `--out`, as this tool would `--stage`."""
    for option, other in (("--stage", "--out"), ("--out", "--stage")):
        mine = tmp_path / option
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
        given = ["make_site.py", option, str(mine), other, str(tmp_path / "new")]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit, match="empty"):
            make_site.main()
        assert [it.name for it in mine.iterdir()] == ["thesis.txt"]
