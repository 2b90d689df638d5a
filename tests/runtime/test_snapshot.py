"""Bundles in the Hugging Face cache: which links are followed, and what engines are handed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from click.testing import CliRunner
from hub_cache import COMMIT, LEADING_OUT, lay_out, relink, through_linked_blobs

from dsd_trt import BundleError, InputError, Scorer, read_bundle
from dsd_trt.bundle import real_files
from dsd_trt.bundle.place import bundle_folder, own_bundle_folder
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.commands.main import cli
from dsd_trt.export.folder import check_replaceable
from dsd_trt.files import disk

PICTURE = np.random.default_rng(7).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose pair scorer has its weights in a file of their own."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    bundle = make_bundle(folder)
    path = bundle.path("pair_scorer.onnx")
    onnx.save_model(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
        convert_attribute=False,
    )
    from dsd_trt import write_bundle

    return write_bundle(folder, bundle.manifest).folder


@pytest.fixture
def snapshot(plain: Path, tmp_path: Path) -> Path:
    return lay_out(tmp_path / "hub", plain)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this package, empty."""
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))
    real_files._held.clear()
    return tmp_path / "cache"


def scores(bundle: Path, engine: str = "onnxruntime") -> list[list[float]]:
    result: list[list[float]] = (
        Scorer.load(bundle, engine).score([PICTURE], ["a dog"]).scores.tolist()
    )
    return result


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_snapshot_scores_as_the_bundle_does(
    plain: Path, tmp_path: Path, cache: Path, engine: str, stored: bool
) -> None:
    snapshot = lay_out(tmp_path / "hub", plain, stored=stored)
    assert scores(snapshot, engine) == scores(plain, engine)
    (copy,) = (cache / "bundles").glob("*/")
    assert not [path for path in copy.iterdir() if path.is_symlink() or path.stat().st_nlink > 1]
    assert scores(copy, engine) == scores(plain, engine)  # a bundle as any other


def test_a_cache_that_lies_elsewhere_is_read_through_a_link(
    plain: Path, snapshot: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "home").symlink_to(tmp_path / "hub")
    (tmp_path / "mine").symlink_to(tmp_path / "home" / snapshot.relative_to(tmp_path / "hub"))
    assert read_bundle(tmp_path / "mine").manifest == read_bundle(plain).manifest
    assert scores(tmp_path / "mine") == scores(plain)


