"""Parquet tables that hold the images themselves, as data sets of images are published."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from bundles import RESOLUTION, closed_form, make_bundle, probability
from in_process import Run
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

import dsd_trt.tables.parquet as reading
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.commands.main import main
from dsd_trt.errors import ImageError, InputError
from dsd_trt.tables.embedded import EmbeddedImage, ImageColumn
from dsd_trt.tables.labelled import read_labelled
from dsd_trt.tables.table import Table
from dsd_trt.train.data.table import read_table

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "dog", "a green square"]
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
# What `datasets` writes beside the columns; it makes PIL images of those of this type.
FEATURES = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "text": {"dtype": "string", "_type": "Value"},
        }
    }
}
Cell = dict[str, Any] | None
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pixels() -> list[Pixels]:
    generator = np.random.default_rng(17)
    noise = generator.integers(0, 256, (6, RESOLUTION, RESOLUTION, 3))
    return list((noise * generator.uniform(0, 1, (6, 1, 1, 3))).astype(np.uint8))


def encoded(pixels: Pixels, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def run(dsd_trt: Callable[..., Run]) -> Callable[..., Run]:
    return lambda *arguments: dsd_trt("score", *arguments)


def cells(pixels: Sequence[Pixels], folder: Path) -> tuple[list[Cell], list[int | None]]:
    """Images of rows in every form, good and bad; and which of `pixels` each one is."""
    Image.fromarray(pixels[5]).save(folder / "named.png")
    good: list[tuple[Cell, int | None]] = [
        ({"bytes": encoded(it), "path": f"{place}.png" if place % 2 else None}, place)
        for place, it in enumerate(pixels[:5])
    ]
    bad: list[tuple[Cell, int | None]] = [
        (None, None),
        ({"bytes": None, "path": None}, None),
        ({"bytes": b"", "path": "empty.png"}, None),
        ({"bytes": encoded(pixels[0])[:60], "path": "cut.png"}, None),
        ({"bytes": None, "path": "gone.png"}, None),
        ({"bytes": None, "path": "named.png"}, 5),
    ]
    found = [*good, *bad, *good[::-1], *bad[3:], *good[1:3]]
    return [cell for cell, _ in found], [place for _, place in found]


def write(path: Path, images: Any, texts: Sequence[str], **options: Any) -> pyarrow.Table:
    table = pyarrow.table(
        {"id": list(range(len(texts))), "image": images, "text": list(texts)}
    ).replace_schema_metadata({"huggingface": json.dumps(FEATURES)})
    parquet.write_table(table, path, **options)
    return table


def require_scores(rows: Sequence[dict[str, Any]], of: Sequence[int | None], pixels: Any) -> None:
    assert len(rows) == len(of)
    for row, place in zip(rows, of, strict=True):
        if place is None:
            assert row["score"] in (None, "")
            assert row["error"]
            continue
        expected = closed_form(pixels[place], row["text"])
        assert float(row["score"]) == pytest.approx(expected, abs=1e-6)
        assert float(row["probability"]) == pytest.approx(probability(expected), abs=1e-6)
        assert not row["error"]


@pytest.mark.parametrize("rows_at_once", [1, 3, 1024])
@pytest.mark.parametrize("of_group", [4, 1000])
def test_a_row_out_for_each_row_in(
    run: Callable[..., Run],
    tmp_path: Path,
    pixels: list[Pixels],
    rows_at_once: int,
    of_group: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the row groups and the batches that are read; types and metadata stay."""
    monkeypatch.setattr(reading, "BATCH", rows_at_once)
    images, of = cells(pixels, tmp_path)
    texts = [TEXTS[number % 3] for number in range(len(of))]
    given = write(
        tmp_path / "in.parquet", pyarrow.array(images, STRUCT), texts, row_group_size=of_group
    )
    ended = run("--pairs", "in.parquet", "-o", "out.parquet")
    assert ended.code == 3, ended.err
    out = parquet.read_table(tmp_path / "out.parquet")
    assert out.select(given.column_names).equals(given)
    own = {b"dsd-trt": out.schema.metadata[b"dsd-trt"]}
    assert out.schema.metadata == given.schema.metadata | own
    require_scores(out.to_pylist(), of, pixels)
    errors = out.column("error").to_pylist()
    for place, part in enumerate(
        ["image is empty", "image is empty", "the file is empty", "truncated", "no image file"],
        start=5,
    ):
        assert part in errors[place]
    lines = run("--pairs", "in.parquet", "-f", "jsonl")
    shown = [json.loads(it) for it in lines.out.splitlines()]
    require_scores(shown, of, pixels)
    named = ["row 1", "1.png", "row 3", "3.png", "row 5", None, None, "empty.png", "cut.png"]
    assert [it["image"] for it in shown[:9]] == named
    assert "row 8: empty.png" in lines.err
    assert len(run("--pairs", "in.parquet", "-f", "csv").out) < 5000  # no image in it


