"""The second training, on all questions: what it learns from, and when there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import picture_questions, write_checkpoint

from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.comparison import Comparison, WorseError
from dsd_trt.train.fewshot.model import FewShotModel, Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import TrainingReport, train_adapter
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter

COLOURS = ["red", "blue", "green", "white", "black", "grey", "pink", "brown"]
TEXTS = [f"a {colour} {thing}" for thing in ("circle", "square") for colour in COLOURS]
SETTINGS = FewShotSettings(
    steps=4,
    questions=4,
    negatives=1,
    hard=0.5,
    rank=1,
    hidden=2,
    copies=1,
    validate_every=2,
    refit=True,
)
SHARE = 0.4  # six of 16 or so: a and b are fitted to them


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return picture_questions(TEXTS)


@pytest.fixture(scope="module")
def out(model: str, questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refit") / "out"
    train_adapter(model, questions, SETTINGS, out, {}, SHARE)
    return out


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters have the same prompts, to the bit."""
    return all(torch.equal(it, other.prompt_state[name]) for name, it in one.prompt_state.items())


def test_the_adapter_is_that_of_a_training_on_all_questions(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    parts = hold_out(questions, SHARE, SETTINGS.seed)
    written = Adapter.load(out)
    train_adapter(model, questions, SETTINGS, tmp_path / "all", {}, 0)
    assert same(written, Adapter.load(tmp_path / "all"))
    report = json.loads((out / "report.json").read_text())
    assert report["questions"] == [len(parts.learned), len(parts.held)]
    assert len(report["refit"]) == SETTINGS.steps
    assert written.training["refit_steps"] == SETTINGS.steps


def test_its_probabilities_are_fitted_to_questions_that_were_held_out(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    once = replace(SETTINGS, refit=False)
    report = train_adapter(model, questions, once, tmp_path / "once", {}, SHARE)
    first, written = Adapter.load(tmp_path / "once"), Adapter.load(out)
    assert report.questions[1] >= 5
    assert not report.refit
    assert not same(first, written)
    assert (written.a, written.b) == (first.a, first.b)
    # What was told of the answers is what the first training came to.
    told = json.loads((out / "report.json").read_text())["comparison"]
    assert told["after"] == [*report.comparison.after]


def test_there_is_none_if_an_earlier_step_was_better(
    model: str, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse_at_the_end(model: FewShotModel, examples: object, step: int) -> Validation:
        return Validation(step, (step < SETTINGS.steps,) * 8, 0.5)

    monkeypatch.setattr("dsd_trt.train.fewshot.fit.validate", worse_at_the_end)
    report = train_adapter(model, questions, SETTINGS, tmp_path / "out", {}, SHARE)
    assert report.best is not None
    assert report.best.step == 2
    assert not report.refit
    assert not (tmp_path / "out" / "refit.ckpt").exists()


@pytest.mark.parametrize("allow_worse", [False, True])
def test_there_is_none_of_a_worse_adapter_or_without_validation(
    model: str,
    questions: list[Question],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    allow_worse: bool,
) -> None:
    assert not train_adapter(model, questions, SETTINGS, tmp_path / "all", {}, 0).refit
    worse = Comparison(held_out=True, before=(True,) * 8, after=(False,) * 8)
    monkeypatch.setattr(training, "compare", lambda *_, **__: worse)
    out = tmp_path / "out"

    def train() -> TrainingReport:
        return train_adapter(model, questions, SETTINGS, out, {}, SHARE, allow_worse=allow_worse)

    if allow_worse:
        assert not train().refit
    else:
        with pytest.raises(WorseError):
            train()
    assert (out / "adapter.json").exists() == allow_worse
    assert json.loads((out / "report.json").read_text())["refit"] == []


class KillError(Exception):
    """What stands in for a kill."""


def test_a_kill_in_it_loses_neither_training(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int]] = []

    def die(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        told.append((stage, done))
        if told.count(("training on all questions", 3)) == 1:
            raise KillError

    again = tmp_path / "out"
    with pytest.raises(KillError):
        train_adapter(model, questions, SETTINGS, again, {}, SHARE, progress=die)
    assert not (again / "adapter.json").exists()
    told.clear()

    def note(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        told.append((stage, done))

    train_adapter(model, questions, SETTINGS, again, {}, SHARE, progress=note)
    steps = [(stage, done) for stage, done in told if stage.startswith("training")]
    assert steps == [("training on all questions", 3), ("training on all questions", 4)]
    for name in ("adapter.safetensors", "report.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
