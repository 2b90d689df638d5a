"""An index against the images it was made from, and against their closed form."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from bundles import RESOLUTION, closed_form, make_bundle
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save
from torture import Figures, scaled

from dsd_trt import (
    Bundle,
    DsdError,
    EngineError,
    Index,
    IndexUpdate,
    InputError,
    Scorer,
    update_index,
)
from dsd_trt.engine import find_backend
from dsd_trt.files.whole import write_whole
from dsd_trt.index.files import (
    INDEX_NAME,
    NEXT_TABLE,
    TABLE_NAME,
    IndexManifest,
    read_table,
    table_schema,
)
from dsd_trt.jobs import Scorable
from dsd_trt.pipeline import Pipeline

TEXTS = ["a red circle", "dog", "a blue square a blue dog"]
Pixels = NDArray[np.uint8]


def pixels_of(seed: int) -> Pixels:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3))
    return (noise * generator.uniform(0, 1, 3)).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_photos(folder: Path, seeds: Sequence[int]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{seed:02}.png" for seed in seeds]
    for path, seed in zip(paths, seeds, strict=True):
        path.write_bytes(png(pixels_of(seed)))
    return paths


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def scorer(bundle: Bundle) -> Scorer:
    return Scorer.load(bundle.folder, "onnxruntime")


@pytest.fixture
def update(bundle: Bundle, tmp_path: Path) -> Callable[..., IndexUpdate]:
    """Make the index `out` one of these images, in shards of three."""
    fixed: dict[str, Any] = {
        "bundle": bundle.folder,
        "engine": "onnxruntime",
        "shard_size": 3,
        "keep": False,
    }

    def update(images: Sequence[Path], **options: Any) -> IndexUpdate:
        options = fixed | options
        return update_index(tmp_path / "out", images, **options)

    return update


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the image encoder was given, call by call."""
    counts: list[int] = []
    encode = Pipeline.encode_images

    def count(self: Pipeline, images: Sequence[Pixels]) -> Any:
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Pipeline, "encode_images", count)
    return counts


def expected(seeds: Sequence[int]) -> NDArray[np.float64]:
    return np.array([[closed_form(pixels_of(seed), text) for text in TEXTS] for seed in seeds])


def seeds_of(index: Index) -> list[int]:
    return [int(Path(image.name).stem) for image in index]


def check(index: Index, scorer: Scorer) -> None:
    """Every image of an index has the scores of the picture its name stands for."""
    matrix = scorer.score(index, TEXTS)
    assert matrix.errors == ()
    if len(index):
        np.testing.assert_allclose(matrix.scores, expected(seeds_of(index)), atol=1e-6)


# Scores


