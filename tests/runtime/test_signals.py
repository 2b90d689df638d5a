"""Any signal ends any command within seconds; pipes and devices hold nothing up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from PIL import Image

from dsd_trt import Bundle, ImageError, InputError, Scorer
from dsd_trt.commands.inputs import read_pairs, read_texts
from dsd_trt.commands.signals import interrupting
from dsd_trt.files.regular import open_regular, read_regular
from dsd_trt.image.preprocess import load_image
from dsd_trt.limits import FILE_BYTES, IMAGE_BYTES, IMAGE_PIXELS, TEXTS

SOON = 3.0  # seconds

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, and what has an image's name and is none."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8), "red").save(images / "a.png")
    os.mkfifo(images / "pipe.png")
    (images / "endless.png").symlink_to("/dev/zero")
    (images / "terminal.png").symlink_to("/dev/tty")
    (images / "folder.png").mkdir()
    (tmp_path / "texts.txt").write_text("a dog\n")
    return images


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    """What hangs, fails."""
    before = signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _too_late(*_: object) -> None:
    raise AssertionError("it hangs")


# Regular files alone


def test_an_image_is_a_regular_file(bundle: Bundle, folder: Path) -> None:
    names = sorted(folder.iterdir())
    with Scorer(bundle, "onnxruntime") as scorer:
        matrix = scorer.score(names, ["a dog"])
    assert [np.isfinite(row).all() for row in matrix.scores] == [True, False, False, False, False]
    reasons = {Path(str(it.image)).name: it.reason for it in matrix.errors}
    assert reasons == {
        "endless.png": "a device, not a regular file",
        "folder.png": f"{os.strerror(21)}: give its images as a list",
        "pipe.png": "a pipe, not a regular file",
        "terminal.png": "a device, not a regular file",
    }


def test_other_files_are_regular_too(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(InputError, match="not a regular file"):
            read_pairs(folder / name)
    described = make_bundle(tmp_path / "other").folder / "bundle.json"
    described.unlink()
    os.mkfifo(described)
    with pytest.raises(Exception, match="a pipe, not a regular file"):
        Scorer.load(described.parent)


def test_texts_may_come_through_a_pipe_that_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a dog\na cat\n")
    os.close(writing)
    assert read_texts(f"/dev/fd/{reading}") == ["a dog", "a cat"]
    os.close(reading)
    monkeypatch.setenv(FILE_BYTES.variable, "5000000")
    with pytest.raises(
        InputError, match=r"more than 5000000 bytes \(4.77 MiB\); .* DSD_TRT_MAX_FILE_BYTES"
    ):
        read_texts("/dev/zero")


def test_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert read_regular(path) == path.read_bytes()
    monkeypatch.setenv(FILE_BYTES.variable, "3000000")
    assert len(read_regular(path)) == 3_000_000
    monkeypatch.setenv(FILE_BYTES.variable, "2999999")
    with pytest.raises(OSError, match="more than 2999999 bytes"):
        read_regular(path)
    with path.open("r+b") as file:  # terabytes that take no disk are not read to find out
        file.truncate(10**13)
    with pytest.raises(OSError, match="more than"):
        read_regular(path)
    assert read_regular("/proc/self/status")  # which says that it has 0 bytes
    path.write_bytes(b"")
    assert read_regular(path) == b""
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_large_limit_is_told_in_a_readable_unit_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value, told in (
        (IMAGE_BYTES, None, "1073741824 bytes (1 GiB)"),
        (FILE_BYTES, None, "536870912 bytes (512 MiB)"),
        (FILE_BYTES, 20_971_520, "20971520 bytes (20 MiB)"),
        (FILE_BYTES, 99, "99 bytes"),
        (IMAGE_PIXELS, None, "178956970 pixels (179 million)"),
        (IMAGE_PIXELS, 600, "600 pixels"),
        (TEXTS, None, "1000000 texts"),
    ):
        if value is not None:
            monkeypatch.setenv(limit.variable, str(value))
        assert limit.refusal() == f"more than {told}; the limit is {limit.variable}"


def test_limits_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    size = path.stat().st_size
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_BYTES", str(size))
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "600")
    for source in (path, path.read_bytes()):
        assert load_image(source).size == (30, 20)
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "599")
    for other in (path, path.read_bytes(), np.zeros((20, 30), np.uint8), Image.open(path)):
        with pytest.raises(ImageError, match="pixels"):
            load_image(other)
    monkeypatch.delenv("DSD_TRT_MAX_IMAGE_PIXELS")
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_BYTES", str(size - 1))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=f"more than {size - 1} bytes.*MAX_IMAGE_BYTES"):
            load_image(source)


def test_limits_of_a_call(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with Scorer(bundle, "onnxruntime") as scorer:
        for name, value, images, texts in (
            ("MAX_IMAGES", 2, 3, ["dog"]),
            ("MAX_TEXTS", 2, 1, ["dog", "red", "blue"]),
            ("MAX_PAIRS", 5, 3, ["dog", "red"]),
            ("MAX_TEXT_CHARACTERS", 4, 1, ["dog", "green"]),
        ):
            monkeypatch.setenv(f"DSD_TRT_{name}", str(value))
            for given in ([picture] * images, iter([picture] * images)):
                with pytest.raises(InputError, match=f"more than {value} .*DSD_TRT_{name}"):
                    scorer.score(given, texts)
            pairs = [(picture, text) for text in texts for _ in range(images)]
            if name != "MAX_IMAGES":
                with pytest.raises(InputError, match=f"DSD_TRT_{name}"):
                    scorer.score_pairs(pairs)
            monkeypatch.setenv(f"DSD_TRT_{name}", str(value + 1))
            assert np.isfinite(scorer.score([picture] * images, texts).scores).all()
            monkeypatch.setenv(f"DSD_TRT_{name}", "many")
            with pytest.raises(InputError, match=f"DSD_TRT_{name} must be a whole number"):
                scorer.score([picture], texts)
            monkeypatch.delenv(f"DSD_TRT_{name}")


# Signals


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dsd_trt", *arguments]


def _heed_ctrl_c() -> None:
    """A shell without job control has what runs in its background ignore it, children included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ends_soon(
    process: subprocess.Popen[str], number: signal.Signals, answered: int | None = None
) -> tuple[int, str]:
    """Send a signal; the exit code, and what was said. A descriptor is open meanwhile."""
    begin = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    if answered is not None:
        os.close(answered)
    assert time.monotonic() - begin < SOON
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_read_that_nobody_answers_ends(folder: Path, number: signal.Signals) -> None:
    os.mkfifo(folder / "texts")
    process = subprocess.Popen(
        command("score", str(folder), str(folder / "texts")),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )
    code, said = ends_soon(process, number, answered=_writer(folder / "texts"))
    assert (code, said.split()) == (130, ["interrupted"])


