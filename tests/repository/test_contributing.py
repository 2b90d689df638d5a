"""CONTRIBUTING.md leads to what is there: all of the C++ sources, and commands that run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_every_source_of_the_library_is_beside_its_python() -> None:
    section = PAGE.partition("## How C++ mirrors Python")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\[.*?) \| (`.*?) \|", section, re.MULTILINE)
    named = [name for _, cell in rows for name in re.findall(r"`([\w.]+)`", cell)]
    sources = ROOT / "engines" / "cpp" / "src"
    assert all((sources / name).is_file() for name in named), named
    assert len(set(named)) == len(named)
    assert {path.name for path in sources.glob("*.cpp")} <= set(named)


def test_functions_and_tables_named_are_in_the_files_of_their_step() -> None:
    steps = re.findall(r"^\d\. \[(\S+?)\]\(\1\): (.*(?:\n   .*)*)", PAGE, re.MULTILINE)
    assert len(steps) >= 6
    for file, what in steps:
        source = (ROOT / file).read_text("utf-8")
        for name in re.findall(r"`([\w-]+)`", what):
            assert name in source, f"{name} is not in {file}"