def test_equal_images_are_scored_once(
    run: Callable[..., Run], tmp_path: Path, pixels: list[Pixels]
) -> None:
    """By their bytes, whatever their paths; equal paths are not equal images."""
    images = [{"bytes": encoded(pixels[n % 2]), "path": f"{n % 3}.png"} for n in range(24)]
    write(tmp_path / "in.parquet", pyarrow.array(images, STRUCT), ["dog"] * 24)
    ended = run("--pairs", "in.parquet", "-o", "out.parquet")
    assert ended.code == 0, ended.err
    assert "scored 2 pairs" in ended.err
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    require_scores(rows, [n % 2 for n in range(24)], pixels)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_best_texts_of_each_stored_image(
    run: Callable[..., Run], tmp_path: Path, pixels: list[Pixels], form: str
) -> None:
    images = [{"bytes": encoded(pixels[n % 5]), "path": "same.png"} for n in range(30)]
    texts = [f"{'blue ' * (n // 5)}{TEXTS[n % 3]}" for n in range(30)]
    given = write(tmp_path / "in.parquet", pyarrow.array(images, STRUCT), texts, row_group_size=9)
    ended = run("--pairs", "in.parquet", "--top-k", "2", "-o", f"out.{form}")
    assert ended.code == 0, ended.err
    scores = [closed_form(pixels[n % 5], texts[n]) for n in range(30)]
    best = [
        n for image in range(5) for n in sorted(range(image, 30, 5), key=lambda n: -scores[n])[:2]
    ]
    if form == "jsonl":
        rows = [json.loads(it) for it in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rows] == best
        assert {row["image"] for row in rows} == {"same.png"}
    else:
        out = parquet.read_table(tmp_path / "out.parquet")
        assert out.select(given.column_names).equals(given.take(pyarrow.array(best)))


@pytest.mark.parametrize(
    "kind", ["binary", "large_binary", "binary_view", "dictionary", "struct of large_binary"]
)
def test_columns_of_bytes_in_every_type(
    run: Callable[..., Run], tmp_path: Path, pixels: list[Pixels], kind: str
) -> None:
    content = [encoded(it, "JPEG" if place else "PNG") for place, it in enumerate(pixels)]
    if kind == "dictionary":
        images: Any = pyarrow.array(content, pyarrow.binary()).dictionary_encode()
    elif kind.startswith("struct"):
        struct = pyarrow.struct([("bytes", pyarrow.large_binary())])
        images = pyarrow.array([{"bytes": it} for it in content], struct)
    else:
        images = pyarrow.array(content, getattr(pyarrow, kind)())
    write(tmp_path / "in.parquet", images, ["dog"] * 6)
    ended = run("--pairs", "in.parquet", "-f", "jsonl")
    assert ended.code == 0, ended.err
    rows = [json.loads(it) for it in ended.out.splitlines()]
    decoded = [np.asarray(Image.open(io.BytesIO(it)).convert("RGB")) for it in content]
    require_scores(rows, list(range(6)), decoded)
    assert [row["image"] for row in rows] == [f"row {n}" for n in range(1, 7)]


