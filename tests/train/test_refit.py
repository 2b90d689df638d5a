"""The second training, on all questions: what it learns from, and when there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import picture_questions, write_checkpoint

from dsd_trt.bundle.manifest import Calibration
from dsd_trt.bundle.method import Mode, TrainedFor
from dsd_trt.errors import InputError
from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.comparison import Comparison, WorseError
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.fit import Calibrations, DivergedError
from dsd_trt.train.fewshot.model import FewShotModel, Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
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
    update_rank=1,
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
    """Whether two adapters have the same prompts, updates and head weights, to the bit."""
    assert one.prompt_state.keys() == other.prompt_state.keys()
    assert one.merged.keys() == other.merged.keys() != set()
    pairs = [(it, other.prompt_state[name]) for name, it in one.prompt_state.items()]
    pairs += [(it, other.merged[name]) for name, it in one.merged.items()]
    pairs += zip(one.head_weights, other.head_weights, strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_the_adapter_is_that_of_a_training_on_all_questions(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    parts = hold_out(questions, SHARE, SETTINGS.seed)
    written = Adapter.load(out)
    train_adapter(model, questions, SETTINGS, tmp_path / "all", {}, 0)
    assert same(written, Adapter.load(tmp_path / "all"))
    report = json.loads((out / "report.json").read_text())
    assert report["questions"] == [len(parts.learned), len(parts.held)]
    assert len(report["refit_losses"]) == SETTINGS.steps
    assert (written.training["learned_from"], written.training["refit"]) == (len(questions), True)


@pytest.mark.parametrize(("mode", "modes"), [("matrix", ("matrix",)), ("both", ("pair", "matrix"))])
def test_it_keeps_the_probabilities_of_every_mode(
    model: str,
    questions: list[Question],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: TrainedFor,
    modes: tuple[Mode, ...],
) -> None:
    fits: dict[Mode, tuple[float, float]] = {"pair": (2.0, 0.5), "matrix": (3.0, -0.5)}
    fitted: list[tuple[Mode, ...]] = []

    def fit(model: FewShotModel, examples: Examples, settings: FewShotSettings) -> Calibrations:
        fitted.append(settings.modes)
        return {it: fits[it] for it in settings.modes}

    monkeypatch.setattr("dsd_trt.train.fewshot.fit._calibrate", fit)
    report = train_adapter(
        model, questions, replace(SETTINGS, mode=mode), tmp_path / "out", {}, SHARE
    )
    written = Adapter.load(tmp_path / "out")
    assert report.refit_losses
    assert fitted == [modes]
    for it in modes:
        assert written.calibration_of(it) == Calibration(*fits[it])


def test_each_training_has_the_steps_of_its_questions(
    model: str, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_step_each(settings: FewShotSettings, questions: int) -> FewShotSettings:
        return replace(settings, steps=questions, learning_rate=1 / questions)

    monkeypatch.setattr(FewShotSettings, "sized", one_step_each)
    report = train_adapter(model, questions, SETTINGS, tmp_path / "out", {}, SHARE)
    learned, held = report.questions
    assert (len(report.losses), len(report.refit_losses)) == (learned, learned + held)
    record = Adapter.load(tmp_path / "out").training
    assert (record["steps"], record["steps_done"]) == (16, 16)
    assert record["learning_rate"] == 1 / 16


def test_its_probabilities_are_fitted_to_questions_that_were_held_out(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    once = replace(SETTINGS, refit=False)
    report = train_adapter(model, questions, once, tmp_path / "once", {}, SHARE)
    first, written = Adapter.load(tmp_path / "once"), Adapter.load(out)
    assert report.questions[1] >= 5
    assert not report.refit_losses
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
    assert not report.refit_losses
    assert not (tmp_path / "out" / "refit.ckpt").exists()


def test_there_is_none_without_validation(
    model: str, questions: list[Question], tmp_path: Path
) -> None:
    assert not train_adapter(model, questions, SETTINGS, tmp_path / "out", {}, 0).refit_losses


def test_there_is_none_of_a_worse_adapter(
    model: str, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Comparison(held_out=True, before=(True,) * 8, after=(False,) * 8)
    monkeypatch.setattr(training, "compare", lambda *_, **__: worse)
    out = tmp_path / "out"
    train = partial(train_adapter, model, questions, SETTINGS, out, {}, SHARE)
    with pytest.raises(WorseError):
        train()
    assert not (out / "adapter.json").exists()
    assert json.loads((out / "report.json").read_text())["refit_losses"] == []
    assert not train(allow_worse=True).refit_losses
    assert (out / "adapter.json").exists()


def test_it_is_not_kept_if_it_answers_worse_than_the_first(
    model: str,
    questions: list[Question],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    once = train_adapter(
        model, questions, replace(SETTINGS, refit=False), tmp_path / "once", {}, SHARE
    )
    found = iter([once.comparison, Comparison(False, (True,) * 6, (False,) * 6)])
    monkeypatch.setattr(training, "compare", lambda *_, **__: next(found))
    report = train_adapter(model, questions, SETTINGS, tmp_path / "out", {}, SHARE)
    assert not report.refit_losses
    assert report.learned_from == report.questions[0]
    assert same(Adapter.load(tmp_path / "out"), Adapter.load(tmp_path / "once"))
    assert "fewer of those held out: 0 instead of 6 of 6" in caplog.text


def test_if_it_diverges_the_adapter_is_the_first(
    model: str,
    questions: list[Question],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def sized(settings: FewShotSettings, count: int) -> FewShotSettings:
        return replace(settings, learning_rate=1e30 if count == len(questions) else 1e-3)

    monkeypatch.setattr(FewShotSettings, "sized", sized)
    report = train_adapter(model, questions, SETTINGS, tmp_path / "out", {}, SHARE)
    assert not report.refit_losses
    Adapter.load(tmp_path / "out")
    assert "on all questions, training diverged" in caplog.text


def test_of_several_processes_none_is_left_waiting_for_one_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise DivergedError("training diverged")

    several = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(training, "process_state", lambda: several)
    with pytest.raises(DivergedError):
        training._second(diverge, None, Adapter.load(out), tmp_path)  # type: ignore[arg-type]


def test_its_state_is_of_one_plan(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    """Also where the first training's state is gone, for it was damaged."""
    again = tmp_path / "out"
    again.mkdir()
    for name in ("plan.json", "refit.ckpt"):
        shutil.copy(out / name, again / name)
    with pytest.raises(InputError, match="a run with other settings: seed was 0, and now is 1"):
        train_adapter(model, questions, replace(SETTINGS, seed=1), again, {}, SHARE)


def test_a_question_held_out_has_a_negative(model: str, tmp_path: Path) -> None:
    questions = picture_questions(TEXTS)
    one_candidate = replace(questions[0], candidates=questions[0].candidates[1:], right=0)
    with pytest.raises(InputError, match="a question without a negative pair"):
        train_adapter(model, [*questions[1:], one_candidate], SETTINGS, tmp_path, {}, SHARE)


class KillError(Exception):
    """What stands in for a kill."""


def test_a_kill_in_it_loses_neither_training(
    model: str, questions: list[Question], out: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int]] = []

    def die(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        told.append((stage, done))
        if (stage, done) == ("training on all questions", 3):
            raise KillError

    again = tmp_path / "out"
    with pytest.raises(KillError):
        train_adapter(model, questions, SETTINGS, again, {}, SHARE, progress=die)
    assert not (again / "adapter.json").exists()
    told.clear()

    def note(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        told.append((stage, done))

    train_adapter(model, questions, SETTINGS, again, {}, SHARE, progress=note)
    steps = [(stage, done) for stage, done in told if stage.startswith("training") and done]
    assert steps == [("training on all questions", 3), ("training on all questions", 4)]
    for name in ("adapter.safetensors", "report.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