def test_an_open_index_never_scores_what_came_in_the_place_of_its_latents(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", range(12))
    update(photos[:6])
    opened = Index.open(tmp_path / "out")
    update(photos[:3])  # the second shard goes
    update(photos[:3] + photos[6:9])  # and another takes its name
    matrix = scorer.score(opened, TEXTS)
    np.testing.assert_allclose(matrix.scores[:3], expected(range(3)), atol=1e-6)
    assert np.isnan(matrix.scores[3:]).all()
    assert [failure.image for failure in matrix.errors] == [str(it) for it in photos[3:6]]
    assert all("Open the index again" in failure.reason for failure in matrix.errors)
    check(Index.open(tmp_path / "out"), scorer)
    gone = Index.open(tmp_path / "out")
    update([])
    assert all("Open the index again" in it.reason for it in scorer.score(gone, TEXTS).errors)


def test_an_index_that_is_brought_up_to_date_while_it_is_opened_opens(
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = write_photos(tmp_path / "photos", range(9))
    update(photos[:6])
    more = [photos[3:], photos]

    def read_late(*arguments: Any) -> Any:
        if more:
            update(more.pop())
        return read_table(*arguments)

    monkeypatch.setattr("dsd_trt.index.index.read_table", read_late)
    index = Index.open(tmp_path / "out")
    assert seeds_of(index) == list(range(3, 9))
    check(index, scorer)


WRITER = """
import random, sys
from pathlib import Path
from dsd_trt import update_index

photos, draw = sorted(Path(sys.argv[1]).iterdir()), random.Random(3)
for _ in range(int(sys.argv[4])):
    chosen = draw.sample(photos, draw.randint(1, len(photos)))
    update_index(sys.argv[2], chosen, sys.argv[3], "onnxruntime", shard_size=3)
"""


@pytest.mark.torture
def test_an_index_that_another_process_writes_gives_no_wrong_score(
    bundle: Bundle,
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    figures: Figures,
) -> None:
    figures.look_for("readings of an index while it is written", "wrong", "foreign exceptions")
    update(write_photos(tmp_path / "photos", range(12)))
    folders, count = (tmp_path / "photos", tmp_path / "out", bundle.folder), str(scaled(200, 10))
    with subprocess.Popen([sys.executable, "-c", WRITER, *folders, count]) as writer:
        while writer.poll() is None:
            try:
                index = Index.open(tmp_path / "out")
                matrix = scorer.score(index, TEXTS)
            except DsdError as error:
                figures.ended("refused")
                if "Remove the folder" in str(error):
                    figures.fault("wrong", error)
                continue
            except Exception as error:
                figures.fault("foreign exceptions", repr(error))
                continue
            scored = np.isfinite(matrix.scores).all(axis=1)
            right = expected(seeds_of(index))
            if not np.allclose(matrix.scores[scored], right[scored], atol=1e-6):
                figures.fault("wrong", matrix.scores.tolist())
            figures.ended("scored whole" if scored.all() else "scored in part")
    assert writer.returncode == 0
    check(Index.open(tmp_path / "out"), scorer)


@pytest.mark.parametrize("asked", ["is_file", "stat", "read_bytes"])
def test_a_table_that_gets_its_name_while_it_is_looked_for_is_found(
    update: Callable[..., IndexUpdate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    update(write_photos(tmp_path / "photos", range(3)))
    table, following = (tmp_path / "out" / name for name in (TABLE_NAME, NEXT_TABLE))
    table.rename(following)  # as after a kill between two renames
    ask = getattr(Path, asked)

    def named_meanwhile(path: Path, **arguments: Any) -> Any:
        if path == following and os.path.exists(path):  # noqa: PTH110 (asks Path)
            os.replace(path, table)  # noqa: PTH105
        return ask(path, **arguments)

    monkeypatch.setattr(Path, asked, named_meanwhile)
    assert len(Index.open(tmp_path / "out")) == 3


def test_an_index_that_was_changed_and_changed_back_is_read_again(
    update: Callable[..., IndexUpdate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(write_photos(tmp_path / "photos", range(3)))
    path, verified, asked = tmp_path / "out" / INDEX_NAME, Index._verified, []

    def changed_back(folder: Path, manifest: IndexManifest) -> Index:
        asked.append(folder)
        if len(asked) == 1:
            write_whole(path, path.read_bytes())
            raise InputError("as the other process left it for a moment")
        return verified(folder, manifest)

    monkeypatch.setattr(Index, "_verified", changed_back)
    assert len(Index.open(tmp_path / "out")) == 3
    assert len(asked) == 2


def test_an_engine_that_cannot_open_the_encoder_is_passed_over(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an image is read, as for scores: an engine may fail when it opens a graph."""

    def fail(*_: object) -> NoReturn:
        raise EngineError("no memory is left")

    paths = write_photos(tmp_path / "photos", range(3))
    monkeypatch.setattr("dsd_trt.engine.choice.AUTOMATIC", ("openvino", "onnxruntime"))
    monkeypatch.setattr(type(find_backend("openvino")), "open", fail)
    done = update_index(tmp_path / "out", paths, bundle.folder)
    assert (done.encoded, done.why_engine) == (3, "openvino: no memory is left")
    assert done.engine is not None
    assert done.engine.engine.startswith("onnxruntime")
    with pytest.raises(EngineError, match="no memory is left"):
        update_index(tmp_path / "other", paths, bundle.folder, "openvino")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_are_those_of_the_images_to_the_last_bit(
    tmp_path: Path, engine: str, precision: Any
) -> None:
    bundle = make_bundle(tmp_path / "bundle", precision=precision)
    paths = write_photos(tmp_path / "photos", range(40))  # more than a batch
    scorer, out = Scorer.load(bundle.folder, engine), tmp_path / "out"
    scores = scorer.score(paths, TEXTS)
    pairs = scorer.score_pairs([(paths[5], "dog"), (paths[30], "a dog"), (paths[5], "red")])
    ranking = scorer.rank("dog", paths, top_k=7)
    update_index(out, paths, bundle.folder, engine, shard_size=7)
    shutil.rmtree(tmp_path / "photos")  # nothing of it is needed any more

    index = Index.open(out)
    for images in (index, out, str(out), list(index)):
        matrix = scorer.score(images, TEXTS)
        assert matrix.images == scores.images
        assert matrix.scores.tobytes() == scores.scores.tobytes()
        assert scorer.rank("dog", images, top_k=7) == ranking
    first, second = index.find(str(paths[5])), index.find(str(paths[30]))
    indexed = scorer.score_pairs([(first, "dog"), (second, "a dog"), (first, "red")])
    assert indexed.images == pairs.images
    assert indexed.scores.tobytes() == pairs.scores.tobytes()
    tolerance = 1e-6 if precision == "fp32" else 2e-3
    np.testing.assert_allclose(scores.scores, expected(range(40)), atol=tolerance)


def test_indexed_images_can_be_scored_along_with_others(
    scorer: Scorer, update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    indexed, other = write_photos(tmp_path / "photos", [1, 2]), pixels_of(3)
    update(indexed)
    index = Index.open(tmp_path / "out")
    mixed: list[Scorable] = [index[1], other, index[0], b"no image", index[-1]]
    matrix = scorer.score(mixed, TEXTS)
    np.testing.assert_allclose(matrix.scores[[0, 1, 2, 4]], expected([2, 3, 1, 2]), atol=1e-6)
    assert [failure.image for failure in matrix.errors] == ["image 3"]


def test_an_index_is_a_sequence(update: Callable[..., IndexUpdate], tmp_path: Path) -> None:
    update(write_photos(tmp_path / "photos", range(5)))
    index = Index.open(tmp_path / "out")
    assert len(index) == 5
    assert [Path(image.name).stem for image in index[1:4:2]] == ["01", "03"]
    assert index[-1].name == str(tmp_path / "photos/04.png")
    with pytest.raises(IndexError):
        index[5]
    with pytest.raises(InputError, match=r"no image 'a\.png'"):
        index.find("a.png")


def test_what_is_written_is_what_others_can_read(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    """The stand-in's latent is the mean colour of each quarter of the image."""
    paths = write_photos(tmp_path / "photos", range(4))
    update(paths)
    out = tmp_path / "out"
    rows = parquet.read_table(out / "images.parquet").to_pylist()
    assert [row["name"] for row in rows] == [str(path) for path in paths]
    assert [row["size"] for row in rows] == [path.stat().st_size for path in paths]
    half = RESOLUTION // 2
    for seed, row in enumerate(rows):
        quarters = pixels_of(seed).reshape(2, half, 2, half, 3).mean(axis=(1, 3)) / 255
        latent = load_file(out / row["shard"])["latent"][row["row"]]
        np.testing.assert_allclose(latent, quarters.transpose(2, 0, 1), atol=1e-6)
    assert sorted(path.name for path in out.iterdir()) == [
        "images.parquet", "index.json", "latents-00000.safetensors", "latents-00001.safetensors",
    ]  # fmt: skip
    shards = json.loads((out / "index.json").read_text())["shards"]
    assert [shard["rows"] for shard in shards.values()] == [3, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_few_shards_are_mapped_at_a_time(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path
) -> None:
    update(write_photos(tmp_path / "photos", range(30)), shard_size=1)
    index = Index.open(tmp_path / "out")

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path / "out"))

    assert mapped() == 0
    check(index, scorer)
    assert 0 < mapped() <= 8


# Bringing up to date


def test_only_what_is_new_or_changed_is_encoded(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"

    def changes() -> tuple[int, int, int]:
        encoded.clear()
        done = update(sorted(photos.iterdir()), keep=False)
        assert sum(encoded) == done.encoded
        index = Index.open(out)
        assert len(index) == done.images
        matrix = scorer.score(index, TEXTS)
        again = scorer.score(sorted(photos.iterdir()), TEXTS)
        assert matrix.images == again.images  # in this order, whenever they were added
        assert matrix.scores.tobytes() == again.scores.tobytes()
        return done.images, done.encoded, done.dropped

    write_photos(photos, [1, 3, 5, 7])
    assert changes() == (4, 4, 0)
    assert changes() == (4, 0, 0)
    write_photos(photos, [0, 4])
    assert changes() == (6, 2, 0)
    (photos / "03.png").unlink()
    assert changes() == (5, 0, 1)
    (photos / "05.png").write_bytes(png(pixels_of(50)))
    assert changes() == (5, 1, 0)
    (photos / "07.png").touch()  # newer, and the same
    assert changes() == (5, 0, 0)
    (photos / "07.png").rename(photos / "02.png")
    assert changes() == (5, 0, 1)
    shutil.copy(photos / "02.png", photos / "08.png")
    assert changes() == (6, 0, 0)


def test_a_file_that_looks_unchanged_is_not_even_opened(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    (photo,) = write_photos(tmp_path / "photos", [1])
    update([photo])
    before = photo.stat()
    other = bytes(len(photo.read_bytes()))
    photo.write_bytes(other)  # of the same size
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert update([photo]).errors == ()
    photo.touch()
    assert [failure.image for failure in update([photo]).errors] == [str(photo)]


def test_what_is_not_named_again_is_kept_unless_it_is_to_go(
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths, out = write_photos(tmp_path / "photos", range(7)), tmp_path / "out"
    update(paths)
    assert len(list(out.glob("latents-*"))) == 3
    done = update(paths[6:], keep=True)
    assert (done.images, done.dropped, done.kept) == (7, 0, 6)
    assert seeds_of(Index.open(out)) == [6, 0, 1, 2, 3, 4, 5]
    check(Index.open(out), scorer)
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        done = update(paths[2:4], keep=False)
    assert (done.images, done.dropped, done.kept) == (2, 5, 0)
    assert f"5 of 7 images of {out} are not among those given, and will be removed" in caplog.text
    assert seeds_of(Index.open(out)) == [2, 3]
    check(Index.open(out), scorer)
    assert len(list(out.glob("latents-*"))) == 2  # a shard without images goes, too


# Interruptions


class Stop(BaseException):
    """A process that is killed."""


def test_an_index_that_was_interrupted_ends_with_the_bytes_of_one_that_was_not(
    update: Callable[..., IndexUpdate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an engine whose latents depend on their batch, as those of engines do in their last bits.

    Images that cannot be read are read again by whoever goes on, and change no batch.
    """
    encode = Pipeline.encode_images

    def encode_by_place(self: Pipeline, images: Sequence[Any]) -> Any:
        latents = encode(self, images)
        places = np.arange(len(images), dtype=np.float32).reshape(-1, 1, 1, 1)
        return latents + np.float32(len(images)) + places / 64

    monkeypatch.setattr(Pipeline, "encode_images", encode_by_place)
    monkeypatch.setattr(Pipeline, "batch", BatchOfTwo(), raising=False)
    paths = write_photos(tmp_path / "photos", range(11))
    for path in (paths[0], paths[5], paths[6]):
        path.write_bytes(b"no image")
    out = tmp_path / "out"

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    update(paths, shard_size=3)
    undisturbed = content()
    assert len(undisturbed) == 2 + 3
    for moment in range(1, len(paths) + 1):
        shutil.rmtree(out)

        def stop(done: int, total: int | None, moment: int = moment) -> None:
            if done == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            update(paths, shard_size=3, progress=stop)
        update(paths, shard_size=3)
        assert content() == undisturbed


@pytest.mark.parametrize("before", [[], [0, 1, 2, 3, 4]], ids=["new", "update"])
def test_killed_at_any_moment_it_leaves_an_index_and_goes_on(
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[int],
) -> None:
    """Whatever happens to an index on disk happens by replacing or removing a file."""
    out, started = tmp_path / "out", tmp_path / "started"
    monkeypatch.setattr(Pipeline, "batch", BatchOfTwo(), raising=False)
    if before:
        update(write_photos(tmp_path / "photos", before))
        out.rename(started)
    seeds = list(range(3, 10))  # of those before, a whole shard is not among them
    paths = write_photos(tmp_path / "photos", seeds)

    def stopped(moment: int) -> bool:
        with monkeypatch.context() as patch:
            stop_at(moment, patch)
            try:
                update(paths)
            except Stop:
                return True
        return False

    def goes_on() -> None:
        finished: set[int] = set()
        if (out / "index.json").exists():
            check(Index.open(out), scorer)
            finished = set(seeds_of(Index.open(out))) & set(seeds)
        assert update(paths).encoded == len(seeds) - len(finished)
        index = Index.open(out)
        assert seeds_of(index) == seeds
        check(index, scorer)
        names = {path.name for path in out.iterdir()}
        assert names == {"index.json", "images.parquet", *index.manifest.shards}

    def start_from(state: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        if state.exists():
            shutil.copytree(state, out)

    for moment in itertools.count():
        start_from(started)
        if not stopped(moment):
            break
        shutil.rmtree(tmp_path / "once", ignore_errors=True)
        shutil.copytree(out, tmp_path / "once")
        goes_on()
        if (tmp_path / "once/.images.parquet.part").exists():  # the delicate moment: stopped again
            for second in range(3):
                start_from(tmp_path / "once")
                assert stopped(second)
                goes_on()
    assert moment > 10


class BatchOfTwo:
    """Batches of two images, so that an interruption has moments to choose from."""

    images, texts, passes = 2, 32, 32

    def __set__(self, instance: object, value: object) -> None:
        """The pipeline's own sizes do not count."""

    def __get__(self, instance: object, owner: type) -> BatchOfTwo:
        return self


def stop_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Have the n-th replacement or removal of a file be the last thing that does not happen."""
    left = [moment]

    def counting(act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Stop
            left[0] -= 1
            return act(*arguments, **options)

        return counted

    patch.setattr(Path, "replace", counting(Path.replace))
    patch.setattr(Path, "unlink", counting(Path.unlink))


def test_a_full_disk_is_a_clear_error_and_costs_nothing_that_was_finished(
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_photos(tmp_path / "photos", range(6))
    update(paths[:4])

    def disk_full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", disk_full)
        with pytest.raises(DsdError, match="No space left on device"):
            update(paths)
    assert len(Index.open(tmp_path / "out")) == 4
    check(Index.open(tmp_path / "out"), scorer)
    assert update(paths).encoded == 2


# Damage


@pytest.mark.parametrize("name", ["latents-00001.safetensors", "images.parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_on_opening(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path, name: str, damage: str
) -> None:
    out = tmp_path / "out"
    update(write_photos(tmp_path / "photos", range(5)))
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        (out / name).unlink()
    else:
        (out / name).write_bytes(content if damage == "flip" else content[:-1])
    for open_it in (Index.open, lambda folder: scorer.score(folder, TEXTS)):
        with pytest.raises(InputError, match=rf"{name} .*dsd-trt index IMAGES"):
            open_it(out)


def test_a_damaged_shard_is_made_again_and_no_other(
    update: Callable[..., IndexUpdate],
    scorer: Scorer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths, shard = write_photos(tmp_path / "photos", range(8)), "latents-00001.safetensors"
    update(paths)
    (tmp_path / "out" / shard).write_bytes(b"damaged")
    assert update(paths).encoded == 3
    assert f"{shard} was altered" in caplog.text
    assert seeds_of(Index.open(tmp_path / "out")) == list(range(8))
    check(Index.open(tmp_path / "out"), scorer)


def test_an_index_json_that_is_not_as_it_must_be_is_refused(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    paths, path = write_photos(tmp_path / "photos", range(4)), tmp_path / "out/index.json"
    update(paths)
    sound = json.loads(path.read_text())
    shard = sound["shards"]["latents-00001.safetensors"]
    for changed, complaint in (
        ({**sound, "schema_version": 2}, "schema_version 2; this dsd-trt reads 1"),
        ({**sound, "surplus": 1}, "'surplus' is not known"),
        ({**sound, "shards": {**sound["shards"], "../secret": shard}}, "'../secret'"),
        ({**sound, "shards": {"latents-00001.safetensors": shard}}, "row 0 of latents-00000"),
        ([], "schema_version None"),
    ):
        path.write_text(json.dumps(changed))
        for open_it in (Index.open, lambda _: update(paths)):
            with pytest.raises(InputError, match=complaint):
                open_it(tmp_path / "out")
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Index.open(tmp_path / "out")


# Other bundles, other folders


def test_an_index_of_another_image_encoder_is_refused(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path
) -> None:
    paths, out = write_photos(tmp_path / "photos", range(2)), tmp_path / "out"
    update(paths)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = make_bundle(tmp_path / "other", precision="fp16")
    with pytest.raises(InputError, match=r"another image encoder.*--bundle BUNDLE"):
        Scorer.load(other.folder, "onnxruntime").score(out, TEXTS)
    with pytest.raises(InputError, match="another image encoder"):
        update(paths, bundle=other.folder)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_comes_after_the_image_encoder_may_differ(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    update(write_photos(tmp_path / "photos", [4]))
    other = make_bundle(tmp_path / "other", token_mask="all")
    scores = Scorer.load(other.folder, "onnxruntime").score(tmp_path / "out", ["a dog"]).scores
    wanted = closed_form(pixels_of(4), "a dog", token_mask="all")
    assert scores[0, 0] == pytest.approx(wanted, abs=1e-6)


def test_no_folder_but_an_index_is_written_to(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    paths, out = write_photos(tmp_path / "photos", range(2)), tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(InputError, match="is not an index"):
        update(paths)
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not an index"):
        update(paths)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    assert update(paths).images == 2


# Images that cannot be read


def test_unreadable_images_are_recorded_and_cost_nothing_else(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path
) -> None:
    paths = write_photos(tmp_path / "photos", range(6))
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) // 2])
    paths[3].write_text("no image")
    paths[4].unlink()
    direct = scorer.score(paths, TEXTS)
    done = update(paths)
    assert (done.images, done.encoded) == (6, 3)
    assert done.errors == direct.errors
    assert len(done.errors) == 3
    matrix = scorer.score(tmp_path / "out", TEXTS)
    assert matrix.errors == direct.errors
    assert matrix.scores.tobytes() == direct.scores.tobytes()  # NaN where there is none
    np.testing.assert_allclose(matrix.scores[[0, 2, 5]], expected([0, 2, 5]), atol=1e-6)
    write_photos(tmp_path / "photos", range(6))
    assert update(paths).encoded == 3
    check(Index.open(tmp_path / "out"), scorer)


# WebDataset


def test_a_webdataset_is_indexed_by_its_keys(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tar = tmp_path / "a.b.tar"
    image = {seed: png(pixels_of(seed)) for seed in range(5)}
    members = {
        "00.png": image[0],
        "00.txt": b"a caption",
        "00.seg.png": image[1],
        "deep.er/02.img.PNG": image[2],
        "._00.png": b"another program's leavings",
        "./03.png": image[3],
    }
    write_tar(tar, members)
    done = update([tar])
    assert (done.images, done.errors) == (4, ())
    index = Index.open(tmp_path / "out")
    names = ["00", "00.seg.png", "deep.er/02", "./03"]
    assert [image.name for image in index] == [f"{tar}/{name}" for name in names]
    np.testing.assert_allclose(scorer.score(index, TEXTS).scores, expected(range(4)), atol=1e-6)

    encoded.clear()
    write_tar(tar, {**members, "01.png": image[4], "04.png": image[4]})
    assert update([tar]).images == 6
    assert sum(encoded) == 2
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", None)  # an unchanged tar is not read
    assert update([tar]).images == 6


def test_a_tar_that_is_cut_off_keeps_what_came_before(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path
) -> None:
    tar, (photo,) = tmp_path / "a.tar", write_photos(tmp_path / "photos", [9])
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(8)})
    whole = tar.read_bytes()
    tar.write_bytes(whole[: 5 * 1024 + 600])  # header and one block each: within the sixth image
    done = update([tar, photo])
    (failure,) = done.errors
    assert failure.image == str(tar)
    assert failure.reason == "not a whole tar file: cut off within '05.png'"
    assert done.encoded == 6
    encoded.clear()
    assert update([tar, photo]).errors == done.errors  # it is read again, and nothing encoded
    assert encoded == []
    tar.write_bytes(whole)
    encoded.clear()
    assert update([tar, photo]).errors == ()
    assert sum(encoded) == 3
    assert seeds_of(Index.open(tmp_path / "out")) == [*range(8), 9]
    check(Index.open(tmp_path / "out"), scorer)


def test_a_tar_that_cannot_be_read_this_time_loses_no_latents(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tar = tmp_path / "a.tar.gz"
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(4)}, "w:gz")
    (photo,) = write_photos(tmp_path / "photos", [9])
    update([tar, photo])
    whole = tar.read_bytes()
    tar.write_bytes(b"no tar")
    done = update([tar, photo])
    assert [failure.image for failure in done.errors] == [str(tar)]
    assert done.dropped == 0
    tar.write_bytes(whole)
    encoded.clear()
    assert update([tar, photo]).errors == ()
    assert encoded == []
    assert seeds_of(Index.open(tmp_path / "out")) == [*range(4), 9]
    check(Index.open(tmp_path / "out"), scorer)


def test_of_a_tar_all_that_is_there_is_indexed_and_the_rest_is_named(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path
) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(3)})
    with tarfile.open(tar, "a") as archive:
        for name, target in (("03.png", "gone.png"), ("04.png", "00.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    first = tar.read_bytes()
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(5, 8)})
    tar.write_bytes(first + tar.read_bytes())  # and no mark of the end is the last word
    done = update([tar])
    assert [failure.image for failure in done.errors] == [f"{tar}/03"]
    assert done.images == 8
    matrix = scorer.score(tmp_path / "out", TEXTS)
    assert [Path(name).name for name in matrix.images] == [
        "00",
        "01",
        "02",
        "04",
        "05",
        "06",
        "07",
        "03",
    ]
    np.testing.assert_allclose(matrix.scores[:-1], expected([0, 1, 2, 0, 5, 6, 7]), atol=1e-6)
    encoded.clear()
    assert update([tar]).errors == done.errors
    assert encoded == []


@pytest.mark.parametrize("kind", ["compressed", "empty", "text", "no images"])
def test_what_is_no_tar_of_images_is_recorded(
    update: Callable[..., IndexUpdate], tmp_path: Path, kind: str
) -> None:
    tar = tmp_path / "a.tar"
    tar.write_text("" if kind == "empty" else "no tar " * 200)
    if kind == "compressed":
        write_tar(tar, {"00.png": png(pixels_of(0))}, "w:xz")
    if kind == "no images":
        write_tar(tar, {"00.txt": b"a caption"})
    done = update([tar, *write_photos(tmp_path / "photos", [1])])
    assert [failure.image for failure in done.errors] == [str(tar)]
    assert done.encoded == 1


def test_stopped_within_a_tar_the_rest_of_it_is_not_forgotten(
    update: Callable[..., IndexUpdate], scorer: Scorer, encoded: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tar = tmp_path / "a.tar"
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(8)})
    monkeypatch.setattr(Pipeline, "batch", BatchOfTwo(), raising=False)

    def stop(done: int, total: int | None) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update([tar], progress=stop)
    assert seeds_of(Index.open(tmp_path / "out")) == [0, 1, 2, 3, 4, 5]
    encoded.clear()
    assert update([tar]).images == 8
    assert sum(encoded) == 2
    check(Index.open(tmp_path / "out"), scorer)


def test_a_damaged_shard_of_a_tar_is_made_again(
    update: Callable[..., IndexUpdate], scorer: Scorer, tmp_path: Path
) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {f"{seed:02}.png": png(pixels_of(seed)) for seed in range(8)})
    update([tar])
    (tmp_path / "out/latents-00000.safetensors").unlink()
    assert update([tar]).encoded == 3
    assert seeds_of(Index.open(tmp_path / "out")) == list(range(8))
    check(Index.open(tmp_path / "out"), scorer)


# Forged: hashes fit, and what they vouch for does not.


def forge(folder: Path, **files: bytes) -> None:
    """Give files of an index, by their stems, another content that `index.json` vouches for."""
    manifest = json.loads((folder / "index.json").read_text())
    for stem, content in files.items():
        (path,) = folder.glob(f"{stem.replace('_', '-')}.*")
        path.write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (manifest["table"] if stem == "images" else manifest["shards"][path.name]).update(entry)
    (folder / "index.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "latents",
    [
        {"latent": np.zeros((3, 3, 2, 2), np.float16)},
        {"latent": np.zeros((2, 3, 2, 2), np.float32)},
        {"latent": np.zeros((4, 3, 2, 2), np.float32)},
        {"latent": np.zeros((3, 3, 4, 1), np.float32)},
        {"latent": np.zeros((3, 12), np.float32)},
        {"latents": np.zeros((3, 3, 2, 2), np.float32)},
        {"latent": np.zeros((3, 3, 2, 2), np.float32), "more": np.zeros(1, np.float32)},
    ],
)
def test_latents_of_another_shape_or_type_are_refused_before_scoring(
    update: Callable[..., IndexUpdate], tmp_path: Path, latents: dict[str, NDArray[Any]]
) -> None:
    update(write_photos(tmp_path / "photos", range(3)))
    forge(tmp_path / "out", latents_00000=save(latents))
    with pytest.raises(InputError, match=r"latents-00000\.safetensors holds .* where index\.json"):
        Index.open(tmp_path / "out")
    # Which is what an index whose shard is damaged does: it encodes those images again.
    assert update(sorted((tmp_path / "photos").iterdir())).encoded == 3
    assert len(Index.open(tmp_path / "out")) == 3


def test_tables_that_are_not_of_images_are_refused(
    update: Callable[..., IndexUpdate], tmp_path: Path
) -> None:
    update(write_photos(tmp_path / "photos", range(2)))
    out = tmp_path / "out"
    table = parquet.read_table(out / "images.parquet")
    twice = pyarrow.concat_tables([table, table])
    nameless = table.set_column(0, table.schema[0], [pyarrow.nulls(2, pyarrow.string())])
    raw = pyarrow.array([b"\xff", b"a"], pyarrow.binary()).view(pyarrow.string())
    for changed, complaint in (
        (twice, "has the image .* twice"),
        (nameless, "an image without its 'name'"),
        (table.set_column(0, table.schema[0], [raw]), "is no table of images"),
        (table.drop_columns(["sha256"]), "other columns"),
        (table.set_column(6, "row", [pyarrow.array([0, None], pyarrow.int64())]), "names row None"),
        (table.set_column(6, "row", [pyarrow.array([0, 2], pyarrow.int64())]), "names row 2 of"),
    ):
        buffer = io.BytesIO()
        parquet.write_table(changed, buffer)
        forge(out, images=buffer.getvalue())
        with pytest.raises(InputError, match=complaint):
            Index.open(out)
    # A million rows of nothing take a few hundred bytes, and memory as if they were there.
    buffer = io.BytesIO()
    columns = [pyarrow.nulls(10**6, field.type) for field in table_schema()]
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=table_schema()), buffer)
    forge(out, images=buffer.getvalue())
    with pytest.raises(InputError, match="claims 1000000 images in"):
        Index.open(out)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("image_encoder/latent/shape", ["I", 3, 2], "latent.shape' must be a name"),
        ("image_encoder/latent/shape", [], "latent.shape' must be a name"),
        ("image_encoder/latent/shape", ["I", 3, 2, 2**40], "latent.shape' must be a name"),
        ("image_encoder/latent/dtype", "int32", "latent.dtype' is 'int32'"),
        ("image_encoder/preprocessing/resolution", 0, "resolution' must be from 1"),
        ("shards", {"latents-" + "9" * 5000 + ".safetensors": None}, "shards"),
        ("shards/latents-00000.safetensors/rows", 0, "rows' must be 1 or more"),
        ("shards/latents-00000.safetensors/rows", 10**30, "is an integer of 31 digits"),
    ],
)
def test_fields_of_index_json_that_cannot_be_are_named(
    update: Callable[..., IndexUpdate], tmp_path: Path, field: str, value: Any, complaint: str
) -> None:
    update(write_photos(tmp_path / "photos", range(2)))
    path = tmp_path / "out" / "index.json"
    plain = json.loads(path.read_text())
    *parents, last = field.split("/")
    at = plain
    for key in parents:
        at = at[key]
    at[last] = value
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=complaint) as refused:
        Index.open(tmp_path / "out")
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"folder": None}, "the folder of an index must be a path, got NoneType"),
        ({"folder": ""}, "the folder of an index must be a path"),
        ({"folder": "a\0b"}, "the folder of an index must be a path"),
        ({"images": "photos"}, "images must be a list of paths, got str 'photos'"),
        ({"images": None}, "images must be a list of paths"),
        ({"images": ["a.png", 3]}, r"images\[1\] must be a path, got int 3"),
        ({"shard_size": "many"}, "shard_size must be a whole number above 0"),
        ({"shard_size": 0}, "shard_size must be a whole number above 0"),
        ({"keep": "no"}, "keep must be True or False"),
        ({"self_check": 1}, "self_check must be True or False"),
        ({"progress": "bar"}, "progress must be a function"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_used_is_refused_before_the_work(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    given = {"folder": tmp_path / "index", "images": [], "bundle": bundle.folder, **changes}
    with pytest.raises(InputError, match=found):
        update_index(**given, engine="onnxruntime")
    assert not (tmp_path / "index").exists()
    for wrong in (None, 3, "a\0b", ""):
        with pytest.raises(InputError, match="the folder of an index must be a path"):
            Index.open(wrong)  # type: ignore[arg-type]