def test_columns_of_anything_else_are_refused(run: Callable[..., Run], tmp_path: Path) -> None:
    for images, kind in (
        (pyarrow.array([1, 2]), "int64"),
        (pyarrow.array([[1], [2]]), "list<"),
        (pyarrow.array([{"bytes": "a"}] * 2), "struct<bytes: string>"),
        (pyarrow.array([{"content": b"a"}] * 2), "struct<content: binary>"),
    ):
        write(tmp_path / "in.parquet", images, ["dog", "a dog"])
        ended = run("--pairs", "in.parquet")
        assert ended.code == 2
        assert "'image' has neither paths nor images, but " + kind in ended.err
        assert "--image-column NAME" in ended.err
    table = pyarrow.table({"image": ["a.png"], "text": pyarrow.array([b"dog"])})
    parquet.write_table(table, tmp_path / "in.parquet")
    ended = run("--pairs", "in.parquet")
    assert ended.code == 2
    assert "'text' has no texts but binary. Name the texts' column: --text-column" in ended.err


def test_the_limits_of_files_hold(
    run: Callable[..., Run], tmp_path: Path, pixels: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    content = [encoded(pixels[0]), encoded(noise), encoded(np.zeros((50, 50, 3), np.uint8))]
    assert len(content[1]) > 1000 > max(len(content[0]), len(content[2]))
    write(tmp_path / "in.parquet", pyarrow.array(content), ["dog"] * 3)
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_BYTES", "1000")
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "2000")
    ended = run("--pairs", "in.parquet", "-f", "jsonl")
    assert ended.code == 3
    first, large, wide = (json.loads(it)["error"] for it in ended.out.splitlines())
    assert first is None
    assert "more than 1000 bytes; the limit is DSD_TRT_MAX_IMAGE_BYTES" in large
    assert "more than 2000 pixels" in wide


