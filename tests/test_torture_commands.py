"""Every command that writes: killed at random moments, without room, and two of them at once.

It ends with an undisturbed run's bytes. After each kill what is there is whole; at the end nothing
unfinished is left beside it. `score`
with --resume has its own tests in test_resume.py, folders in test_folders.py, `triton` in serving.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_adapter, write_checkpoint
from kills import KINDS, LONGEST, Command, begin, differ, kill_often, said
from PIL import Image
from small_disk import run_on_small_disk, small_disk
from torture import SLICE, Figures, scaled

from dsd_trt import Bundle

__all__ = ["small_disk"]

pytest_plugins = ("exported",)

TRAINED = "torch, diffusers, transformers, onnxruntime"
TABLE = "".join(f"{i}.png,a dog {i},{i % 2}\n" for i in range(24))


def without_times(name: str, content: bytes) -> object:
    """Reports tell the date and how long it took."""
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
        os.utime(path, (number, number))  # an index keeps them
    texts = (f"{color} dog {i}\n" for i, color in enumerate(("red", "green", "blue") * 100))
    (folder / "texts.txt").write_text("".join(texts))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
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


def index(request: pytest.FixtureRequest) -> Command:
    return Command(
        ["index", "photos", "out", "--shard-size", "8", *stand_in(request)],
        kills=24,
        modules="dsd_trt.index_writer, dsd_trt.scorer, onnxruntime",
        prepare=write_photos,
    )


def evaluate(request: pytest.FixtureRequest) -> Command:
    bundle: Bundle = request.getfixturevalue("bundle")
    arguments = ["eval", bundle.folder, "--data", "shapes-comvg", "--out", "out"]
    return Command(
        [*arguments, "--limit", "60", "--engine", "onnxruntime"],
        kills=16,
        modules="dsd_trt.train.commands.evaluate, matplotlib.pyplot, onnxruntime",
        compared=without_times,
    )


def sign(request: pytest.FixtureRequest) -> Command:
    minisign = pytest.importorskip("minisign", reason="the extra sign is not installed")
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
    """A signature says when it was made, and vouches for that."""
    if b"timestamp:" not in content:
        return content
    return b"\n".join(content.splitlines()[1:2])


def adapt(request: pytest.FixtureRequest) -> Command:
    """In place: what is there is the bundle before or the one after, and both are whole."""
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
    model: Path = request.getfixturevalue("model")
    return Command(
        ["export", "--model", model, "--out", "out", "--verify", "quick", "--levels", "0.4"],
        kills=6,
        modules=f"dsd_trt.export.exporter, {TRAINED}, onnxscript",
        replaces=True,
        long=True,
    )


def train(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("model")
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
    model: Path = request.getfixturevalue("model")
    return Command(
        ["ablate", "--model", model, "--data", "shapes-comvg", "--limit", "4", "--out", "out"],
        kills=8,
        modules=f"dsd_trt.train.commands.ablate, {TRAINED}, matplotlib.pyplot",
        compared=without_times,
        long=True,
    )


def reproduce(request: pytest.FixtureRequest) -> Command:
    model: Path = request.getfixturevalue("model")
    options = ("--questions", "3", "--examples", "4", "--steps", "2")
    return Command(
        ["reproduce", "--model", model, *options, "--out", "out"],
        kills=12,
        modules=f"dsd_trt.train.commands.reproduce, {TRAINED}, accelerate, matplotlib.pyplot",
        compared=without_times,
        long=True,
    )


COMMANDS: dict[str, Make] = {
    "score -f json": score("json"),
    "score -f csv": score("csv"),
    "index": index,
    "eval": evaluate,
    "sign": sign,
    "adapt": adapt,
    "export": export,
    "train": train,
    "make-random": make_random,
    "pretrain shapes": pretrain("shapes", 8),
    "pretrain tiny-clip": pretrain("tiny-clip", 6),
    "ablate": ablate,
    "reproduce": reproduce,
}


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_been(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(f"kills of `{name}` at random moments", *KINDS)
    kill_often(COMMANDS[name](request), tmp_path, figures)


# Disks


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_without_room_it_says_so_and_with_room_it_ends(
    name: str,
    small_disk: None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    figures: Figures,
) -> None:
    figures.look_for(
        "commands on a full or read-only disk", "lost", "left behind", "foreign exceptions", "wrong"
    )
    command = COMMANDS[name](request)
    if command.long and SLICE:
        pytest.skip("too long for a slice")
    whole = begin(command, tmp_path / "whole")
    before = size_of(whole)
    command.run(whole)
    after = command.written(whole)
    grown = size_of(whole) - before
    shares = (0.3,) if command.long else (0, 0.3, 0.8)
    for free in (None, *(int(grown * share) // 4096 * 4096 for share in shares)):
        folder = begin(command, tmp_path / f"with-{free}")
        first, second = run_on_small_disk(command.program, folder, free)
        case = f"{name}, {'read-only' if free is None else f'{free} bytes free'}"
        figures.ended("enough room" if first.code == command.code else "refused")
        if "Traceback" in first.said + second.said or first.code not in (command.code, 1, 2, 4):
            figures.fault("foreign exceptions", f"{case}: {first.code}, {first.said[-900:]}")
        elif first.code != command.code and not re.search(NO_ROOM, first.said):
            figures.fault("wrong", f"{case} says: {first.said[-300:]}")
        # An index takes up its next table again, or removes it.
        if left := [it for it in first.names if re.search(r"(?<!images\.parquet)\.part$", it)]:
            figures.fault("left behind", f"{case}: {left}")
        if second.code != command.code:
            figures.fault("lost", f"{case}, and then {second.code}: {second.said[-300:]}")
        elif (found := command.written(folder)) != after:
            figures.fault("lost", f"{case}: {differ(found, after)}")


NO_ROOM = r"No space left|Read-only file system|has room for"


def size_of(folder: Path) -> int:
    return sum(-(-it.stat().st_size // 4096) * 4096 for it in folder.rglob("*") if it.is_file())


# Two at once


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_end_as_one(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(
        "two processes that write the same", "lost", "doubled", "left behind", "foreign exceptions"
    )
    command = COMMANDS[name](request)
    if command.long and SLICE:
        pytest.skip("too long for a slice")
    whole = begin(command, tmp_path / "whole")
    command.run(whole)
    after = command.written(whole)
    draw = random.Random(name)
    for number in range(scaled(3 if command.long else 10, 2)):
        folder = begin(command, tmp_path / "twice")
        running = [command.start(folder)]
        time.sleep(draw.choice((0, 0, 0.05, 0.3)))
        running.append(command.start(folder))
        ended = []
        for process in running:
            process.communicate(timeout=LONGEST)
            ended.append(process.returncode)
        figures.ended(" and ".join(map(str, sorted(ended))))
        if not {*ended} <= {command.code, 2} or command.code not in ended:
            figures.fault("foreign exceptions", f"{name}, {number}: {ended} {said(folder)}")
        elif (found := command.written(folder)) != after:
            kind = "left behind" if found.keys() - after.keys() else "lost"
            figures.fault(kind, f"{name}, {number}: {differ(found, after)}")
