"""Defaults of few-shot training: what help and documents say of them is what training does."""

from __future__ import annotations

import math
import re
from pathlib import Path

import click
import pytest

from dsd_trt.train.commands.train import train
from dsd_trt.train.fewshot.settings import RECIPE, FewShotSettings, continued

TABLE = Path(__file__).parents[2] / "docs" / "train.md"


@pytest.mark.parametrize(
    ("questions", "steps", "rate"),
    [
        (2, 200, 8e-3),
        (40, 200, 8e-3),
        (90, 800, 8e-3 / 2),
        (148, 1496, 8e-3 * math.sqrt(200 / 1496)),
        (149, 1500, 8e-3 * math.sqrt(200 / 1500)),
        (4000, 1500, 8e-3 * math.sqrt(200 / 1500)),
    ],
)
def test_many_questions_take_more_steps_at_a_lower_rate(
    questions: int, steps: int, rate: float
) -> None:
    sized = continued(None, {}).sized(questions)
    assert sized.steps == steps
    assert sized.learning_rate == pytest.approx(rate)
    given = continued(None, {"steps": 7, "learning_rate": 0.1}).sized(questions)
    assert (given.steps, given.learning_rate) == (7, 0.1)
    assert continued(None, {}, {}).sized(questions) == FewShotSettings()  # the paper's form


def test_the_learning_rate_rises_in_a_tenth_of_the_steps_and_falls_to_nothing() -> None:
    rates = [FewShotSettings(steps=40, learning_rate=2.0, warmup=0.1).rate_at(n) for n in range(40)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2 * (1 - 3 / 40)])
    assert rates[4:] == pytest.approx([2 * (1 - n / 40) for n in range(4, 40)])
    paper = [FewShotSettings(steps=40, learning_rate=2.0).rate_at(n) for n in range(40)]
    assert paper == pytest.approx([2 * (1 - n / 40) for n in range(40)])


@pytest.mark.parametrize("name", ["learning_rate", "update_rank", "copies"])
def test_help_and_table_have_the_defaults(name: str) -> None:
    (option,) = (it for it in train.params if it.name == name)
    assert isinstance(option, click.Option)
    texts = re.findall(r"(?:else|default:) ([\d.]+\d|\d)\b", option.help or "")
    rate, most = (float(f"{continued(None, {}).sized(n).learning_rate:.1g}") for n in (1, 10**6))
    least = {**RECIPE, "learning_rate": rate}[name]
    assert float(least) in map(float, texts)
    if name == "learning_rate":
        assert f"falling to {most:g} for 149 and more" in (option.help or "")
        assert f"falls to {most:g} for 149 and more" in TABLE.read_text()
    (row,) = re.findall(rf"^\| `{option.opts[0]}` \| (\S+) \| (\S+) \|", TABLE.read_text(), re.M)
    assert tuple(map(float, row)) == (least, getattr(FewShotSettings(), name))


def test_the_table_has_the_range_of_steps() -> None:
    steps = [continued(None, {}).sized(questions).steps for questions in (1, 10**6)]
    assert f"| `--steps` | {steps[0]} to {steps[1]} | 600 |" in TABLE.read_text()
    (option,) = (it for it in train.params if it.name == "steps")
    assert isinstance(option, click.Option)
    said = option.help or ""
    assert f"[default: {steps[0]} for up to 40 training questions" in said
    assert f"up to {steps[1]}" in said
