"""What killed processes leave behind is told from what is at work, and removed."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsd_trt.files.unfinished import (
    abandoned,
    is_unfinished,
    remove_abandoned,
    unfinished_name,
)
from dsd_trt.files.whole import write_whole

WRITER = """
import sys, time
from pathlib import Path
from dsd_trt.files.unfinished import unfinished_name
path = Path(sys.argv[1])
print(ascii(unfinished_name(path.name)), flush=True)
time.sleep(600)
"""


@contextmanager
def writer(target: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that writes a target, and the name that it gave its unfinished file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield target.with_name(ast.literal_eval(process.stdout.readline())), process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_what_is_written_by_a_living_process_stays_and_goes_with_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with writer(target) as (file, process):
        file.write_text("half")
        write_whole(target, "whole")
        assert file.exists()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        write_whole(target, "whole")
        assert not file.exists()
    assert [it.name for it in tmp_path.iterdir()] == ["file"]


def test_folders_go_too_and_those_of_other_names_stay(tmp_path: Path) -> None:
    with writer(tmp_path / "bundle") as (folder, _):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights").write_text("half")
    remove_abandoned(tmp_path / "bun")
    remove_abandoned(tmp_path / "bundle.old")
    assert abandoned(tmp_path / "bundle") == [folder]
    remove_abandoned(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_another_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    """As after a boot, or once numbers have gone round."""
    name = unfinished_name("file")
    assert f".{os.getpid()}-" in name
    head, _, start = name.rpartition(f".{os.getpid()}-")
    other = tmp_path / f"{head}.{os.getpid()}-{'0' * 8}{start[8:]}"
    for path in (other, tmp_path / name):
        path.write_text("half")
    remove_abandoned(tmp_path / "file")
    assert [it.name for it in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("days", [6, 8])
def test_of_another_machine_only_what_is_a_week_old_goes(tmp_path: Path, days: int) -> None:
    owner = unfinished_name("x").split(".")[2]
    elsewhere = unfinished_name("file").replace(owner, "0123abcd")
    older = (".file.part", ".file.123456.part")  # as versions before wrote them
    fresh = tmp_path / elsewhere.replace("0123abcd", "0123abce")
    (fresh / "inside").mkdir(parents=True)
    for name in (elsewhere, *older):
        (tmp_path / name).write_text("half")
    for path in (tmp_path / elsewhere, fresh, *(tmp_path / name for name in older)):
        moment = path.stat().st_mtime - days * 24 * 3600
        os.utime(path, (moment, moment))
    remove_abandoned(tmp_path / "file")
    left = {it.name for it in tmp_path.iterdir()}
    # Of the folder, something inside has changed just now.
    assert left == {fresh.name} | ({elsewhere, *older} if days < 7 else set())


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 127)  # 254 bytes
    write_whole(target, "content")
    with writer(target) as (file, _):
        file.write_text("half")
        assert is_unfinished(file)
    write_whole(target, "again")
    assert [it.name for it in tmp_path.iterdir()] == [target.name]


def test_odd_names_are_names(tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"a[*]\xe9\n.b")
    with writer(target) as (file, _):
        file.write_text("half")
        write_whole(target, "content")
        assert file.exists()
    write_whole(target, "content")
    assert list(tmp_path.iterdir()) == [target]
