"""Folders that are whole at every moment, whatever stops the writing."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torture import Figures, scaled

from dsd_trt.errors import InputError
from dsd_trt.files import folders
from dsd_trt.files.folders import whole_folder
from dsd_trt.files.lock import sole_writer

WRITER = """
import itertools, sys
from pathlib import Path
from dsd_trt.files.folders import whole_folder
if sys.argv[2] == "no exchange":
    from dsd_trt.files import folders
    folders._exchange = lambda one, other: False
for number in itertools.count():
    with whole_folder(Path(sys.argv[1])) as folder:
        for name in "abc":
            (folder / name).write_text(str(number))
    print(number, flush=True)
"""


def fill(path: Path, content: str) -> None:
    with whole_folder(path) as folder:
        for name in "abc":
            (folder / name).write_text(content)


def content_of(path: Path) -> str:
    """What all files of a folder hold."""
    assert {it.name for it in path.iterdir()} == set("abc")
    (content,) = {it.read_text() for it in path.iterdir()}
    return content


def killed(path: Path, how: str, seconds: float) -> None:
    """Write a folder again and again, until a kill after so long."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("kills", [4, pytest.param(scaled(60), marks=pytest.mark.torture)])
def test_under_its_name_is_a_whole_folder_at_every_moment(
    tmp_path: Path, kills: int, figures: Figures
) -> None:
    figures.look_for("kills while a folder is exchanged", "half-written", "left behind")
    path = tmp_path / "bundle"
    for number in range(kills):
        killed(path, "exchange", 0.002 * (number % 20))
        with figures.attempt("half-written", f"kill {number}"):
            assert content_of(path).isdecimal()
    fill(path, "last")
    assert content_of(path) == "last"
    assert [it.name for it in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kills", [4, pytest.param(scaled(60), marks=pytest.mark.torture)])
def test_where_names_cannot_be_exchanged_the_next_run_brings_it_back(
    tmp_path: Path, kills: int, figures: Figures
) -> None:
    figures.look_for("kills while a folder is exchanged", "half-written", "left behind")
    path = tmp_path / "bundle"
    for number in range(kills):
        killed(path, "no exchange", 0.002 * (number % 20))
        with pytest.raises(ZeroDivisionError), whole_folder(path):
            raise ZeroDivisionError
        with figures.attempt("half-written", f"kill {number}"):
            assert content_of(path).isdecimal()
    assert [it.name for it in tmp_path.iterdir()] == ["bundle"]


def test_a_kill_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    fill(path, "first")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dsd_trt.files import folders\n"
        "folders._exchange = lambda one, other: False\n"
        "rename = Path.rename\n"
        "def once(path, to):\n"
        "    rename(path, to)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = once\n"
        "with folders.whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('second')\n"
    )
    run = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_folder(path):
        raise ZeroDivisionError
    assert content_of(path) == "first"
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    fill(path, "second")
    assert content_of(path) == "second"
    assert [it.name for it in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="needs renameat2")
def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / path.name).touch()
    assert folders._exchange(one, other)
    assert (one / "other").exists()
    assert (other / "one").exists()
    with pytest.raises(FileNotFoundError):
        folders._exchange(tmp_path / "absent", other)


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with whole_folder(path) as folder:
        (folder / "a").touch()
        told = f"bundle is being written by process {os.getpid()} on .* since .*Wait until"
        with pytest.raises(InputError, match=told), whole_folder(path):
            pass
    assert [it.name for it in tmp_path.iterdir()] == ["bundle"]
    assert [it.name for it in path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "東" * 85])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    for content in ("one", "two"):
        with whole_folder(tmp_path / name) as folder:
            (folder / "file").write_text(content)
    assert [it.read_text() for it in tmp_path.rglob("file")] == ["two"]
    assert [it.name for it in tmp_path.iterdir()] == [name]


def test_one_writes_at_a_time_and_locks_leave_nothing(tmp_path: Path) -> None:
    """Processes that count in one file lose no count, though the lock's file comes and goes."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dsd_trt.files.lock import sole_writer\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(100):\n"
        "    with sole_writer(path, wait=60):\n"
        "        path.write_text(str(int(path.read_text()) + 1))\n"
    )
    code = "import time; sleep = time.sleep; time.sleep = lambda s: sleep(s / 100)\n" + code
    counting = [subprocess.Popen([sys.executable, "-c", code, counter]) for _ in range(4)]
    assert [process.wait() for process in counting] == [0] * 4
    assert counter.read_text() == "400"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_killed_holder_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dsd_trt.files.lock import sole_writer\n"
        "with sole_writer(Path(sys.argv[1]), inside=True):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    assert [it.name for it in tmp_path.iterdir()] == [".lock"]
    with sole_writer(tmp_path, inside=True):
        pass
    assert not list(tmp_path.iterdir())
