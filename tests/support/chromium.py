"""A headless Chromium for pages, driven by Playwright; tests without both skip, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = "DSD_AXE_CORE"  # variable with the path of axe-core's axe.min.js, which is not ours to ship


class OpenPage:
    """A page in a browser, and all that it did besides showing itself.

    Attributes:
        page: Playwright's page.
        complaints: lines of the console, and errors of scripts.
        requests: addresses that were asked for, those of data in the page left out.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda it: self.complaints.append(it.text))
        page.on("pageerror", lambda it: self.complaints.append(str(it)))
        page.on("request", lambda it: self._asked(it.url))

    def _asked(self, address: str) -> None:
        if not address.startswith("data:"):
            self.requests.append(address)

    def cell(self, row: int, column: int) -> Any:
        """A cell of the explorer by its place among all rows, the head being row 0."""
        return self.page.locator(
            f'.explorer tr[aria-rowindex="{row + 1}"] [aria-colindex="{column + 1}"]'
        )

    def status(self, expected: str) -> None:
        """Wait until the live region says this."""
        self.page.wait_for_function(
            "text => document.querySelector('.status').textContent === text", arg=expected
        )

    def violations(self) -> list[str]:
        """What axe-core finds, serious or critical; skips the test without it."""
        path = os.environ.get(AXE)
        if not path or not Path(path).is_file():
            pytest.skip(f"{AXE} names no axe.min.js: npm pack axe-core")
        self.page.evaluate(Path(path).read_text("utf-8"))
        found = self.page.evaluate("axe.run().then(it => it.violations)")
        return [
            f"{it['id']}: {node['html']}"
            for it in found
            if it["impact"] in ("serious", "critical")
            for node in it["nodes"]
        ]


class Browser:
    """A running Chromium."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def open(self, path: Path, theme: str = "light") -> OpenPage:
        """Open a file in a theme, and wait until it is loaded."""
        context = self._browser.new_context(
            color_scheme=theme, viewport={"width": 1280, "height": 860}
        )
        opened = OpenPage(context.new_page())
        opened.page.set_default_timeout(60_000)  # other programs may have the cores
        opened.page.goto(path.resolve().as_uri())
        return opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A Chromium for the tests of a module."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"there is no {' and no '.join(_NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield Browser(browser)
        finally:
            browser.close()
