"""Files that are written whole or not at all, whatever stops the writing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import write_adapter, write_checkpoint
from full_disk import files_of_at_most

from dsd_trt.errors import DsdError, InputError, ModelError
from dsd_trt.files.unfinished import is_unfinished
from dsd_trt.files.whole import append, whole, whole_lines, write_whole
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.run.state import load_state, save_state
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.shapes.vae import train_vae


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may handle it but `finally`."""


class Replacements:
    """Kills at the n-th moment at which a file gets its name: before it, or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.left, self.after, self.real = at, after, Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: self.replace(path, to))

    def replace(self, path: Path, target: Path) -> Path:
        self.left -= 1
        if self.left < 0 and not self.after:
            raise Killed
        done = self.real(path, target)
        if self.left < 0:
            raise Killed
        return done


@pytest.mark.parametrize("content", ["grün\r\n", b"\0\xff", b""])
def test_what_is_written_is_there_and_nothing_else(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        write_whole(path, content)
        expected = content.encode() if isinstance(content, str) else content
        assert path.read_bytes() == expected
    assert [it.name for it in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("before", [None, b"before"])
def test_an_error_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def unchanged() -> bool:
        left = [it for it in tmp_path.iterdir() if it != path]
        return not left and (path.read_bytes() if path.exists() else None) == before

    def fail() -> None:
        with whole(path) as file:
            file.write(b"after")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert unchanged()
    with files_of_at_most(100), pytest.raises(DsdError, match=r"cannot write '.*file': File too"):
        write_whole(path, b"x" * 101)
    assert unchanged()


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dsd_trt.files.whole import whole\n"
        "with whole(Path(sys.argv[1])) as file:\n"
        "    file.write(b'after')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    (left,) = (it for it in tmp_path.iterdir() if it != path)
    assert is_unfinished(left)
    assert not is_unfinished(path)
    write_whole(path, "after")
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay_links_and_devices_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "content"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "file"):
        with pytest.raises(DsdError, match="cannot write"):
            write_whole(path, "")
    assert [it.name for it in tmp_path.iterdir()] == ["folder"]


def test_a_line_cut_short_is_cut_off(tmp_path: Path) -> None:
    assert whole_lines(tmp_path / "absent", str) == []
    path = tmp_path / "lines"
    path.write_bytes("one\u2028\ntwo\nthö".encode()[:-1])  # U+2028 ends no line
    assert whole_lines(path, str) == ["one\u2028", "two"]
    with path.open("a") as file:
        file.write("three\n")
    assert whole_lines(path, str) == ["one\u2028", "two", "three"]


def test_losses_go_on_after_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')
    log = LossLog(path)
    assert log.rows == {0: {"loss": 2.0}}
    log.add(1, {"loss": 1.0})
    assert LossLog(path).rows == {0: {"loss": 2.0}, 1: {"loss": 1.0}}


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[]", b"{}", b'{"step": "2"}', b"\0\0", b""])
def test_from_a_damaged_line_on_losses_are_written_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "losses.jsonl"
    good = [b'{"step": %d, "loss": 1.0}' % step for step in range(3)]
    path.write_bytes(b"\n".join([*good[:2], damage, good[2], b""]))
    assert list(LossLog(path).rows) == [0, 1]
    assert "losses.jsonl, line 3 is damaged" in caplog.text
    assert path.read_bytes() == b"\n".join([*good[:2], b""])
    path.write_bytes(damage + b"\n")
    with pytest.raises(InputError, match=r"losses\.jsonl is damaged or not a file of this run"):
        LossLog(path)
    assert path.read_bytes() == damage + b"\n"  # it may be somebody's


def test_a_full_disk_appends_whole_lines_or_none(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append(path, "one\n")
    with files_of_at_most(10), pytest.raises(DsdError, match=r"cannot write '.*lines': File too"):
        append(path, "two\nthree\n")
    append(path, "four\n")
    assert path.read_text() == "one\nfour\n"


def flip(content: bytes) -> bytes:
    return content[:200] + bytes(255 - byte for byte in content[200:300]) + content[300:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: b"something else",
        lambda content: bytes(len(content)),
        flip,
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "run.ckpt"
    save_state(path, {"step": 1, "weights": torch.arange(1000.0)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=r"cannot resume from .*run\.ckpt: .*Delete it"):
        load_state(path)


def test_a_checkpoint_that_lacks_something_is_named(tmp_path: Path) -> None:
    save_state(tmp_path / "vae.ckpt", {"vae": {}, "step": 1})
    with pytest.raises(ModelError, match=r"cannot resume from .*vae\.ckpt: "):
        train_vae(tmp_path, seed=0, steps=1, batch=1)


def test_training_state_survives_a_full_disk_which_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    save_state(path, {"step": 1})
    with files_of_at_most(50_000), pytest.raises(DsdError, match=r"run\.ckpt': File too large"):
        save_state(path, {"step": 2, "weights": torch.zeros(100_000)})
    assert (load_state(path) or {})["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("trained")
    return Adapter.load(write_adapter(folder / "adapter", write_checkpoint(folder / "model")))


def changed(adapter: Adapter, number: float) -> Adapter:
    """An adapter that differs in both of its files."""
    state = {name: torch.full_like(it, number) for name, it in adapter.prompt_state.items()}
    return replace(adapter, prompt_state=state, a=number)


def number_of(folder: Path) -> float:
    """Which it is; both files say the same."""
    adapter = Adapter.load(folder)
    values = {float(value) for it in adapter.prompt_state.values() for value in it.flatten()}
    assert values == {adapter.a}
    return adapter.a


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", range(3))
def test_an_adapter_is_the_old_or_the_new_one(
    trained: Adapter, moment: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    changed(trained, 1).save(folder)
    found = 1.0
    for number in (2.0, 3.0):  # killed twice in a row, at the same moment
        with monkeypatch.context() as patch:
            Replacements(patch, moment, after=after)
            with pytest.raises(Killed):
                changed(trained, number).save(folder)
        assert number_of(folder) in (found, number)
        found = number_of(folder)
    changed(trained, 4).save(folder)
    assert number_of(folder) == 4
    names = {it.name for it in folder.iterdir()}
    assert names == {"adapter.json", "adapter.safetensors"}


@pytest.mark.parametrize("moment", range(2))
def test_an_adapters_first_save_is_there_or_not(
    trained: Adapter, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Replacements(patch, moment, after=False)
        with pytest.raises(Killed):
            changed(trained, 1).save(tmp_path)
    with pytest.raises(ModelError, match=r"no adapter in .*adapter\.json"):
        Adapter.load(tmp_path)


def swap_weights(folder: Path, other: Path) -> None:
    (folder / "adapter.safetensors").write_bytes((other / "adapter.safetensors").read_bytes())


def remove_weights(folder: Path, other: Path) -> None:
    (folder / "adapter.safetensors").unlink()


@pytest.mark.parametrize("damage", [swap_weights, remove_weights])
def test_files_of_two_adapters_are_refused(
    trained: Adapter, damage: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    for number in (1, 2):
        changed(trained, number).save(tmp_path / str(number))
    damage(tmp_path / "1", tmp_path / "2")
    with pytest.raises(ModelError, match=r"adapter\.safetensors is missing, or not the file that"):
        Adapter.load(tmp_path / "1")


def test_what_fails_in_the_block_is_not_said_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole(path):
        (tmp_path / "other" / "elsewhere").read_bytes()
    with pytest.raises(DsdError, match=r"cannot write .*out.*Input/output error"), whole(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("my diary, one line without its end")
    with pytest.raises(InputError, match="is not a file of this run"):
        whole_lines(path, json.loads)
    assert path.read_text() == "my diary, one line without its end"
    path.write_text('{"cut": ')  # a first line that a kill cut short
    assert whole_lines(path, json.loads) == []
