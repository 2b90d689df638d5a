"""The site of docs/ builds without a warning, fetches nothing from outside, and can be searched."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-site" / "bin" / "python"  # of `make site`
MADE = (ROOT / ".venv-site" / "installed").exists()  # whole
PYTHON = str(OWN) if MADE else sys.executable if importlib.util.find_spec("mkdocs") else None
pytestmark = pytest.mark.skipif(PYTHON is None, reason="MkDocs is not installed: make site")


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    assert PYTHON is not None
    command = [PYTHON, str(root / "make_site.py"), "--out", str(out)]
    command += ["--stage", str(out.with_name(f"{out.name}-stage"))]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "tools", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """Links of a page, its anchors, and what a browser fetches to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[it] for it in ("id", "name") if it in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        fetching = given.get("rel") not in ("canonical", "next", "prev")
        for attribute in ("src", "srcset", "data", "poster"):
            self.fetched += [given[attribute]] if attribute in given else []
        if tag == "link" and fetching:
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {it: Page(it.read_text("utf-8")) for it in site.rglob("*.html")}


def test_every_page_of_the_documentation_is_there(pages: dict[Path, Page], site: Path) -> None:
    expected = {it.relative_to(ROOT).with_suffix(".html") for it in ROOT.glob("docs/*.md")}
    expected -= {Path("docs/README.html")}
    built = {it.relative_to(site) for it in pages}
    assert expected | {Path("index.html"), Path("docs/index.html")} <= built


def test_nothing_is_fetched_from_outside(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        outside = [it for it in page.fetched if urlsplit(it).netloc]
        assert outside == [], path
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", text), style


def test_its_scripts_are_the_themes_and_its_search_knows_the_pages(site: Path) -> None:
    scripts = {it.relative_to(site).parent for it in site.rglob("*.js")}
    assert {it.parts[:2] for it in scripts} == {("assets", "javascripts")}
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    found = {it["location"].partition("#")[0] for it in index["docs"]}
    assert {"docs/score.html", "docs/api.html", "docs/limits.html"} <= found
    assert "train/scoring/pooling.py.html" not in found  # a file that a page links to


def test_links_lead_to_pages_files_and_headings(pages: dict[Path, Page], site: Path) -> None:
    """Seen from a folder, as a browser would follow them."""
    followed = 0
    for path, page in pages.items():
        if path.name == "404.html":  # for a server, whose root it names
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path.relative_to(site), link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, link
            followed += 1
    assert followed > 1000


def test_the_reference_has_every_public_name_and_its_methods(pages: dict[Path, Page]) -> None:
    import dsd_trt

    (reference,) = (page for path, page in pages.items() if path.name == "api.html")
    assert {f"dsd_trt.{name}" for name in dsd_trt.__all__} <= reference.anchors
    methods = {name for name in vars(dsd_trt.Scorer) if not name.startswith("_")}
    assert {f"dsd_trt.Scorer.{name}" for name in methods} <= reference.anchors


def test_a_linked_file_is_a_page_with_its_text(site: Path) -> None:
    page = (site / "train" / "scoring" / "pooling.py.html").read_text("utf-8")
    shown = re.sub(r"<[^>]+>", "", page)
    assert "def logsumexp_pool(" in shown


BREAK = {
    "a link": ("docs/limits.md", "\n[nowhere](nowhere.md)\n"),
    "an anchor": ("docs/limits.md", "\n[nowhere](score.md#no-such-heading)\n"),
    "a page that is not listed": ("docs/new-page.md", "# New\n"),
}


@pytest.mark.parametrize("what", BREAK)
def test_a_mistake_ends_the_build(what: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for it in (*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "pyproject.toml"):
        shutil.copy(it, tmp_path)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copy(ROOT / "constraints-triton.txt", tmp_path)
    for folder in ("tools", "examples", "tests", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for folder in ("dsd_trt", "train", "export", "engines"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    file, text = BREAK[what]
    with (tmp_path / file).open("a", encoding="utf-8") as page:
        page.write(text)
    script = tmp_path / "own" / "make_site.py"  # by its own path, not the link's
    script.parent.mkdir()
    shutil.copy(ROOT / "tools" / "make_site.py", script)
    done = build(script.parent, tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere" in done.stderr or "no-such-heading" in done.stderr or "new-page" in done.stderr
