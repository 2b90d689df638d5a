"""--threads of the commands that compute with PyTorch, as PyTorch reports it at their work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from click.testing import CliRunner
from PIL import Image

from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError

WORK = {
    "train --data good.csv --out out": "fewshot.training.train_adapter",
    "eval model --adapter none --data good.csv": "evaluation.by_model.by_model",
    "ablate --data good.csv --out out": "diffusion.checkpoint.read_checkpoint",
    "reproduce --out out": "evaluation.reproduction.reproduce",
    "baseline clip --method zero-shot --data good.csv": "baselines.clip.load_clip",
    "pretrain shapes --smoke --out out": "shapes.pretrain.pretrain_shapes",
}
"""Commands, each with the function that does its work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_checkpoint(folder / "model")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "a.png")
    (folder / "good.csv").write_text("image,text,label\na.png,a dog,1\na.png,a cat,0\n")
    return folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """PyTorch's number of threads before a command, which is none of those asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", WORK)
def test_the_work_has_the_threads_asked_for(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: list[int] = []

    def work(*_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        raise InputError("that is enough")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(f"dsd_trt.train.{WORK[command]}", work)
    monkeypatch.setattr("dsd_trt.train.baselines.folder.require_clip", lambda _: None)
    model = [] if command.startswith(("eval", "baseline", "pretrain")) else ["--model", "model"]
    for asked, environment in (
        ([], {}),
        (["--threads", "3"], {}),
        ([], {"DSD_TRT_THREADS": "1"}),
        (["--threads", "3"], {"DSD_TRT_THREADS": "1"}),
    ):
        done = CliRunner(env=environment).invoke(cli, [*command.split(), *model, *asked])
        assert "that is enough" in done.output, done.output
        assert torch.get_num_threads() == threads
    assert seen == [threads, 3, 1, 3]
