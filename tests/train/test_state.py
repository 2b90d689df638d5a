"""Training state says what it was computed with: another number of threads is told, not refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoints import picture_questions, write_checkpoint
from click.testing import CliRunner
from PIL import Image

from dsd_trt.commands.main import cli
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.run.state import resumed, save_state
from dsd_trt.train.run.threads import one_thread
from dsd_trt.train.scoring.adapter_file import STATE_NAME


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "training.ckpt"
    save_state(path, {"step": 3})
    return path


def resume(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings on resuming."""
    caplog.clear()
    with resumed(path) as found:
        assert found is not None
        assert found["step"] == 3
    return [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]


def test_the_same_arithmetic_is_not_mentioned(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resume(state, caplog) == []


def test_another_number_of_threads_is_told_until_the_state_is_of_it(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(2)
    (line,) = resume(state, caplog)
    assert f"the run in {state.parent} was computed with PyTorch {torch.__version__}, 1 thread" in (
        line
    )
    assert f"continued with PyTorch {torch.__version__}, 2 threads" in line
    assert "the last digits" in line
    save_state(state, {"step": 3})
    assert resume(state, caplog) == []


@pytest.mark.parametrize(
    ("module", "name", "other", "told"),
    [
        (torch, "__version__", "1.2.3", "continued with PyTorch 1.2.3, 1 thread"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS", "1 thread of ABACUS:"),
    ],
)
def test_another_version_or_processor_is_told(
    state: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    other: Any,
    told: str,
) -> None:
    monkeypatch.setattr(module, name, other)
    (line,) = resume(state, caplog)
    assert told in line


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_one_of_several_processes_tells_how_many_they_are(
    state: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    lines: int,
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    told = resume(state, caplog)
    assert len(told) == lines
    assert all(", 2 processes:" in line for line in told)


@pytest.mark.parametrize("record", [None, 7])
def test_a_state_of_an_earlier_version_is_resumed_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, record: Any
) -> None:
    path = tmp_path / "training.ckpt"
    torch.save({"step": 3} if record is None else {"step": 3, "computed with": record}, path)
    assert resume(path, caplog) == []


class KillError(Exception):
    """What stands in for a kill."""


def test_a_run_killed_on_one_thread_is_finished_on_two(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that it only says it has, so that losses are the same and a busy machine is no slower."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model"))
    examples = encode_questions(checkpoint, picture_questions(["a red circle", "a blue square"]))
    settings = FewShotSettings(
        steps=4, validate_every=2, questions=2, negatives=1, hard=1.0, rank=2, hidden=8
    )
    whole = fit_adapter(checkpoint, examples, settings)

    def die(step: int, *_: Any) -> None:
        if step == 3:
            raise KillError

    with suppress(KillError):
        fit_adapter(
            checkpoint, examples, settings, state_path=tmp_path / "run" / STATE_NAME, report=die
        )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    caplog.clear()
    resumed = fit_adapter(checkpoint, examples, settings, state_path=tmp_path / "run" / STATE_NAME)
    assert "1 thread of" in caplog.text
    assert "2 threads of" in caplog.text
    assert resumed.losses == whole.losses
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    caplog.clear()
    fit_adapter(checkpoint, examples, settings, state_path=tmp_path / "run" / STATE_NAME)
    assert not caplog.text  # no step was left


def test_the_command_warns_once_and_writes_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model")
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    rows = [
        f"{it}.png,{text},{int(it == text)}" for it in ("red", "blue") for text in ("red", "blue")
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,text,label", *rows]))
    command = "train --model model --data t.csv --out out --steps 2 --validation 0 --allow-worse"
    said = []
    for processor in ("ABACUS", "QUIPU"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda it=processor: it)
        done = CliRunner().invoke(cli, [*command.split(), "--copies", "0", "--threads", "1"])
        assert done.exit_code == 0, done.output
        said.append(done.stderr.count("warning: the run in out was computed with PyTorch"))
        state = torch.load(tmp_path / "out" / STATE_NAME, weights_only=True)
        state["losses"].pop()  # so that a step is left
        torch.save(state, tmp_path / "out" / STATE_NAME)
    assert said == [0, 1]
    assert (tmp_path / "out" / "adapter.json").exists()
