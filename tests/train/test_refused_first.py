"""What cannot work is refused before a model is read, and leaves nothing that blocks another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import pytest
from checkpoints import picture_questions, write_adapter, write_checkpoint
from click.testing import CliRunner

from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import SUBCOMMANDS, cli
from dsd_trt.engine import engine_names
from dsd_trt.engine.onnxruntime import libraries
from dsd_trt.errors import InputError, ModelError
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.place import find_place, require_small_weights, require_weights
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
from dsd_trt.train.question import Question
from dsd_trt.train.run_key import claim
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import adapter_hash

TEXTS = ["a red circle", "a blue square", "a green star", "a white ring"]
SETTINGS = FewShotSettings(steps=2, questions=2, negatives=1, rank=1, hidden=2, validate_every=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("train --mode both --head-weights dynamic", "head weights that are not dynamic"),
        ("train --mode matrix --score denoising", "train with --mode pair"),
        ("train --mode matrix --score attention+denoising", "train with --mode pair"),
        ("train --levels 0.2,2", "between 0 and 1"),
        ("train --levels 0.2,0.2", "distinct"),
        ("train --levels nan", "between 0 and 1"),
        ("train --validation 1", "not in the range"),
        ("reproduce --levels 0,0.2", "between 0 and 1"),
        ("export --levels 2", "between 0 and 1"),
        ("export --levels 0.4,0.4", "distinct"),
        ("export --score-layers foo", "no cross-attention layers 'foo'"),
        ("export --score-layers last:0", "no cross-attention layers 'last:0'"),
        ("export --score-layers 0,,1", "no cross-attention layers '0,,1'"),
        ("export --score-layers=-1", "no cross-attention layers '-1'"),
        ("export --score released --score-layers 0", "layers of its own"),
        ("export --matrix --score denoising", "export with --no-matrix"),
        ("export --adapter ADAPTER --matrix", "export with --no-matrix"),
        ("export --adapter ADAPTER --score denoising", "leave out --score"),
        ("export --query-pool 2", "add --matrix"),
        ("export --adapter-input", "name one with --adapter"),
        ("bench --contenders nobody", "no contender 'nobody'"),
        ("bench -o nowhere/figures.json", "cannot write"),
        ("eval nowhere --adapter ADAPTER --mode matrix", "score with --mode pair"),
        ("ablate --adapter EMPTY", "no adapter in"),
        ("ablate --data nothing", "no data set 'nothing'"),
    ],
)
def test_contradicting_options_are_refused_before_a_model_is_looked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, complaint: str
) -> None:
    """The model does not exist, so that a command which opens it first complains of that."""
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "ADAPTER", model, head_mode="dynamic")
    (tmp_path / "EMPTY").mkdir()
    name, *options = command.split()
    if name in ("train", "export", "ablate", "reproduce"):
        # Export's contradictions depend on the adapter, and the default is the model's own.
        options += ["--model", str(model) if name == "export" else "nowhere", "--out", "out"]
    if name in ("train", "eval", "ablate") and "--data" not in options:
        options += ["--data", "shapes-comvg"]
    if name == "bench":
        options += ["--bundle", "nowhere"]
    done = CliRunner().invoke(cli, [name, *options])
    assert done.exit_code == 2, done.output
    assert complaint in " ".join(done.output.split())
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "adapter.json",
        "adapter.safetensors",
    }


ENGINE = {
    "score": ("nowhere.png", "nowhere.txt"),
    "explain": ("nowhere.png", "a dog", "-o", "out.png"),
    "filter": ("damaged.csv", "--keep-best", "1", "-o", "out.csv"),
    "index": ("nowhere.png", "out"),
    "calibrate": ("shapes", "--data", "damaged.csv", "--dry-run"),
    "eval": (str(EMBEDDED), "--data", "nothing"),
}
"""Commands with the engines that score, each with data that it would complain of."""


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        (("--engine", "onnxruntime-cuda"), "To score on the processor: --engine openvino or"),
        (("--device", "7"), "no engine works on GPU 7: "),
    ],
)
@pytest.mark.parametrize("name", ENGINE)
def test_an_engine_that_is_impossible_here_is_refused_before_rows_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    engine: tuple[str, str],
    complaint: str,
) -> None:
    monkeypatch.setattr("dsd_trt.engine.driver._asked", lambda: "NVIDIA's driver is on strike")
    monkeypatch.setattr(libraries, "load_cuda", libraries.load_cuda.__wrapped__)
    monkeypatch.chdir(tmp_path)
    rows = b"image,text,label\n" + b"a.png,a dog,1\n" * 10_000  # the header is read first
    (tmp_path / "damaged.csv").write_bytes(rows + b"\xff\xfe\x00")
    data = CliRunner().invoke(cli, [name, *ENGINE[name]])
    assert data.exit_code == 2, data.output
    done = CliRunner().invoke(cli, [name, *ENGINE[name], *engine])
    assert done.exit_code == 4, done.output
    assert complaint in done.output
    assert "NVIDIA's driver is on strike" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.csv"]


def test_these_are_all_commands_with_such_an_engine() -> None:
    names = {
        name
        for name in SUBCOMMANDS
        if (command := cli.get_command(click.Context(cli), name)) is not None
        for option in command.params
        if isinstance(option.type, click.Choice) and {*option.type.choices} == {*engine_names()}
    }
    assert names - {"doctor"} == ENGINE.keys()  # which reads no rows


def test_a_layer_the_model_lacks_is_refused_before_weights_are_hashed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "adapter", model)
    Adapter.load(adapter)
    replace(Adapter.load(adapter), base={"unet": "of another model"}).save(adapter)
    for option in ("--score-layers=last:99", "--score-layers=0,6", "--query-pool=99"):
        command = ["export", "--model", str(model), "--adapter", str(adapter), "--matrix"]
        done = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out"), option])
        assert done.exit_code == 2
        assert "trained on another model" not in done.output
        assert option.partition("=")[2] in done.output


@pytest.mark.parametrize("name", ["x" * 300, "../secret", "/etc/hostname", "a\0b", "\ud800", ""])
def test_weights_of_odd_names_are_never_looked_for(model: Path, name: str) -> None:
    """An adapter's file may name anything; whether it fits is then said once the model is open."""
    (model.parent / "secret").write_text("of somebody else")
    require_small_weights(find_place(model), {name: "0" * 64})
    with pytest.raises(ModelError, match="trained on another model"):
        require_weights({name: "0" * 64}, {})


