"""docs/python.md, followed to the letter: its code is run, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(python|text)\n(.*?)^```",
    (ROOT / "docs" / "python.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_the_guide_runs_and_prints_what_it_says() -> None:
    code = "\n".join(body for kind, body in BLOCKS if kind == "python")
    printed = [body for kind, body in BLOCKS if kind == "text"]
    assert len(printed) == 2
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for text in printed:
        assert text in run.stdout
    assert "4 of 4 pairs" in run.stdout
