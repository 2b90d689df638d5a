"""Score the example images against the example texts, and draw docs/report.png in Chromium.

python tools/make_report_picture.py; needs playwright and a chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from dsd_trt.installation import own_command

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1160, 640
COLOURS = 96


def draw(picture: Path) -> None:
    """Draw the first screen of the page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page, shot = Path(folder) / "scores.html", Path(folder) / "shot.png"
        command = [*own_command(), "score", "examples/images", "examples/texts.txt"]
        subprocess.run([*command, "-q", "-o", str(page)], cwd=ROOT, check=True)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        opened.goto(page.as_uri())
        opened.wait_for_selector(".explorer img")
        opened.screenshot(path=str(shot))
        browser.close()
        Image.open(shot).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    draw(ROOT / "docs" / "report.png")
