"""What files, directories and globs name: every image once, and no directory passed over."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.image.files import find_images


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def link(name: str, target: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(target)


def images(*arguments: str) -> list[str]:
    """Paths of images where all can be read."""
    found = find_images(arguments)
    assert found.unreadable == ()
    return [str(path) for path in found.images]


def test_links_to_directories_are_followed() -> None:
    touch("x/a.png", "elsewhere/b.png", "elsewhere/deep/c.png")
    link("x/more", "../elsewhere")
    assert images("x") == ["x/a.png", "x/more/b.png", "x/more/deep/c.png"]
    assert images("x/*") == images("x/**") == images("x/**/*") == images("x")
    assert images("x/*/*.png") == ["x/more/b.png"]
    assert images("x/**/deep") == images("x/**/c.*") == ["x/more/deep/c.png"]
    link("y", "x")
    assert images("y")[0] == "y/a.png"


def test_loops_end_and_a_directory_is_searched_once_by_its_own_path() -> None:
    touch("x/m/a.png", "x/m/n/b.png", "x/c.png")
    link("x/a-link", "m")
    link("x/m/n/up", "../..")
    link("x/m/n/self", ".")
    own = ["x/c.png", "x/m/a.png", "x/m/n/b.png"]
    for argument in ("x", "x/**", "x/**/*", "x/**/*.png", "**", "x/*"):
        assert images(argument) == own, argument
    assert images("x", "x/a-link", "x/m/n/up/m") == own
    link("x/one", "../z")
    link("x/two", "../z")
    touch("z/d.png")
    assert images("x") == sorted([*own, "x/one/d.png"])  # of two links the first


def test_a_link_to_a_file_is_a_file_of_its_own() -> None:
    touch("x/a.png", "blobs/0123")
    link("x/b.png", "a.png")
    link("x/c.png", "../blobs/0123")
    link("x/notes", "../blobs/0123")
    assert images("x") == ["x/a.png", "x/b.png", "x/c.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x/[ab].png", ["x/a.png", "x/b.png"]),
        ("x/?.jpg", ["x/c.jpg"]),
        ("*/*.png", ["x/a.png", "x/b.png"]),
        ("./x/*.png", ["x/a.png", "x/b.png"]),
        ("x/../x/*.png", ["x/../x/a.png", "x/../x/b.png"]),
        ("**/d.png", ["x/y/d.png", "x/y/z/d.png"]),
        ("x/**/z/**/d.png", ["x/y/z/d.png"]),
        ("x/y*", ["x/y/d.png", "x/y/z/d.png"]),
        ("x/.hid*/*", ["x/.hidden/e.png"]),
        ("x/[[]1].png", ["x/[1].png"]),
    ],
)
def test_globs(pattern: str, expected: list[str]) -> None:
    touch("x/a.png", "x/b.png", "x/c.jpg", "x/y/d.png", "x/y/z/d.png", "x/[1].png", "x/notes.txt")
    touch("x/.hidden/e.png", "x/.f.png", "x/y/.cache/g.png")
    if pattern == "*/*.png":
        expected = ["x/[1].png", *expected]
    if pattern in ("./x/*.png", "x/../x/*.png"):
        expected = [expected[0].replace("a.png", "[1].png"), *expected]
    assert images(pattern) == expected
    absolute = Path.cwd() / pattern
    assert [os.path.normpath(path) for path in images(str(absolute))] == [
        os.path.normpath(Path.cwd() / path) for path in expected
    ]


@pytest.mark.parametrize("argument", ["x", "x/*", "x/**/*.png"])
def test_links_that_lead_nowhere_are_named(argument: str) -> None:
    touch("x/a.png")
    link("x/gone.png", "nowhere.png")
    link("x/loop.png", "loop.png")
    link("x/.lock", "nowhere")
    if not argument.endswith("png"):  # it might be a directory of images
        link("x/gone", "nowhere")
    found = find_images([argument])
    assert [str(path) for path in found.images] == ["x/a.png"]
    reasons = {failure.image: failure.reason for failure in found.unreadable}
    gone = "cannot be followed: No such file or directory"
    assert reasons.pop("x/gone", gone) == gone
    assert reasons == {
        "x/gone.png": gone,
        "x/loop.png": "cannot be followed: Too many levels of symbolic links",
    }


def test_what_is_no_file_is_named_and_not_waited_for() -> None:
    touch("x/a.png")
    os.mkfifo("x/pipe.png")
    os.mkfifo("x/pipe")  # nobody's image
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("x/socket.jpg")
        for arguments in (["x"], ["x/*"], ["x/a.png", "x/pipe.png", "x/socket.jpg"]):
            found = find_images(arguments)
            assert [str(path) for path in found.images] == ["x/a.png"]
            assert {(it.image, it.reason) for it in found.unreadable} == {
                ("x/pipe.png", "a pipe, not a regular file"),
                ("x/socket.jpg", "a socket, not a regular file"),
            }


def test_a_directory_whose_path_is_too_long_is_named(here: Path) -> None:
    touch("x/a.png")
    top = os.open("x", os.O_RDONLY)
    name, depth = "d" * 250, 0
    while depth < 20:  # 5,000 bytes, of 4,096 that a path may have
        os.mkdir(name, dir_fd=top)
        below = os.open(name, os.O_RDONLY, dir_fd=top)
        os.close(top)
        top, depth = below, depth + 1
    os.close(top)
    found = find_images([str(here / "x")])
    assert [path.name for path in found.images] == ["a.png"]
    (failure,) = found.unreadable
    assert failure.reason == "File name too long"
    assert failure.image is not None
    assert failure.image.endswith(name)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_directories_without_the_right_to_read_them_are_named() -> None:
    touch("warm.png")
    images("warm.png")  # what is imported is imported
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        for name in ("x/a.png", "x/locked/b.png", "x/y/locked/c.png", "z/locked/d.png"):
            touch(str(top / name))
        link(str(top / "x/into"), "locked/deeper")
        locked = list(top.rglob("locked"))
        for path in locked:
            path.chmod(0)
        with nobody():
            found = find_images([f"{top}/x"])
            by_glob = find_images([f"{top}/*/*/*.png", f"{top}/x/**/*.png"])
            alone = find_images([f"{top}/z/locked", f"{top}/x/locked/b.png"])
        for path in locked:
            path.chmod(0o755)
        assert [str(path) for path in found.images] == [f"{top}/x/a.png"]
        assert {failure.image: failure.reason for failure in found.unreadable} == {
            f"{top}/x/locked": "Permission denied",
            f"{top}/x/y/locked": "Permission denied",
            f"{top}/x/into": "cannot be followed: Permission denied",
        }
        assert [str(path) for path in by_glob.images] == [f"{top}/x/a.png"]
        assert {failure.image for failure in by_glob.unreadable} >= {str(path) for path in locked}
        assert alone.images == ()
        assert [failure.image for failure in alone.unreadable] == [
            f"{top}/z/locked",
            f"{top}/x/locked/b.png",
        ]


def test_what_does_not_exist_or_has_no_images_is_wrong_usage() -> None:
    touch("x/notes.txt", "x/.hidden.png")
    link("x/empty-loop", ".")
    for argument, complaint in (
        ("x", "no images in the directory 'x'"),
        ("x/*", "no images match"),
        ("x/**", "no images match"),
        ("y", "no file or directory 'y'"),
        ("y/*.png", "no images match"),
        ("x/notes.txt/*", "no images match"),
        ("n" * 5000, "no file or directory"),
        ("nul\0.png", "no file or directory"),
    ):
        with pytest.raises(InputError, match=complaint.replace("*", r"\*")):
            find_images([argument])