@pytest.mark.parametrize("file", ["weights.data", "bundle.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", LEADING_OUT, ids=lambda damage: damage.__name__)
def test_a_link_that_leads_out_of_the_repository_is_refused_by_name(
    snapshot: Path, file: str, damage: Callable[[Path], None]
) -> None:
    """Even to the very content: what the name stands for would be anybody's to change."""
    damage(snapshot / file)
    named = "bundle.json" if damage is through_linked_blobs else file
    with pytest.raises(BundleError, match=f"'{named}' lies outside the bundle"):
        read_bundle(snapshot)


def test_a_link_to_a_directory_is_refused_by_name(snapshot: Path) -> None:
    blob = (snapshot / "weights.data").resolve()
    blob.unlink()
    blob.mkdir()
    with pytest.raises(BundleError, match=r"'weights\.data' is no file"):
        read_bundle(snapshot)


def test_a_linked_directory_within_a_snapshot_is_refused(snapshot: Path, plain: Path) -> None:
    """A file's name may have directories; these are real ones in the hub's cache."""
    (snapshot / "sub").symlink_to("../../blobs")
    text = (snapshot / "bundle.json").read_text("utf-8")
    blob = (snapshot / "tokenizer.json").resolve().name
    relink(snapshot / "bundle.json", "../../blobs/manifest")
    changed = text.replace('"tokenizer.json"', f'"sub/{blob}"')
    (snapshot / "../../blobs/manifest").write_text(changed, "utf-8")
    with pytest.raises(BundleError, match=f"'sub/{blob}' lies outside the bundle"):
        read_bundle(snapshot)


def test_what_was_not_downloaded_is_named_with_the_command(snapshot: Path) -> None:
    (snapshot / "weights.data").unlink()
    (snapshot / "text_encoder.onnx").resolve().unlink()  # the blob was removed, the link was not
    with pytest.raises(
        BundleError,
        match=r"'text_encoder\.onnx', 'weights\.data' are missing; download it again: "
        rf"hf download org/name text_encoder\.onnx weights\.data --revision {COMMIT}$",
    ):
        read_bundle(snapshot)


def test_what_was_altered_is_named_with_the_command(snapshot: Path) -> None:
    with (snapshot / "weights.data").open("r+b") as stream:
        stream.write(b"altered")
    with pytest.raises(BundleError, match=r"was altered.*hf download .* --force-download"):
        read_bundle(snapshot)


def test_a_bundle_of_plain_files_is_not_copied(plain: Path, cache: Path) -> None:
    bundle = read_bundle(plain)
    assert with_real_files(bundle) is bundle
    assert not cache.exists()


def test_a_damaged_copy_is_made_again(snapshot: Path, plain: Path, cache: Path) -> None:
    bundle = read_bundle(snapshot)
    copy = with_real_files(bundle).folder
    real_files._held.clear()  # as another process would find it
    with (copy / "weights.data").open("r+b") as stream:
        stream.write(b"altered")
    assert with_real_files(bundle).folder == copy
    assert (copy / "weights.data").read_bytes() == (plain / "weights.data").read_bytes()


def other_bundles(plain: Path, folder: Path, count: int) -> list[Path]:
    """Snapshots of bundles that differ."""
    found = []
    for number in range(count):
        bundle = read_bundle(shutil.copytree(plain, folder / f"plain-{number}"))
        (bundle.folder / "note.txt").write_text(str(number))
        from dsd_trt import write_bundle

        write_bundle(bundle.folder, bundle.manifest)
        found.append(lay_out(folder / "hub", bundle.folder, name=f"org--{number}"))
    return found


def test_copies_are_bounded_and_those_in_use_are_kept(
    plain: Path, tmp_path: Path, cache: Path
) -> None:
    snapshots = other_bundles(plain, tmp_path, 5)
    copies = [with_real_files(read_bundle(it)).folder for it in snapshots]
    assert all(copy.is_dir() for copy in copies)  # all are in use
    real_files._held.clear()
    with_real_files(read_bundle(snapshots[0]))
    kept = {path.name for path in (cache / "bundles").glob("*/")}
    assert kept == {copies[4].name, copies[0].name}


HOLD = """
import sys, time
from pathlib import Path
from dsd_trt import read_bundle
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.commands.main import cli
print(with_real_files(read_bundle(Path(sys.argv[1]))).folder, flush=True)
time.sleep(float(sys.argv[2]))
"""


def start(snapshot: Path, seconds: float, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(snapshot), str(seconds)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def where(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_another_process_neither_removes_nor_makes_what_one_has(
    plain: Path, tmp_path: Path, cache: Path
) -> None:
    first, *others = other_bundles(plain, tmp_path, 4)
    processes = [start(first, 60), start(first, 60)]  # at the same time
    try:
        copies = {where(process) for process in processes}
        assert len(copies) == 1
        for snapshot in others:
            with_real_files(read_bundle(snapshot))
            real_files._held.clear()
        assert all(copy.is_dir() for copy in copies)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with_real_files(read_bundle(others[0]))  # who was killed holds nothing
    assert not any(copy.exists() for copy in copies)


def test_what_a_killed_process_left_unfinished_is_removed(snapshot: Path, cache: Path) -> None:
    unfinished = cache / "bundles" / "0123.part"
    unfinished.mkdir(parents=True)
    (unfinished / "weights.data").write_bytes(b"half")
    half_removed = cache / "bundles" / "4567"  # its manifest is gone already
    half_removed.mkdir()
    (half_removed / "weights.data").write_bytes(b"half")
    copy = with_real_files(read_bundle(snapshot)).folder
    assert [path.name for path in (cache / "bundles").glob("*/")] == [copy.name]


def test_where_nothing_is_to_be_remembered_a_copy_goes_with_its_process(
    snapshot: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"DSD_TRT_CACHE": "", "TMPDIR": str(scratch)}
    with start(snapshot, 0, **environment) as ended:
        assert where(ended).parent == scratch
    assert not list(scratch.iterdir())
    killed = start(snapshot, 60, **environment)
    left = where(killed)
    with start(snapshot, 0, **environment) as beside:
        where(beside)
    assert left.is_dir()  # in use
    killed.kill()
    killed.wait()
    with start(snapshot, 0, **environment) as later:
        where(later)
    assert not list(scratch.iterdir())


def test_the_command_leaves_no_copy_behind(snapshot: Path, tmp_path: Path) -> None:
    """Although it ends at once, without what Python does at its end."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "texts.txt").write_text("a dog\n")
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dsd_trt", "score", "picture.png", "texts.txt"),
            *("--engine", "openvino", "--bundle", str(snapshot)),
        ],
        cwd=tmp_path,
        env={**os.environ, "DSD_TRT_CACHE": "", "TMPDIR": str(tmp_path / "scratch")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "scratch").iterdir())


def test_a_copy_without_room_is_refused_by_size_and_folder(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    usage = shutil.disk_usage(snapshot)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(InputError, match=rf"{cache}.* has room for .*whose files are links.*DSD_"):
        with_real_files(read_bundle(snapshot))
    assert not list((cache / "bundles").glob("*/"))


def test_nothing_is_written_into_the_cache_of_the_hub(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^plans are put .*cp -rL {snapshot} name"):
        own_bundle_folder(str(snapshot), "plans")
    with pytest.raises(
        InputError, match=r"^plans .*: hf download org/name --revision v1 --local-dir name"
    ):
        own_bundle_folder("org/name@v1", "plans")
    (tmp_path / "scorer.key").write_text("a key")
    done = CliRunner().invoke(cli, ["sign", str(snapshot), "--key", str(tmp_path / "scorer.key")])
    assert done.exit_code == 2
    assert "signatures are put into the bundle" in done.output
    assert not list(snapshot.glob("*.minisig"))
    with pytest.raises(InputError, match="lies in the Hugging Face cache"):
        check_replaceable(snapshot, force=True)
    assert bundle_folder(str(snapshot)) == snapshot
