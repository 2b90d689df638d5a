"""Defaults of few-shot training: what help and documents say of them is what training does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from dsd_trt.train.commands.train import train
from dsd_trt.train.fewshot.settings import RECIPE, FewShotSettings, continued

TABLE = Path(__file__).parents[2] / "docs" / "train.md"


@pytest.mark.parametrize(
    ("questions", "steps"), [(2, 200), (34, 200), (40, 200), (90, 300), (160, 400), (10_000, 750)]
)
def test_steps_grow_with_the_square_root_of_the_questions(questions: int, steps: int) -> None:
    assert continued(None, {}).sized(questions).steps == steps
    assert continued(None, {"steps": 7}).sized(questions).steps == 7
    assert continued(None, {}, {}).sized(questions) == FewShotSettings()  # the paper's form


@pytest.mark.parametrize("name", ["learning_rate", "update_rank", "copies"])
def test_help_and_table_have_the_defaults(name: str) -> None:
    (option,) = (it for it in train.params if it.name == name)
    assert isinstance(option, click.Option)
    texts = re.findall(r"(?:else|default:) ([\d.]+\d|\d)\b", option.help or "")
    assert float(RECIPE[name]) in map(float, texts)
    (row,) = re.findall(rf"^\| `{option.opts[0]}` \| (\S+) \| (\S+) \|", TABLE.read_text(), re.M)
    assert tuple(map(float, row)) == (RECIPE[name], getattr(FewShotSettings(), name))


def test_the_table_has_the_range_of_steps() -> None:
    steps = [continued(None, {}).sized(questions).steps for questions in (1, 10**6)]
    assert f"| `--steps` | {steps[0]} to {steps[1]} | 600 |" in TABLE.read_text()
    (option,) = (it for it in train.params if it.name == "steps")
    assert isinstance(option, click.Option)
    said = option.help or ""
    assert f"[default: {steps[0]} for up to 40 training questions" in said
    assert f"up to {steps[1]}" in said