def test_small_weights_of_another_model_are_named(model: Path) -> None:
    hashes = dict(read_checkpoint(model).weight_hashes)
    require_small_weights(find_place(model), hashes)
    name = "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match=f"{name} differs"):
        require_small_weights(find_place(model), {**hashes, name: "0" * 64})


def test_a_run_that_failed_before_its_first_state_blocks_no_other(
    model: Path, tmp_path: Path
) -> None:
    out, questions = tmp_path / "out", picture_questions(TEXTS)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    torn = [Question("k", ((tmp_path / "torn.png", "a"), (tmp_path / "torn.png", "b")), 0, "s")]
    with pytest.raises(InputError):
        train_adapter(str(model), torn, SETTINGS, out, {}, validation=0)
    assert not out.exists()
    out.mkdir()
    (out / "plan.json").write_text('{"of": "a run that was killed before its first state"}')
    train_adapter(str(model), questions, SETTINGS, out, {}, validation=0)
    assert len(json.loads((out / "report.json").read_text())["losses"]) == 2
    with pytest.raises(InputError, match="other settings"):
        train_adapter(str(model), questions, replace(SETTINGS, steps=3), out, {}, validation=0)


def test_folders_without_a_result_block_no_other_reproduction(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0}, ("comvg", "ablation"))
    (tmp_path / "comvg" / "DSD-few-shot").mkdir(parents=True)
    claim(tmp_path, {"seed": 1}, ("comvg", "ablation"))
    (tmp_path / "comvg" / "DSD-few-shot" / "answers.jsonl").touch()
    claim(tmp_path, {"seed": 1}, ("comvg", "ablation"))
    with pytest.raises(InputError, match="seed was 1, and now is 2"):
        claim(tmp_path, {"seed": 2}, ("comvg", "ablation"))


class KillError(Exception):
    """What stands in for a kill."""


def test_the_folder_of_an_unfinished_training_says_how_to_go_on(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def die(stage: str, done: int, total: int | None, figures: Mapping[str, float]) -> None:
        if stage == "training" and done == 2:
            raise KillError

    questions = picture_questions(TEXTS)
    with pytest.raises(KillError):
        train_adapter(str(model), questions, SETTINGS, out, {}, 0, progress=die)
    assert (out / "training.ckpt").exists()
    for read in (Adapter.load, adapter_hash):
        with pytest.raises(ModelError, match=r"has not finished: go on with .* dsd-trt train"):
            read(out)
    command = ["export", "--model", str(model), "--adapter", str(out), "--out", "nowhere"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2
    assert f"dsd-trt train ... --out {out}" in " ".join(done.output.split())
    train_adapter(str(model), questions, SETTINGS, out, {}, 0)
    Adapter.load(out)
