"""A pytest plugin: run `dsd-trt` inside this process, on the stand-in bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsd_trt import Bundle
from dsd_trt.commands.main import main


@dataclass(frozen=True)
class Run:
    """Outcome of a command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def dsd_trt(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Run]:
    """A function that runs a command with ONNX Runtime, in an empty folder of the test.

    A test can name another bundle or engine.
    """
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Run:
        own = {"--bundle": str(bundle.folder), "--engine": "onnxruntime"}
        options = [it for name in own.keys() - {*arguments} for it in (name, own[name])]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options])
        captured = capsys.readouterr()
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return command
