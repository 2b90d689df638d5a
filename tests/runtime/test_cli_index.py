from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form
from in_process import Run
from PIL import Image
from test_index import png, write_tar

from dsd_trt import Bundle, Index, update_index

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "dog"]


@pytest.fixture
def run(dsd_trt: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Run `dsd-trt` in a folder with texts and three images."""
    generator = np.random.default_rng(3)
    for name in ("a", "b", "deep/c"):
        path = tmp_path / f"in/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (RESOLUTION, RESOLUTION, 3)
        Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8)).save(path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return dsd_trt


def test_what_score_says_of_an_index_it_says_of_the_images(run: Callable[..., Run]) -> None:
    ended = run("index", "in", "in.index")
    assert (ended.code, ended.out) == (0, "")
    assert "in.index has 3 images: 3 encoded" in ended.err
    assert "engine: onnxruntime" in ended.err
    for form in ("table", "csv", "json"):
        of_images = run("score", "in", "texts.txt", "-f", form)
        of_index = run("score", "in.index", "texts.txt", "-f", form)
        assert of_index.code == 0
        assert of_index.out == of_images.out
        assert "in/deep/c.png" in of_index.out or form == "table"
    ended = run("index", "in", "in.index")
    assert "3 images: 0 encoded" in ended.err
    assert "engine:" not in ended.err  # none was needed


def test_indexes_files_and_folders_go_together(run: Callable[..., Run], tmp_path: Path) -> None:
    run("index", "in/a.png", "in/b.png", "some.index")
    rows = json.loads(run("score", "in/deep", "some.index", "texts.txt", "-f", "json").out)
    assert [row["image"] for row in rows[::2]] == ["in/deep/c.png", "in/a.png", "in/b.png"]
    for row in rows:
        pixels = np.asarray(Image.open(row["image"]))
        assert row["score"] == pytest.approx(closed_form(pixels, row["text"]), abs=1e-6)


def test_unreadable_images_are_listed_and_the_rest_is_indexed(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "in/b.png").write_text("no image")
    for ended in (run("index", "in", "out"), run("index", "in", "out")):
        assert ended.code == 3
        assert "images that could not be read: 1" in ended.err
        assert "in/b.png: not an image of a known format" in ended.err
    scored = run("score", "out", "texts.txt", "-f", "csv")
    direct = run("score", "in", "texts.txt", "-f", "csv")
    assert scored.code == direct.code == 3
    assert scored.out == direct.out
    assert "in/b.png: not an image of a known format" in scored.err


def test_nothing_is_dropped_while_a_directory_cannot_be_searched(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/b.png").rename(tmp_path / "elsewhere/b.png")
    (tmp_path / "in/disk").symlink_to("../elsewhere")
    assert run("index", "in", "out").code == 0
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    ended = run("index", "in", "out", "--prune-missing")
    assert ended.code == 3
    assert "in/disk: cannot be followed: No such file or directory" in ended.err
    assert "out has 3 images: 0 encoded" in ended.err
    assert "nothing was dropped" in ended.err
    (tmp_path / "in/disk").unlink()
    kept = run("index", "in", "out").err
    assert "0 dropped" in kept
    assert "kept though not named again: 1 (--prune-missing drops them)" in kept
    ended = run("index", "in", "out", "--prune-missing")
    before, after = ended.err.split("out has 2 images")
    assert "1 of 3 images of out are not among those given, and will be removed" in before
    assert "1 dropped" in after


def test_a_link_to_an_image_that_is_gone_keeps_no_other(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    assert run("index", "in", "out").code == 0
    (tmp_path / "in/b.png").unlink()
    (tmp_path / "in/dead.png").symlink_to("nowhere.png")
    ended = run("index", "in", "out", "--prune-missing")
    assert ended.code == 3
    assert "in/dead.png: cannot be followed: No such file or directory" in ended.err
    assert "1 dropped" in ended.err
    assert "nothing was dropped" not in ended.err


def test_a_tar_that_is_not_whole_is_tried_again(run: Callable[..., Run], tmp_path: Path) -> None:
    images = {f"{i}.png": png(np.full((RESOLUTION,) * 2 + (3,), i, np.uint8)) for i in range(4)}
    write_tar(tmp_path / "a.tar", images)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 2 * 1024 + 100])  # a header and one block each
    for encoded in (2, 0):
        ended = run("index", "a.tar", "out")
        assert ended.code == 3
        assert f"{encoded} encoded" in ended.err
        assert "a.tar: not a whole tar file: bytes 2048 to 2147 are no tar" in ended.err
    (tmp_path / "a.tar").write_bytes(whole)
    ended = run("index", "a.tar", "out")
    assert ended.code == 0
    assert "out has 4 images: 2 encoded" in ended.err


def test_tar_files_are_found_in_folders_and_by_globs(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("0", "1"):
        image = np.full((RESOLUTION, RESOLUTION, 3), 50 * int(name), np.uint8)
        write_tar(tmp_path / f"shards/{name}.tar", {f"{name}.png": png(image)})
    packed = gzip.compress((tmp_path / "shards/1.tar").read_bytes())
    (tmp_path / "shards/1.tar").unlink()
    (tmp_path / "shards/1.tar.gz").write_bytes(packed)
    for images in (["shards"], ["shards/*.tar*"], ["shards/0.tar", "shards/1.tar.gz"]):
        assert run("index", *images, "out", "--prune-missing").code == 0
        names = [image.name for image in Index.open("out")]
        assert names == ["shards/0.tar/0", "shards/1.tar.gz/1"]
        of_index = run("score", "out", "texts.txt", "-f", "csv")
        ended = run("score", *images, "texts.txt", "-f", "csv")
        assert (ended.code, ended.out) == (0, of_index.out)


def test_wrong_usage(run: Callable[..., Run], tmp_path: Path) -> None:
    for arguments, complaint in (
        (["index"], "OUT"),
        (["index", "in"], "OUT"),
        (["index", "missing", "out"], "no file or directory 'missing'"),
        (["index", "in/a.png", "in/b.png"], "in/b.png exists and is not an index"),
        (["index", "in/a.png", "in"], "in exists and is not an index"),
        (["index", "in", "out", "--shard-size", "0"], "--shard-size"),
    ):
        ended = run(*arguments)
        assert ended.code == 2, arguments
        assert complaint in ended.err, arguments
        assert not (tmp_path / "out").exists()


def test_an_index_that_is_damaged_or_empty_is_a_usage_error(
    bundle: Bundle, run: Callable[..., Run], tmp_path: Path
) -> None:
    run("index", "in", "out")
    shard = tmp_path / "out/latents-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ended = run("score", "out", "texts.txt")
    assert (ended.code, ended.out) == (2, "")
    assert "was altered (sha256 differs)" in ended.err
    assert "dsd-trt index IMAGES out" in ended.err
    assert "engine:" not in ended.err  # nothing was run
    update_index("empty", [], bundle.folder)
    ended = run("score", "empty", "texts.txt")
    assert ended.code == 2
    assert "the index 'empty' has no images" in ended.err


def test_a_file_name_that_is_not_unicode_stops_nothing(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    content = (tmp_path / "in/a.png").read_bytes()
    for last in (b"\xe8", b"\xe9"):
        odd = os.fsencode(tmp_path / "in") + b"/caf" + last + b".png"
        Path(os.fsdecode(odd)).write_bytes(content)
    assert "5 images" in run("index", "in", "out").err
    assert "0 encoded" in run("index", "in", "out").err
    assert "caf" in run("score", "out", "texts.txt", "-f", "csv").out


def test_killed_it_goes_on_where_it_was(
    bundle: Bundle, tmp_path: Path, run: Callable[..., Run]
) -> None:
    image = Image.effect_noise((600, 600), 50)
    for name in range(40):
        buffer = io.BytesIO()
        image.convert("RGB").rotate(name).save(buffer, "JPEG")
        (tmp_path / f"in/{name}.jpg").write_bytes(buffer.getvalue())
    arguments = ["index", "in", "out", "--shard-size", "4"]
    options = ["--bundle", str(bundle.folder), "--engine", "onnxruntime"]
    code = "import sys; from dsd_trt.commands.main import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments, *options], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/latents-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    Index.open(tmp_path / "out")
    assert run(*arguments).code == 0
    assert len(Index.open(tmp_path / "out")) == 43
    of_index = run("score", "out", "texts.txt", "-f", "csv").out
    assert of_index == run("score", "in", "texts.txt", "-f", "csv").out