def test_large_rows_are_read_few_at_a_time(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    content = [generator.bytes(4 << 20) for _ in range(12)]
    write(tmp_path / "in.parquet", pyarrow.array(content), ["dog"] * 12)
    table = Table.open(tmp_path / "in.parquet").reader
    assert isinstance(table, reading.ParquetTable)
    found = [(start, batch.num_rows) for start, batch in table.batches()]
    assert [start for start, _ in found] == list(np.cumsum([0, *(n for _, n in found[:-1])]))
    assert sum(count for _, count in found) == 12
    assert max(count for _, count in found) <= 4
    assert len(list(table.batches(["id"]))) == 1


def test_images_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH", 3)
    content = [f"image {number}".encode() for number in range(40)]
    write(tmp_path / "in.parquet", pyarrow.array(content), ["x"] * 40, row_group_size=7)
    table = Table.open(tmp_path / "in.parquet")
    column = ImageColumn(table, "image")
    images = [column.of(row) for row in table.rows()]
    order = np.random.default_rng(0).permutation(40).tolist()
    for number in [*range(40), *order, *reversed(range(40)), 39, 0, 6, 7, 8, 39]:
        image = images[number]
        assert isinstance(image, EmbeddedImage)
        assert image.content() == content[number]
    changed = [b"other", *content[1:]]
    write(tmp_path / "in.parquet", pyarrow.array(changed), ["x"] * 40, row_group_size=7)
    first = images[0]
    assert isinstance(first, EmbeddedImage)
    with pytest.raises(ImageError, match="was changed while it was read"):
        first.content()


def test_a_stopped_run_goes_on(
    run: Callable[..., Run], tmp_path: Path, pixels: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsd_trt.journal as journal

    monkeypatch.setattr("dsd_trt.pairs.run._PAIRS", 5)
    images, of = cells(pixels, tmp_path)
    texts = [f"dog {number % 4}" for number in range(len(of))]
    write(tmp_path / "in.parquet", pyarrow.array(images, STRUCT), texts, row_group_size=6)
    assert run("--pairs", "in.parquet", "-o", "whole.parquet").code == 3
    write_line, left = journal.Journal._write, [4]

    def stopping(self: journal.Journal, content: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_line(self, content)

    monkeypatch.setattr(journal.Journal, "_write", stopping)
    assert run("--pairs", "in.parquet", "-o", "out.parquet").code == 130
    left[0] = 1000
    ended = run("--pairs", "in.parquet", "-o", "out.parquet", "--resume")
    assert ended.code == 3
    assert "were scored before" in ended.err
    names = ("out.parquet", "whole.parquet")
    assert len({(tmp_path / it).read_bytes() for it in names}) == 1
    left[0] = 4
    assert run("--pairs", "in.parquet", "-o", "out.parquet").code == 130
    images[0] = {"bytes": encoded(pixels[5]), "path": None}  # same size, another image
    write(tmp_path / "in.parquet", pyarrow.array(images, STRUCT), texts, row_group_size=6)
    ended = run("--pairs", "in.parquet", "-o", "out.parquet", "--resume")
    assert ended.code == 2
    assert "is of another run" in ended.err


def test_a_filter_passes_images_on(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: list[Pixels]
) -> None:
    images, of = cells(pixels, tmp_path)
    given = write(tmp_path / "in.parquet", pyarrow.array(images, STRUCT), ["dog"] * len(of))
    keep = ("--keep-best", "4")
    ended = dsd_trt(
        "filter", "in.parquet", *keep, "-o", "kept.parquet", "--dropped", "dropped.csv",
        "--copy-to", "copies",
    )  # fmt: skip
    assert ended.code == 3, ended.err
    scores = {n: closed_form(pixels[it], "dog") for n, it in enumerate(of) if it is not None}
    best = sorted(sorted(scores, key=lambda n: -scores[n])[:4])
    kept = parquet.read_table(tmp_path / "kept.parquet")
    assert kept.select(given.column_names).equals(given.take(pyarrow.array(best)))
    assert kept.schema.metadata == given.schema.metadata
    dropped = (tmp_path / "dropped.csv").read_text().splitlines()
    assert len(dropped) == 1 + len(of) - 4
    assert max(map(len, dropped)) < 200
    expected = {images[n]["bytes"] or (tmp_path / "named.png").read_bytes() for n in best}  # type: ignore[index]
    copies = [it for it in (tmp_path / "copies").rglob("*") if it.is_file()]
    assert {it.read_bytes() for it in copies} == expected
    assert all(it.suffix == ".png" for it in copies)
    assert dsd_trt("filter", "in.parquet", *keep, "-o", "kept.tar").code == 3
    with tarfile.open(tmp_path / "kept.tar") as tar:
        members = {it.name: tar.extractfile(it).read() for it in tar}  # type: ignore[union-attr]
    assert {members[f"{n:09d}.png"] for n in best} == expected
    for n in best:
        columns = json.loads(members[f"{n:09d}.json"])
        assert columns["id"] == n
        assert isinstance(columns["image"], str)


def test_labelled_pairs_and_questions_have_stored_images(
    tmp_path: Path, pixels: list[Pixels]
) -> None:
    """Those of calibrate, eval and train: the same image is one source, whatever its path."""
    images, of = cells(pixels, tmp_path)
    table = pyarrow.table(
        {
            "image": pyarrow.array(images, STRUCT),
            "text": [f"text {n}" for n in range(len(of))],
            "label": [int(n % 2 == 0) for n in range(len(of))],
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    found = read_labelled(Table.open(tmp_path / "in.parquet"))
    there = [n for n, cell in enumerate(images) if cell and (cell["bytes"] is not None)]
    named = [n for n, place in enumerate(of) if place == 5]
    assert [pair.text for pair in found.pairs] == [f"text {n}" for n in sorted([*there, *named])]
    for pair in found.pairs:
        number = int(pair.text.split()[1])
        cell = images[number]
        assert cell is not None
        if isinstance(pair.image, EmbeddedImage):
            assert pair.image.content() == cell["bytes"]
        else:
            assert pair.image == tmp_path / "named.png"
    groups: dict[str, set[bytes]] = {}
    for pair in found.pairs:
        if isinstance(pair.image, EmbeddedImage):
            groups.setdefault(pair.key, set()).add(pair.image.content())
    assert all(len(it) == 1 for it in groups.values())
    assert len(groups) == len({cell["bytes"] for cell in images if cell and cell["bytes"]}) + 1
    questions = read_table(tmp_path / "in.parquet", 0).questions
    assert questions
    sources: dict[object, set[str]] = {}
    for question in questions:
        (image,) = {image for image, _ in question.candidates}
        sources.setdefault(image, set()).add(question.source)
        assert isinstance(image, EmbeddedImage | Path)
    assert all(len(it) == 1 for it in sources.values())


def test_calibrate_fits_stored_images(
    dsd_trt: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does files of the same pictures."""
    generator = np.random.default_rng(3)
    rows, lines = [], ["image,text,label"]
    for number in range(30):
        colour = generator.integers(0, 256, 3).astype(np.uint8)
        picture = np.tile(colour, (RESOLUTION, RESOLUTION, 1))
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        label = int(picture[0, 0, 0] + generator.normal(0, 60) > 128)
        image = {"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": "image.png"}
        rows.append({"image": image, "text": "a red circle", "label": label})
        lines.append(f"{number}.png,a red circle,{label}")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("\n".join(lines))
    fits = []
    for table in ("a.parquet", "b.csv"):
        bundle = make_bundle(tmp_path / table[0])
        with pytest.raises(SystemExit) as ended:
            main(["calibrate", str(bundle.folder), "--data", table, "--engine", "onnxruntime"])
        assert not ended.value.code, capsys.readouterr().err
        assert "30 pairs of 30 images" in capsys.readouterr().out
        fitted = read_bundle(bundle.folder).manifest.calibration
        assert fitted is not None
        fits.append((fitted.a, fitted.b))
    assert fits[0] == pytest.approx(fits[1], rel=1e-5)


def test_eval_measures_stored_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy and ROC AUC are those of files of the same pictures."""
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle(tmp_path / "bundle")
    generator = np.random.default_rng(5)
    rows, lines = [], ["image,text,label"]
    for number in range(12):
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        for text in generator.permutation(TEXTS)[:2]:
            label = int(text == "dog" or generator.random() < 0.3)
            image = {"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": "same.png"}
            rows.append({"image": image, "text": text, "label": label})
            lines.append(f"{number}.png,{text},{label}")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("\n".join(lines))
    found = []
    for table in ("a.parquet", "b.csv"):
        command = ["eval", str(bundle.folder), "--data", table, "--engine", "onnxruntime"]
        with pytest.raises(SystemExit) as ended:
            main([*command, "-f", "json", "--out", f"out-{table}"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        told = json.loads(printed.out)
        found.append({name: it for name, it in told.items() if name in ("pairs", "rows")})
        assert (tmp_path / f"out-{table}" / "scores.jsonl").read_text()
    assert found[0]
    assert found[0] == found[1]


def test_a_table_that_is_cut_off_is_told(tmp_path: Path, pixels: list[Pixels]) -> None:
    write(tmp_path / "in.parquet", pyarrow.array([encoded(it) for it in pixels]), ["x"] * 6)
    whole = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no whole Parquet file"):
        Table.open(tmp_path / "cut.parquet")
    damaged = bytearray(whole)
    damaged[10:400] = bytes(390)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(InputError, match="no whole Parquet file"):
        list(Table.open(tmp_path / "damaged.parquet").rows())


def test_datasets_reads_what_a_filter_keeps(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: list[Pixels]
) -> None:
    if find_spec("datasets") is None:
        pytest.skip("datasets is not installed")
    script = """
import sys
from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as Pictures
made, kept = sys.argv[1:]
if made:
    pictures = [{"path": f"{n}.png", "bytes": open(f"{n}.png", "rb").read()} for n in range(6)]
    features = Features({"image": Image(), "text": Value("string")})
    given = Dataset.from_dict({"image": pictures, "text": ["dog"] * 6}, features=features)
    given.to_parquet(made)
else:
    read = load_dataset("parquet", data_files=kept, split="train", cache_dir="cache")
    assert isinstance(read.features["image"], Image), read.features
    print("READ", [row["image"].size for row in read], [row["score"] for row in read])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def by_datasets(*arguments: str) -> str:
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    for number, it in enumerate(pixels):
        Image.fromarray(it).save(tmp_path / f"{number}.png")
    by_datasets("in.parquet", "")
    ended = dsd_trt("filter", "in.parquet", "--keep-best", "3", "-o", "kept.parquet")
    assert ended.code == 0, ended.err
    assert f"READ {[(RESOLUTION, RESOLUTION)] * 3}" in by_datasets("", "kept.parquet")
