"""Score the example images against the example texts, and draw docs/report.png in Chromium.

python tools/make_report_picture.py [PICTURE]; needs playwright and a chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from dsd_trt.installation import own_command

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1160, 640
COLOURS = 96


def main() -> None:
    """Write the picture."""
    from playwright.sync_api import sync_playwright

    picture = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "report.png")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "scores.html"
        command = [*own_command(), "score", "examples/images", "examples/texts.txt"]
        subprocess.run([*command, "-q", "-o", str(page)], cwd=ROOT, check=True)
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        opened.goto(page.as_uri())
        opened.wait_for_selector(".explorer img")
        shot = Path(folder) / "shot.png"
        opened.screenshot(path=str(shot))
        browser.close()
        Image.open(shot).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main()
