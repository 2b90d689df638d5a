"""Two processes that write the same: one does, and the other is told."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoints import write_adapter, write_checkpoint
from click.testing import CliRunner
from PIL import Image
from torture import Figures

from dsd_trt import Bundle
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError
from dsd_trt.export.folder import staged
from dsd_trt.files.lock import own_folder
from dsd_trt.index.index import Index
from dsd_trt.index.writer import update_index
from dsd_trt.train.scoring.adapter import Adapter

OURS = rf"is being written by process {os.getpid()} on .* since .*\. Wait until it has ended"


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 255 - number)).save(path)
    return paths


def test_a_second_writer_of_an_index_is_told_and_harms_nothing(
    bundle: Bundle, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "photos", 3)
    update_index(tmp_path / "out", paths, bundle.folder, "onnxruntime")
    with own_folder(tmp_path / "out"), pytest.raises(InputError, match=OURS):
        update_index(tmp_path / "out", [], bundle.folder, "onnxruntime")
    assert len(Index.open(tmp_path / "out")) == 3
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_many_that_index_into_one_folder_at_once_make_one_index(
    bundle: Bundle, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 60)
    code = "import sys; from dsd_trt.commands.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "index", "photos", "out", "--shard-size", "8"]
    command += ["--bundle", str(bundle.folder), "--engine", "onnxruntime"]
    running = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    assert 0 in [code for _, code in ended]
    for told, status in ended:
        assert status == 0 or (status == 2 and re.search("is being written by process", told)), told
    index = Index.open(tmp_path / "out")
    assert [image.name for image in index] == [f"photos/{number:03}.png" for number in range(60)]
    shards = {f"latents-{number:05}.safetensors" for number in range(8)}
    assert {it.name for it in (tmp_path / "out").iterdir()} == {
        "index.json", "images.parquet", *shards,
    }  # fmt: skip


def test_a_holder_that_has_not_written_its_name_yet_is_named(tmp_path: Path) -> None:
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(_enter, tmp_path)
        time.sleep(0.2)
        assert not second.done()
        os.write(lock, b"process 7 on here (index) since today")
        assert "is being written by process 7 on here (index)" in second.result()
    os.close(lock)


def test_a_holder_that_ends_before_it_is_named_leaves_the_lock(tmp_path: Path) -> None:
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(_enter, tmp_path)
        time.sleep(0.2)
        assert not second.done()
        (tmp_path / ".lock").unlink()
        os.close(lock)
        assert second.result() == "entered"


def test_a_holder_that_never_writes_its_name_is_another_process(tmp_path: Path) -> None:
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)  # as on a full disk
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "is being written by another process. Wait until" in _enter(tmp_path)
    os.close(lock)


def _enter(folder: Path) -> str:
    try:
        with own_folder(folder):
            return "entered"
    except InputError as error:
        return str(error)


def test_a_second_evaluation_in_a_folder_is_told_and_answers_nothing(
    bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", str(bundle.folder), "--data", "shapes-comvg", "--out", str(out)]
    arguments += ["--limit", "3", "--engine", "onnxruntime"]
    with own_folder(out):
        told = CliRunner().invoke(cli, arguments)
        assert told.exit_code == 2
        assert re.search(OURS, told.output)
        assert [it.name for it in out.iterdir()] == [".lock"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert len((out / "answers.jsonl").read_text().splitlines()) == 3
    assert not (out / ".lock").exists()


def test_a_second_export_to_a_folder_is_told(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as (folder, _):
        (folder / "file").touch()
        with pytest.raises(InputError, match=OURS), staged(tmp_path / "out"):
            pass
    assert [it.name for it in tmp_path.rglob("*")] == ["out", "file"]


def test_what_came_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def another() -> None:
        with staged(out, force=False) as (folder, _):
            (folder / "file").touch()
            out.mkdir()
            (out / "precious").touch()

    with pytest.raises(InputError, match="--force"):
        another()
    assert [it.name for it in tmp_path.rglob("*")] == ["out", "precious"]


@pytest.mark.torture
def test_adapters_saved_at_once_are_one_of_them(tmp_path: Path, figures: Figures) -> None:
    figures.look_for("two processes that write the same", "half-written")
    adapter = Adapter.load(write_adapter(tmp_path / "first", write_checkpoint(tmp_path / "model")))
    adapter.save(tmp_path / "adapter")
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from dsd_trt.train.scoring.adapter import Adapter\n"
        "import torch\n"
        "folder, number = Path(sys.argv[1]), float(sys.argv[2])\n"
        "adapter = Adapter.load(folder)\n"
        "state = {k: torch.full_like(v, number) for k, v in adapter.prompt_state.items()}\n"
        "for _ in range(20):\n"
        "    replace(adapter, prompt_state=state, a=number).save(folder)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "adapter")]
    saving = [subprocess.Popen([*command, number]) for number in ("1", "2")]
    assert [process.wait() for process in saving] == [0, 0]
    last = Adapter.load(tmp_path / "adapter")
    with figures.attempt("half-written"):
        assert {float(v.max()) for v in last.prompt_state.values()} == {last.a}
    assert len(list((tmp_path / "adapter").iterdir())) == 2