def _writer(pipe: Path) -> int:
    """The other end of a pipe, once somebody waits for it."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.05)


STUCK = """
    import ctypes, sys
    from dsd_trt import __main__ as process
    from dsd_trt.commands import main as cli

    def stuck(*arguments, **options):
        said = False
        while True:
            try:
                if not said:
                    said = True
                    print("started", file=sys.stderr, flush=True)
                ctypes.CDLL(None).pause()  # as long as nothing of Python runs, no handler does
            except KeyboardInterrupt:
                pass

    cli.cli.main = stuck
    process.run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_goes_on_after_a_signal_is_ended(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[4:] for line in STUCK.split("\n"))],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    assert ends_soon(process, number) == (130, "interrupted\n")


def test_nohup_is_heeded() -> None:
    script = "import signal; from dsd_trt.commands import signals; signals.end_at_once()\n"
    script += "with signals.interrupting(): print(signal.getsignal(signal.SIGHUP))"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert ran.stdout == "1\n", ran.stderr


def test_a_signal_while_an_object_is_dropped_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: shown.append(it.exc_type))

    def drop(error: type[BaseException]) -> None:
        def called(_: object) -> None:
            raise error

        class Dropped:
            pass

        it: Dropped | None = Dropped()
        watched = weakref.ref(it, called)
        it = None
        assert watched() is None

    with interrupting():
        drop(KeyboardInterrupt)
        drop(ValueError)
    drop(KeyboardInterrupt)
    assert shown == [ValueError, KeyboardInterrupt]
