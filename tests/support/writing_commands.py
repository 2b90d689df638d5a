"""A pytest plugin: every command that writes files and needs no GPU, with its inputs.

`score --resume` has its own tests in test_resume.py, and `triton` in tests/serving.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_adapter, write_checkpoint
from kills import Command
from PIL import Image
from torture import SLICE

from dsd_trt import Bundle

TRAINED = "torch, diffusers, transformers, onnxruntime"


def without_times(name: str, content: bytes) -> object:
    """Remove times from reports and logs; of a repeated training step the last losses count."""
    if name == "losses.jsonl":
        return {row.pop("step"): row for row in map(json.loads, content.splitlines())}
    if name.endswith((".png", ".pdf", ".ckpt")):
        return True
    return re.sub(rb'took \d+ minutes.*|"seconds": [^,}]*', b"", content)


def write_photos(folder: Path, count: int = 120) -> None:
    rng = np.random.default_rng(7)
    (folder / "photos").mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        path = folder / f"photos/{number:03}.png"
        Image.fromarray(pixels).save(path)
        os.utime(path, (number, number))  # an index stores modification times
    texts = (f"{color} dog {i}\n" for i, color in enumerate(("red", "green", "blue") * 100))
    (folder / "texts.txt").write_text("".join(texts))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights, for commands that read one."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model")


Make = Callable[[pytest.FixtureRequest], Command]


def stand_in(request: pytest.FixtureRequest) -> list[str | Path]:
    bundle: Bundle = request.getfixturevalue("bundle")
    return ["--bundle", bundle.folder, "--engine", "onnxruntime"]


def score(form: str) -> Make:
    return lambda request: Command(
        ["score", "photos", "texts.txt", "-f", form, "-o", f"out.{form}", *stand_in(request)],
        kills=12,
        prepare=write_photos,
    )


def write_tables(folder: Path) -> None:
    """Photos, a table of pairs, and one of labelled pairs; a photo is missing, one is broken."""
    write_photos(folder, 40)
    (folder / "photos/007.png").write_bytes(b"broken")
    (folder / "photos/013.png").unlink()
    words = ("red", "green", "blue")
    rows = [f"photos/{n % 40:03}.png,{words[n % 3]} dog {n % 7},{n % 2}" for n in range(400)]
    (folder / "pairs.csv").write_text("image,text,source\n" + "\n".join(rows))
    (folder / "labelled.csv").write_text("image,text,label\n" + "\n".join(rows))


def score_pairs(form: str) -> Make:
    return lambda request: Command(
        ["score", "--pairs", "pairs.csv", "-o", f"out.{form}", *stand_in(request)],
        kills=12,
        code=3,
        prepare=write_tables,
    )


def filter_pairs(output: str) -> Make:
    """With copies of images and the dropped rows, each whole or not there."""
    options = ("--dropped", "dropped.parquet", "--copy-to", "copies", "--force")
    return lambda request: Command(
        ["filter", "pairs.csv", "--keep-best", "40%", "-o", output, *options, *stand_in(request)],
        kills=16,
        code=3,
        prepare=write_tables,
    )


def calibrate(request: pytest.FixtureRequest) -> Command:
    """In place: at any moment the old or the new bundle is there."""
    bundle: Bundle = request.getfixturevalue("bundle")

    def prepare(folder: Path) -> None:
        write_tables(folder)
        shutil.copytree(bundle.folder, folder / "out")

    return Command(
        ["calibrate", "out", "--data", "labelled.csv"],
        kills=12,
        modules="dsd_trt.commands.calibration_report, dsd_trt.scorer, onnxruntime",
        code=3,
        prepare=prepare,
    )


def index(request: pytest.FixtureRequest) -> Command:
    return Command(
        ["index", "photos", "out", "--shard-size", "8", *stand_in(request)],
        kills=24,
        modules="dsd_trt.index.writer, dsd_trt.scorer, onnxruntime",
        prepare=write_photos,
    )


def evaluate(request: pytest.FixtureRequest) -> Command:
    bundle: Bundle = request.getfixturevalue("bundle")
    arguments: list[str | Path] = ["eval", bundle.folder, "--data", "shapes-comvg", "--out", "out"]
    return Command(
        [*arguments, "--limit", "60", "--engine", "onnxruntime"],
        kills=16,
        modules="dsd_trt.train.commands.evaluate, matplotlib.pyplot, onnxruntime",
        compared=without_times,
        long=True,
    )


def sign(request: pytest.FixtureRequest) -> Command:
    import minisign  # of the extra "test"

    bundle: Bundle = request.getfixturevalue("bundle")

    def prepare(folder: Path) -> None:
        shutil.copytree(bundle.folder, folder / "out")
        (folder / "key").write_bytes(secret)

    secret = bytes(minisign.KeyPair.generate().secret_key)
    return Command(
        ["sign", "out", "--key", "key"],
        kills=8,
        modules="dsd_trt.signature, minisign",
        compared=lambda name, content: name == "key" or without_timestamp(content),
        prepare=prepare,
    )


def without_timestamp(content: bytes) -> bytes:
    """Keep the line that signs the content; the others are a timestamp and its signature."""
    if b"timestamp:" not in content:
        return content
    return b"\n".join(content.splitlines()[1:2])


def adapt(request: pytest.FixtureRequest) -> Command:
    """`adapt` in place: at any moment the old or the new bundle is there, complete."""
    fed: Bundle = request.getfixturevalue("fed_fp32")
    base: Path = request.getfixturevalue("checkpoint_folder")

    def prepare(folder: Path) -> None:
        shutil.copytree(fed.folder, folder / "out")
        write_adapter(folder / "adapter", base, seed=5)

    return Command(
        ["adapt", "out", "adapter", "--out", "out", "--force"],
        kills=12,
        modules=f"dsd_trt.export.exporter, {TRAINED}",
        replaces=True,
        long=True,
        prepare=prepare,
    )


def export(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("tiny_model")
    return Command(
        [
            *("export", "--model", model, "--out", "out", "--verify", "quick", "--levels", "0.4"),
            "--cuda-form",
        ],
        kills=6,
        modules=f"dsd_trt.export.exporter, {TRAINED}, onnxscript",
        replaces=True,
        long=True,
    )


def train(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("tiny_model")
    options = ("--limit", "8", "--steps", "8", "--batch", "2", "--validate-every", "3")
    return Command(
        ["train", "--model", model, "--data", "shapes-comvg", "--out", "out", *options],
        kills=16,
        modules=f"dsd_trt.train.commands.train, {TRAINED}, accelerate",
        compared=without_times,
        long=True,
    )


def make_random(request: pytest.FixtureRequest) -> Command:
    return Command(
        ["make-random", "--family", "sd15", "--tiny", "--out", "out"],
        kills=10,
        modules=f"dsd_trt.train.commands.make_random, {TRAINED}",
        replaces=True,
        long=True,
    )


def pretrain(what: str, kills: int) -> Make:
    return lambda request: Command(
        ["pretrain", what, "--smoke", "--out", "out"],
        kills=kills,
        modules=f"dsd_trt.train.shapes.pretrain, {TRAINED}, matplotlib.pyplot",
        compared=without_times,
        long=True,
    )


def ablate(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("tiny_model")
    return Command(
        ["ablate", "--model", model, "--data", "shapes-comvg", "--limit", "4", "--out", "out"],
        kills=8,
        modules=f"dsd_trt.train.commands.ablate, {TRAINED}, matplotlib.pyplot",
        compared=without_times,
        long=True,
    )


def reproduce(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("tiny_model")
    options = ("--questions", "3", "--examples", "4", "--steps", "2")
    return Command(
        ["reproduce", "--model", model, *options, "--out", "out"],
        kills=6,
        modules=f"dsd_trt.train.commands.reproduce, {TRAINED}, accelerate, matplotlib.pyplot",
        compared=without_times,
        long=True,
    )


COMMANDS: dict[str, Make] = {
    "score -f json": score("json"),
    "score -f csv": score("csv"),
    "score --pairs -o out.csv": score_pairs("csv"),
    "score --pairs -o out.parquet": score_pairs("parquet"),
    "filter -o kept.csv": filter_pairs("kept.csv"),
    "filter -o kept/": filter_pairs("kept/"),
    "calibrate": calibrate,
    "index": index,
    "eval": evaluate,
    "sign": sign,
    "adapt": adapt,
    "export": export,
    "train": train,
    "make-random": make_random,
    "pretrain shapes": pretrain("shapes", 6),
    "pretrain tiny-clip": pretrain("tiny-clip", 6),
    "ablate": ablate,
    "reproduce": reproduce,
}


@pytest.fixture
def command(name: str, request: pytest.FixtureRequest) -> Command:
    """The command whose name the test is parametrized with."""
    made = COMMANDS[name](request)
    if made.long and SLICE:
        pytest.skip("too long for a slice")
    return made
