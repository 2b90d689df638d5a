"""Everything at once, small: every method on every data set, and a run that goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import write_adapter, write_checkpoint
from click.testing import CliRunner

from dsd_trt.commands.main import cli
from dsd_trt.train.fewshot import training
from dsd_trt.train.fewshot.comparison import Comparison

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("reproduce")
    model = write_checkpoint(folder / "model")
    write_adapter(model / "adapter", model)
    clip = folder / "clip"
    done = CliRunner().invoke(cli, ["pretrain", "tiny-clip", "--out", str(clip), "--smoke"])
    assert done.exit_code == 0, done.output
    return [
        "reproduce", "--model", str(model), "--clip", str(clip / "model"), "--questions", "6",
        "--examples", "8", "--steps", "2", "--out", str(folder / "out"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def report(arguments: list[str]) -> str:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_method_answers_every_data_set(report: str) -> None:
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:]
        for line in report.splitlines()
        if re.match(r"\| (method|CLIP|DSD|chance)", line)
    }
    assert list(rows) == [
        "method",
        "CLIP zero-shot",
        "CLIP fine-tuning",
        "CLIP prompt-learning",
        "DSD zero-shot",
        "DSD as shipped",
        "DSD few-shot",
        "DSD few-shot with denoising term",
        "chance",
    ]
    columns = rows.pop("method")
    assert "shapes-comvg: subject" in columns
    assert "shapes-refcocog: text of ten (top-5)" in columns
    assert "shapes-vqa: binary" in columns
    for row in rows.values():
        assert len(row) == len(columns)
        assert all(0 <= float(cell) <= 100 for cell in row)
    chance = dict(zip(columns, rows["chance"], strict=True))
    assert chance["shapes-comvg: all"] == "50.0"
    assert chance["shapes-refcocog: text of ten"] == "10.0"
    assert chance["shapes-refcocog: text of ten (top-5)"] == "50.0"


def test_as_shipped_is_the_model_s_own_adapter(report: str, arguments: list[str]) -> None:
    assert "DSD as shipped has the model's own adapter" in report
    model, out = (arguments[arguments.index(option) + 1] for option in ("--model", "--out"))
    command = ["eval", model, "--data", "shapes-comvg", "--limit", "6", "-f", "json"]
    for name, adapter in (("DSD-as-shipped", "own"), ("DSD-zero-shot", "none")):
        done = CliRunner().invoke(cli, [*command, "--adapter", adapter])
        assert done.exit_code == 0, done.output
        saved = json.loads((Path(out) / "shapes-comvg" / name / "figures.json").read_text("utf-8"))
        assert saved["figures"] == json.loads(done.stdout)["figures"]


def test_it_has_the_ablations_and_its_terms(report: str) -> None:
    for figure in range(3, 7):
        assert f"Figure {figure}" in report
    assert "- steps: 2" in report
    assert re.search(r"seed 0, per data set 6 test questions and 8 few-shot examples", report)
    assert "torch" in report


def test_a_finished_run_is_not_done_again(report: str, arguments: list[str]) -> None:
    out = Path(arguments[-1])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("figures.json")}
    assert len(before) == 21
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("figures.json")} == before
    assert (out / "reproduction.md").read_text("utf-8") == again.stdout
    assert "21 parts having been done by earlier ones" in again.stdout
    minutes = r"took \d+ minutes?(, \d+ parts having been done by earlier ones)?"
    assert re.sub(minutes, "", again.stdout) == re.sub(minutes, "", report)


def test_an_adapter_that_is_worse_is_a_result_too(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` refuses to write one unless it is told to, with an option that this has not."""
    worse = Comparison(held_out=True, before=(True,) * 9, after=(False,) * 9)
    assert worse.worse
    monkeypatch.setattr(training, "compare", lambda *_, **__: worse)
    model = arguments[arguments.index("--model") + 1]
    command = ["reproduce", "--model", model, "--questions", "2", "--examples", "8"]
    done = CliRunner().invoke(cli, [*command, "--steps", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "| DSD few-shot |" in done.stdout
