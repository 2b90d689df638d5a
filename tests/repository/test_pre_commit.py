"""Hooks of pre-commit are programs of `make lint`, from its environment: nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_hooks_are_programs_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    linted = set(re.findall(r"\$\(DEV\)/bin/([\w-]+)", lint)) - {"python"}
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    entries = {Path(hook["entry"].split()[0]) for hook in repository["hooks"]}
    assert {entry.parent for entry in entries} == {Path(".venv/bin")}
    assert {entry.name for entry in entries} == linted - {"mypy"}  # which takes a minute
