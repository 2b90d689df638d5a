"""Copies of large files: never the same file under two names, and never without room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.files import disk
from dsd_trt.files.disk import clone_or_copy, nearest_folder, require_room


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights.data"
    path.write_bytes(os.urandom(3_000_001))
    return path


def test_a_copy_is_a_file_of_its_own(source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    taken = clone_or_copy(source, tmp_path / "copy")
    assert taken in (0, len(content))
    assert (tmp_path / "copy").read_bytes() == content
    assert source.stat().st_nlink == (tmp_path / "copy").stat().st_nlink == 1
    with (tmp_path / "copy").open("r+b") as stream:
        stream.write(b"changed")
    assert source.read_bytes() == content


def test_a_link_is_copied_as_the_file_it_leads_to(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source.name)
    clone_or_copy(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("link", [False, True])
def test_what_is_there_is_never_written_through(source: Path, tmp_path: Path, link: bool) -> None:
    """A copy of before may be a hard link to somebody's own weights."""
    (tmp_path / "own").write_text("somebody's")
    if link:
        (tmp_path / "copy").symlink_to("own")
    else:
        (tmp_path / "copy").hardlink_to(tmp_path / "own")
    with pytest.raises(FileExistsError):
        clone_or_copy(source, tmp_path / "copy")
    assert (tmp_path / "own").read_text() == "somebody's"


def test_where_the_file_system_clones_nothing_is_taken(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(source: int, target: int) -> bool:
        os.sendfile(target, source, 0, os.fstat(source).st_size)
        return True

    monkeypatch.setattr(disk, "_clone", clone)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    require_room(tmp_path / "new", [source], "the copy", "Elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.data"]
    assert clone_or_copy(source, tmp_path / "copy") == 0
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_disk_without_room_is_refused_by_size_and_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    free = 2 * source.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    require_room(tmp_path / "a" / "b", [source] * 2, "the copy", "Elsewhere")
    with pytest.raises(InputError, match=rf"{tmp_path} has room for 6\.0 MB, and the copy needs"):
        require_room(tmp_path / "a" / "b", [source] * 3, "the copy", "Elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.data"]


def test_a_copy_that_fails_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="No space"):
        clone_or_copy(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_nearest_folder_is_the_innermost_that_exists(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path) == tmp_path
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
