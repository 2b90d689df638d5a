"""Both trainings side by side: the same adapter, whatever happens to the second process."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import picture_questions, write_checkpoint

from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
from dsd_trt.train.question import Question
from dsd_trt.train.run.threads import computing_with

TEXTS = [f"a {colour} circle" for colour in ("red", "blue", "green", "white", "black", "grey")]
SETTINGS = FewShotSettings(
    steps=60, questions=2, negatives=1, rank=1, hidden=2, update_rank=1, copies=1, refit=True
)
Progress = Callable[[str, int, int | None, Mapping[str, float]], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return picture_questions(TEXTS)


@pytest.fixture(scope="module")
def one_by_one(
    model: str, questions: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """Weights of the adapter of two trainings on one thread, one after the other."""
    out = tmp_path_factory.mktemp("one by one") / "out"
    with computing_with(1):
        assert train_adapter(model, questions, SETTINGS, out, {}, 0.2).refit_losses
    return (out / "adapter.safetensors").read_bytes()


@pytest.fixture
def two_threads() -> Iterator[None]:
    with computing_with(2):
        yield


def nothing(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
    """Progress that is not shown."""


def train(model: str, questions: list[Question], out: Path, progress: Progress = nothing) -> bytes:
    """Weights of the adapter of two trainings side by side."""
    report = train_adapter(
        model, questions, SETTINGS, out, {}, 0.2, progress=progress, side_by_side=True
    )
    assert len(report.refit_losses) == SETTINGS.steps
    assert torch.get_num_threads() == 2
    assert not multiprocessing.active_children()
    return (out / "adapter.safetensors").read_bytes()


@pytest.mark.usefixtures("two_threads")
def test_the_adapter_is_that_of_two_trainings_one_after_the_other(
    model: str, questions: list[Question], one_by_one: bytes, tmp_path: Path
) -> None:
    steps: list[tuple[str, int]] = []

    def note(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        if stage.startswith("training") and done:
            steps.append((stage, done))

    assert train(model, questions, tmp_path / "out", note) == one_by_one
    first = [done for stage, done in steps if stage == "training"]
    assert first == [*range(1, 61)]
    assert [stage for stage, _ in steps[:60]] == ["training"] * 60  # the second is made beside it


@pytest.mark.usefixtures("two_threads")
def test_the_process_takes_no_ctrl_c(model: str, questions: list[Question], tmp_path: Path) -> None:
    """Not even while it imports its libraries: Python would print where it was."""
    blocked: list[int] = []

    def look(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        for process in multiprocessing.active_children() if not blocked else ():
            status = Path(f"/proc/{process.pid}/status").read_text()
            (mask,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.M)
            blocked.append(int(mask, 16))

    train(model, questions, tmp_path / "out", look)
    assert blocked[0] & 1 << signal.SIGINT - 1


@pytest.mark.usefixtures("two_threads")
def test_a_process_that_is_killed_costs_time_alone(
    model: str, questions: list[Question], one_by_one: bytes, tmp_path: Path
) -> None:
    killed: list[int | None] = []

    def kill(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        if (stage, done) == ("training", 5):
            for process in multiprocessing.active_children():
                process.kill()
                process.join()
                killed.append(process.exitcode)

    assert train(model, questions, tmp_path / "out", kill) == one_by_one
    assert killed == [-signal.SIGKILL]


@pytest.mark.usefixtures("two_threads")
def test_few_steps_and_one_thread_take_no_process(
    model: str, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr(training, "alongside", refuse)
    short = FewShotSettings(steps=2, questions=2, negatives=1, rank=1, hidden=2, refit=True)
    for name, settings, threads in (("short", short, 2), ("one", SETTINGS, 1)):
        with computing_with(threads):
            report = train_adapter(
                model, questions, settings, tmp_path / name, {}, 0.2, side_by_side=True
            )
        assert report.refit_losses


KILLED = """
import multiprocessing, os, signal, sys
import torch
from checkpoints import picture_questions
from test_alongside import SETTINGS, TEXTS
from dsd_trt.train.fewshot.training import train_adapter

def die(stage, done, total, figures):
    if stage == "training" and done == 3:
        (process,) = multiprocessing.active_children()
        print(process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    torch.set_num_threads(2)
    questions = picture_questions(TEXTS)
    from pathlib import Path
    run = (sys.argv[1], questions, SETTINGS, Path(sys.argv[2]), {}, 0.2)
    train_adapter(*run, progress=die, side_by_side=True)
"""


@pytest.mark.usefixtures("two_threads")
def test_the_process_ends_with_its_caller(
    model: str, questions: list[Question], one_by_one: bytes, tmp_path: Path
) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(KILLED)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests / "support"), str(tests / "train")])
    done = subprocess.run(
        [sys.executable, str(script), model, str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    pid, ended = int(done.stdout), time.monotonic() + 60
    while _runs(pid):
        assert time.monotonic() < ended
        time.sleep(0.1)
    assert train(model, questions, out) == one_by_one  # which goes on where it was


@pytest.mark.parametrize("stage", ["encoding", "training"])
def test_ctrl_c_ends_both_with_one_word(model: str, tmp_path: Path, stage: str) -> None:
    """A terminal sends it to both processes, also while the second imports its libraries."""
    command = [sys.executable, "-m", "dsd_trt", "train", "--model", model, "--threads", "2"]
    command += ["--data", "shapes-comvg", "--limit", "12", "--steps", "2000", "--validation", "0.3"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if f"] {stage}" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
