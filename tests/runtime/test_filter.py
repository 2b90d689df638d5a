"""`dsd-trt filter`: which pairs are kept, and what is written of them."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, make_bundle, probability
from in_process import Run
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from dsd_trt.bundle.folder import write_bundle
from dsd_trt.bundle.manifest import FittedOn
from dsd_trt.commands.filtered import Filtered
from dsd_trt.commands.output import Record
from dsd_trt.errors import InputError
from dsd_trt.files.unfinished import unfinished_name
from dsd_trt.pairs.choice import above, best, expected_precision, histogram, measured_precision
from dsd_trt.pairs.shards import NewWebDataset

pytest_plugins = ("in_process",)

Pixels = dict[str, NDArray[np.uint8]]
TEXTS = ["a red circle", "dog", "a blue square, a green dog"]


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    generator = np.random.default_rng(11)
    found = {}
    (tmp_path / "in").mkdir()
    for name in (f"in/{place}.png" for place in range(8)):
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3))
        found[name] = (noise * generator.uniform(0, 1, 3)).astype(np.uint8)
        Image.fromarray(found[name]).save(tmp_path / name)
    (tmp_path / "in/broken.png").write_text("no image")
    return found


@pytest.fixture
def run(dsd_trt: Callable[..., Run], pixels: Pixels) -> Callable[..., Run]:
    return lambda *arguments: dsd_trt("filter", *arguments)


@pytest.fixture
def rows(pixels: Pixels, tmp_path: Path) -> list[dict[str, str]]:
    """Rows of `pairs.csv`: duplicates, a broken and a missing image."""
    images = [*pixels, "in/broken.png", *list(pixels)[:3], "in/gone.png"]
    rows = [
        {"id": str(n), "image": image, "text": TEXTS[n % 3]} for n, image in enumerate(images * 2)
    ]
    write_csv(tmp_path / "pairs.csv", rows)
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scores(rows: list[dict[str, str]], pixels: Pixels) -> list[float]:
    return [
        closed_form(pixels[row["image"]], row["text"]) if row["image"] in pixels else float("nan")
        for row in rows
    ]


def ids(path: Path) -> list[str]:
    return [row["id"] for row in read_csv(path)]


def test_pairs_above_a_probability_are_kept_and_all_others_have_a_reason(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, rows: list[dict[str, str]]
) -> None:
    likely = [probability(f) for f in scores(rows, pixels)]
    least = float(np.nanmedian(likely)) + 1e-4
    arguments = ("--min-probability", str(least), "-o", "kept.csv", "--dropped", "dropped.csv")
    ended = run("pairs.csv", *arguments)
    assert ended.code == 3, ended.err
    kept = [row["id"] for row, p in zip(rows, likely, strict=True) if p >= least]
    assert 0 < len(kept) < len(rows) - 4
    assert ids(tmp_path / "kept.csv") == kept
    assert list(read_csv(tmp_path / "kept.csv")[0]) == [
        "id",
        "image",
        "text",
        "score",
        "probability",
    ]
    dropped = read_csv(tmp_path / "dropped.csv")
    assert {*kept, *(row["id"] for row in dropped)} == {row["id"] for row in rows}
    assert len(kept) + len(dropped) == len(rows)
    reasons = {row["id"]: row["reason"] for row in dropped}
    for row, p in zip(rows, likely, strict=True):
        if row["image"] not in pixels:
            assert reasons[row["id"]].startswith("cannot be scored: ")
        elif p < least:
            assert reasons[row["id"]] == f"probability below {least:g}"
    assert f"rows: {len(rows)}, kept {len(kept)} (" in ended.err
    assert "could not be scored 4\n" in ended.err
    assert not list(tmp_path.glob("*.journal*"))
    counts = [int(it) for it in re.findall(r"^ *[\d.]+- *[\d.]+ +(\d+)", ended.err, re.M)]
    assert (len(counts), sum(counts)) == (10, len(rows) - 4)


@pytest.mark.parametrize("asked", ["5", "30%", "100%", "1000"])
def test_the_best_are_kept_in_the_order_of_the_table(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, rows: list[dict[str, str]], asked: str
) -> None:
    f = np.array(scores(rows, pixels))
    there = np.flatnonzero(~np.isnan(f))
    count = -(-len(there) * int(asked[:-1]) // 100) if asked.endswith("%") else int(asked)
    ended = run("pairs.csv", "--keep-best", asked, "-o", "kept.jsonl")
    assert ended.code == 3
    assert ("that is all, as" in ended.err) == (asked == "1000")
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == min(count, len(there))
    assert [int(row["id"]) for row in kept] == sorted(int(row["id"]) for row in kept)
    lowest = min(f[int(row["id"])] for row in kept)
    assert sum(f[there] > lowest + 1e-6) <= len(kept)


def test_precision_is_expected_from_probabilities_or_measured_on_labels(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, rows: list[dict[str, str]]
) -> None:
    likely = np.array([probability(f) for f in scores(rows, pixels)])
    ordered = np.sort(likely[~np.isnan(likely)])[::-1]
    precision = float(ordered[:7].mean()) - 1e-4
    ended = run("pairs.csv", "--target-precision", str(precision), "-o", "kept.csv")
    assert ended.code == 3
    assert "from the calibrated probabilities" in ended.err
    assert "warning: the probabilities were fitted in training" in ended.err
    kept = [float(row["probability"]) for row in read_csv(tmp_path / "kept.csv")]
    assert np.mean(kept) >= precision - 1e-6
    assert len(kept) >= 7
    more = np.append(kept, max(p for p in ordered if p < min(kept) - 1e-6))
    assert more.mean() < precision + 1e-6
    # Labels in the table: all but the lowest fifth are positive.
    lower = float(np.nanquantile(likely, 0.2))
    labelled = [
        {**row, "label": "" if np.isnan(p) or int(row["id"]) % 7 == 3 else str(int(p > lower))}
        for row, p in zip(rows * 4, likely.tolist() * 4, strict=True)
    ]
    write_csv(tmp_path / "labelled.csv", labelled)
    for arguments in (
        ("labelled.csv",),
        ("pairs.csv", "--labelled", "labelled.csv"),
    ):
        ended = run(*arguments, "--target-precision", "0.6", "-o", "kept.csv")
        assert ended.code == 3, ended.err
        assert re.search(r"precision 0\.6, measured on \d+ labelled pairs", ended.err)
        assert ids(tmp_path / "kept.csv")
        assert "labels are positive" not in ended.err
    write_csv(tmp_path / "positives.csv", [it for it in labelled if it["label"] == "1"])
    ended = run("positives.csv", "--target-precision", "0.6", "-o", "kept.csv")
    assert re.search(r"warning: all \d+ labels are positive", ended.err)
    ended = run("labelled.csv", "--target-precision", "0.999", "-o", "kept.csv")
    assert ended.code == 2
    assert "no threshold is sure to reach the precision 0.999" in ended.err
    ended = run("labelled.csv", "--keep-best", "3", "-o", "kept.csv", "--resume")
    assert "scored 0 pairs" in ended.err  # nothing was scored again
    assert len(ids(tmp_path / "kept.csv")) == 3


def test_a_precision_that_few_pairs_alone_show_is_no_evidence() -> None:
    """Of 14 positives above 14 negatives, 14 kept pairs show 0.895, and 20 kept pairs 0.55."""
    scores = np.linspace(1, 0, 28, dtype=np.float32)
    labels = [place < 14 for place in range(28)]
    with pytest.raises(InputError) as raised:
        measured_precision(scores, scores, labels, range(28), 0.8)
    assert "only the best 14 of 28 labelled pairs show it" in str(raised.value)
    assert "at least 20 must" in str(raised.value)
    assert "20 kept pairs must have a label: if 50% are positive, label at least 40 pairs" in str(
        raised.value
    )
    with pytest.raises(InputError, match=r"with 28 labelled pairs, at most 0\.89") as raised:
        measured_precision(scores, scores, labels, range(28), 0.95)
    assert "32 kept pairs must have a label: if 50% are positive, label at least 64" in str(
        raised.value
    )
    assert "dsd-trt calibrate BUNDLE --data TABLE" in str(raised.value)
    mixed = np.linspace(1, 0, 200, dtype=np.float32)
    with pytest.raises(InputError, match="So many are there, but too many negatives score as high"):
        measured_precision(mixed, mixed, [True, False] * 100, range(200), 0.95)


def test_choices_against_slow_ones() -> None:
    generator = np.random.default_rng(2)
    for _ in range(50):
        values = np.round(generator.uniform(0, 1, 40), 1).astype(np.float32)
        values[generator.integers(0, 40, 5)] = np.nan
        precision = float(generator.uniform(0.4, 1))
        kept = expected_precision(values, precision).kept
        wanted: NDArray[np.bool_] = np.zeros(40, np.bool_)
        for threshold in np.unique(values[~np.isnan(values)]):
            chosen = values >= threshold
            if (
                values[chosen].astype(np.float64).mean() >= precision - 1e-9
                and chosen.sum() > wanted.sum()
            ):
                wanted = chosen
        assert (kept == wanted).all()
        assert (above(values, 0.5).kept == (values >= 0.5)).all()
        count = int(generator.integers(1, 40))
        chosen = best(values, str(count)).kept
        assert chosen.sum() == min(count, (~np.isnan(values)).sum())
        assert not np.isnan(values[chosen]).any()
        if (rest := values[~chosen & ~np.isnan(values)]).size:
            assert values[chosen].min() >= rest.max()
    labels = [True] * 50 + [False] * 50
    given = np.linspace(1, 0, 100, dtype=np.float32)
    found = measured_precision(given, given, labels, range(100), 0.9)
    assert found.kept.sum() >= 50 - 5
    assert np.mean(np.array(labels)[found.kept]) >= 0.9


def test_the_histogram_shows_how_many_pairs_of_each_range_are_kept() -> None:
    """Kept by score, shown by probability: one range can have kept and dropped pairs."""
    values = np.array([0.05, 0.91, 0.92, 0.93, 0.94, np.nan, 0.95], np.float32)
    kept = np.array([False, True, False, True, False, True, False])
    head, *lines = histogram(values, kept, "probability", width=5)
    assert head.split() == ["probability", "rows", "kept"]
    assert [line.split() for line in lines] == [
        ["0.000-", "0.100", "1", "0", "-"],
        *([f"0.{n}00-", f"0.{n + 1}00", "0", "0"] for n in range(1, 9)),
        ["0.900-", "1.000", "5", "2", "**---"],
    ]
    assert histogram(np.full(3, np.nan, np.float32), np.ones(3, np.bool_), "score") == []


def test_a_bundle_without_a_fitted_probability_chooses_by_score_alone(
    dsd_trt: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    made = make_bundle(tmp_path / "plain")
    plain = write_bundle(made.folder, replace(made.manifest, calibration=None))
    dsd_trt = partial(dsd_trt, "filter", "--bundle", str(plain.folder))
    for option in ("--min-probability", "--target-precision"):
        ended = dsd_trt("pairs.csv", option, "0.9", "-o", "kept.csv")
        assert ended.code == 2, ended.err
        assert "dsd-trt calibrate" in ended.err
        assert "choose by score: --keep-best" in ended.err
        assert not (tmp_path / "kept.csv").exists()
    ended = dsd_trt("pairs.csv", "--keep-best", "3", "-o", "kept.csv")
    assert ended.code == 3, ended.err
    kept = read_csv(tmp_path / "kept.csv")
    assert [row["probability"] for row in kept] == [""] * 3
    labelled = [{**row, "label": str(n % 2)} for n, row in enumerate(rows * 4)]
    write_csv(tmp_path / "labelled.csv", labelled)
    ended = dsd_trt("labelled.csv", "--target-precision", "0.2", "-o", "kept.csv")
    assert (ended.code, "measured on" in ended.err) == (3, True), ended.err


def test_probabilities_fitted_to_labelled_pairs_are_believed(
    dsd_trt: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    made = make_bundle(tmp_path / "own")
    calibration = made.manifest.calibration
    assert calibration is not None
    on = FittedOn("some.csv", 200, 90, 80, 0.45, "pair", (0.2,), 0.02, "2026-11-29")
    for fitted_on in (None, on):
        fitted = replace(calibration, fitted_on=fitted_on)
        own = write_bundle(made.folder, replace(made.manifest, calibration=fitted)).folder
        command = ("pairs.csv", "--bundle", str(own), "--target-precision", "0.5", "-o", "kept.csv")
        ended = dsd_trt("filter", *command)
        assert ended.code == 3, ended.err
        assert (f"dsd-trt calibrate {own} --data TABLE" in ended.err) is (fitted_on is None)


def test_images_of_kept_rows_are_copied_under_their_names(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, rows: list[dict[str, str]]
) -> None:
    ended = run("pairs.csv", "--keep-best", "6", "-o", "kept.csv", "--copy-to", "best")
    assert ended.code == 3
    kept = {row["image"] for row in read_csv(tmp_path / "kept.csv")}
    copies = {str(it.relative_to(tmp_path / "best")) for it in (tmp_path / "best").rglob("*.png")}
    assert copies == kept
    for name in kept:
        assert (tmp_path / "best" / name).read_bytes() == (tmp_path / name).read_bytes()
        assert not (tmp_path / "best" / name).is_symlink()
    assert f"images copied to best: {len(kept)}" in ended.err
    ended = run("pairs.csv", "--keep-best", "6", "-o", "kept.csv", "--copy-to", "best")
    assert (ended.code, "best is there: give a new folder" in ended.err) == (2, True)
    arguments = ("--keep-best", "6", "-o", "kept.csv", "--copy-to", "in", "--force")
    ended = run("pairs.csv", *arguments)
    assert (ended.code, "in has inputs" in ended.err) == (2, True)
    elsewhere = [{**row, "image": f"../{row['image']}"} for row in rows]
    (tmp_path / "sub").mkdir()
    write_csv(tmp_path / "sub/pairs.csv", elsewhere)
    run("sub/pairs.csv", "--keep-best", "6", "-o", "kept.csv", "--copy-to", "sub/best")
    assert {
        str(it.relative_to(tmp_path / "sub/best")) for it in (tmp_path / "sub/best").rglob("*.png")
    } == kept


def test_wrong_use_is_said_before_anything_runs(
    run: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    some = ("--keep-best", "3")
    (tmp_path / "wrong.csv").write_text("image,text,label\nin/0.png,dog,maybe\n")
    for arguments, complaint in (
        (["pairs.csv", "-o", "k.csv"], "say which pairs to keep, in one way"),
        (["pairs.csv", *some, "--min-probability", "0.5", "-o", "k.csv"], "in one way"),
        (["pairs.csv", *some], "Missing option '-o'"),
        (["pairs.csv", "--keep-best", "0", "-o", "k.csv"], "neither a number of rows nor a share"),
        (["pairs.csv", "--keep-best", "120%", "-o", "k.csv"], "nor a share such as 30%"),
        (["pairs.csv", "--keep-best", "0.3", "-o", "k.csv"], "nor a share such as 30%"),
        (["pairs.csv", *some, "--labelled", "pairs.csv", "-o", "k.csv"], "is for --target"),
        (["pairs.csv", *some, "-o", "pairs.csv"], "is read as an input"),
        (["pairs.csv", *some, "-o", "k.csv", "--dropped", "./k.csv"], "different places"),
        (["pairs.csv", *some, "-o", "in"], "in has inputs"),
        (["pairs.csv", *some, "-o", "a-%d-%d.tar"], "must have one number"),
        (["gone.csv", *some, "-o", "k.csv"], "does not exist"),
        (["wrong.csv", "--target-precision", "0.9", "-o", "k.csv"], "line 2: label must be 0 or 1"),
        (["pairs.csv", "--target-precision", "0.9", "--labelled", "pairs.csv", "-o", "k.csv"],
         "no column 'label' among"),
    ):  # fmt: skip
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, ""), (arguments, ended.err)
        assert complaint in ended.err, (arguments, ended.err)
        assert "engine:" not in ended.err, arguments


def test_a_stopped_filter_leaves_nothing_and_goes_on(
    run: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import dsd_trt.journal as journal

    outputs = ("--dropped", "dropped.parquet", "--copy-to", "best")
    monkeypatch.setattr("dsd_trt.pairs.run._PAIRS", 4)
    write = journal.Journal._write
    left = [5]

    def stopping(self: journal.Journal, content: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, content)

    before = {it.name for it in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "_write", stopping)
        ended = run("pairs.csv", "--keep-best", "6", "-o", "kept/", *outputs)
    assert ended.code == 130
    assert {it.name for it in tmp_path.iterdir()} - before == {"kept.journal"}
    assert "kept in kept.journal: the same command with --resume" in ended.err
    ended = run("pairs.csv", "--keep-best", "6", "-o", "kept/", *outputs, "--resume")
    assert ended.code == 3, ended.err
    assert "going on after" in ended.err
    assert parquet.read_table(tmp_path / "dropped.parquet").num_rows == len(rows) - 6
    assert [it.name for it in (tmp_path / "kept").iterdir()] == ["000000.tar"]


def make_shards(folder: Path, pixels: Pixels, per_shard: int = 3) -> list[tuple[str, str]]:
    """A captioned WebDataset; returns keys and texts. Keys are the same in each tar file."""
    folder.mkdir()
    names, given = list(pixels), []
    for shard in range(0, len(names), per_shard):
        with tarfile.open(folder / f"s{shard:03}.tar", "w") as tar:
            for at, name in enumerate(names[shard : shard + per_shard]):
                key, text = f"a.b/{at:03}", f"{TEXTS[(shard + at) % 3]} {at}"
                given.append((key, text))
                buffer = io.BytesIO()
                Image.fromarray(pixels[name]).save(buffer, "PNG")
                fields = {"png": buffer.getvalue(), "txt": text.encode()}
                fields["json"] = json.dumps({"caption": text.upper(), "w": at}).encode()
                if shard == 0 and at == 1:
                    fields["cls"] = b"3"
                for field, content in fields.items():
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return given


def test_a_webdataset_is_scored_with_its_own_captions(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    given = make_shards(tmp_path / "wds", pixels)
    images = list(pixels.values())
    for options, texts in (
        ((), [text for _, text in given]),
        (("--text-field", "caption"), [text.upper() for _, text in given]),
    ):
        ended = dsd_trt("score", "--pairs", "wds", "-o", "out.csv", *options)
        assert ended.code == 0, ended.err
        rows = read_csv(tmp_path / "out.csv")
        assert [row["text"] for row in rows] == texts
        for row, image, text in zip(rows, images, texts, strict=True):
            assert float(row["score"]) == pytest.approx(closed_form(image, text), abs=1e-6)
    # What it writes is a table of pairs itself.
    ended = dsd_trt("score", "--pairs", "out.csv", "-o", "again.csv")
    assert ended.code == 0, ended.err
    again = read_csv(tmp_path / "again.csv")
    assert [row["score"] for row in again] == [row["score"] for row in rows]
    with (tmp_path / "wds/s003.tar").open("r+b") as file:
        file.truncate(5000)
    ended = dsd_trt("score", "--pairs", "wds", "-o", "out.csv")
    assert ended.code == 3
    assert "could not be read to its end: wds/s003.tar: not a whole tar file" in ended.err
    assert len(read_csv(tmp_path / "out.csv")) < 8
    ended = dsd_trt("score", "--pairs", "wds", "--text-field", "title", "-f", "csv")
    assert ended.code == 2
    assert "its json has no field 'title': it has caption, w" in ended.err


def test_images_of_a_tar_are_scored_with_texts(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    make_shards(tmp_path / "wds", pixels)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    for arguments in (["wds/s000.tar", "wds/s003.tar", "wds/s006.tar"], ["wds"], ["wds/*.tar"]):
        ended = dsd_trt("score", *arguments, "texts.txt", "-f", "json")
        assert ended.code == 0, ended.err
        rows = json.loads(ended.out)
        wanted = [closed_form(image, text) for image in pixels.values() for text in TEXTS]
        assert [row["score"] for row in rows] == pytest.approx(wanted, abs=1e-6)
        assert rows[0]["image"] == "wds/s000.tar/a.b/000"


@pytest.mark.parametrize("source", ["webdataset", "table"])
@pytest.mark.parametrize("output", ["kept/", "kept-%03d.tar", "kept.tar"])
def test_kept_samples_are_a_webdataset_that_readers_read_whole(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, rows: list[dict[str, str]],
    source: str, output: str,
) -> None:  # fmt: skip
    if source == "webdataset":
        given = make_shards(tmp_path / "wds", pixels)
        ended = run("wds", "--keep-best", "7", "-o", output, "--shard-size", "3")
        assert ended.code == 0, ended.err
        assert "field 'cls' is left out: only 1 kept sample has it" in ended.err
    else:
        ended = run("pairs.csv", "--keep-best", "7", "-o", output, "--shard-size", "3")
        assert ended.code == 3, ended.err
    tars = sorted(tmp_path.glob("kept/*" if output == "kept/" else "kept*.tar"))
    assert len(tars) == (1 if output == "kept.tar" else 3)
    assert not list(tmp_path.glob(".*kept*"))
    samples: dict[str, dict[str, bytes]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                key, _, field = member.name.rpartition("/")[2].partition(".")
                fields = samples.setdefault(member.name.rpartition("/")[0] + "/" + key, {})
                assert field not in fields
                content = tar.extractfile(member)
                assert content is not None
                fields[field] = content.read()
    assert len(samples) == 7
    for fields in samples.values():
        assert set(fields) == {"png", "txt", "json", "score.json"}
        pixels_there = np.asarray(Image.open(io.BytesIO(fields["png"])))
        numbers = json.loads(fields["score.json"])
        f = closed_form(pixels_there, fields["txt"].decode())
        assert numbers["score"] == pytest.approx(f, abs=1e-6)
        assert numbers["probability"] == pytest.approx(probability(f), abs=1e-6)
        assert re.fullmatch(
            rb'\{"score": \d\.\d+, "probability": \d\.\d+\}\n', fields["score.json"]
        )
    if source == "webdataset":
        assert {it["txt"].decode() for it in samples.values()} <= {text for _, text in given}
    ended = run("pairs.csv", "--keep-best", "7", "-o", output)
    assert (ended.code, "is there: give" in ended.err) == (2, True)
    assert run("pairs.csv", "--keep-best", "2", "-o", output, "--force").code == 3
    assert len(sorted(tmp_path.glob("kept/*" if output == "kept/" else "kept*.tar"))) == 1


def test_inputs_are_never_replaced(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    """Neither with --force nor by advice to give it: what is dropped would be lost."""
    make_shards(tmp_path / "wds", pixels)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in", "in")
    (tmp_path / "of-tar.csv").write_text("image,text\nin.tar/in/0,dog\nin.tar/in/1,dog\n")
    (tmp_path / "names.csv").write_text("image,text\nin/0,dog\nin/1,dog\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    for source, output in (
        (["wds"], "wds/s%03d.tar"),
        (["wds/s000.tar"], "wds/s000.tar"),
        (["of-tar.csv"], "in.tar"),
        (["names.csv", "--images", "in.tar"], "./in.tar"),
    ):
        for force in ([], ["--force"]):
            ended = dsd_trt("filter", *source, "--keep-best", "1", "-o", output, *force)
            assert ended.code == 2, (source, ended.err)
            assert "is read as an input: give another -o" in ended.err
            assert "--force" not in ended.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tar")} == before


def test_inputs_are_looked_through_once_however_many_tar_files_are_there(tmp_path: Path) -> None:
    names = {f"kept-{number:03d}.tar" for number in range(9)}
    for name in names:
        (tmp_path / name).touch()
    asked: list[set[str]] = []

    def inputs(wanted: Collection[str]) -> list[str]:
        asked.append(set(wanted))
        return [str(tmp_path / "other" / ".." / "kept-004.tar")]

    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"kept-004\.tar' is read as an input"):
        NewWebDataset(str(tmp_path / "kept-%03d.tar"), 5, force=True, inputs=inputs)
    assert asked == [names]


@pytest.mark.parametrize(
    "output", ["kept/", "kept-%03d.tar", "kept.tar", "kept.csv", "kept.parquet"]
)
def test_stopped_while_it_writes_it_leaves_nothing_that_looks_whole(
    run: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]], output: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ("pairs.csv", "--keep-best", "9", "-o", output, "--shard-size", "2")
    before = {it.name for it in tmp_path.iterdir()}
    given = Filtered.records
    left = [0]

    def stopping(self: Filtered, *, kept: bool) -> Iterator[Record]:
        for record in given(self, kept=kept):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            yield record

    for records in (1, 5, 14):  # records are read twice for samples of a table
        left[0] = records
        with monkeypatch.context() as patch:
            patch.setattr(Filtered, "records", stopping)
            ended = run(*arguments, "--resume")
        if ended.code == 3:
            break
        assert ended.code == 130, ended.err
        journal = f"{Path(output)}.journal"
        assert {it.name for it in tmp_path.iterdir()} - before == {journal}
        assert f"are kept in {journal}: the same command with --resume" in ended.err
    else:
        ended = run(*arguments, "--resume")
    assert ended.code == 3, ended.err
    assert "scored 0 pairs" in ended.err
    assert not list(tmp_path.glob("*.journal*"))


def test_what_a_kill_left_is_removed_by_the_next_run(
    run: Callable[..., Run], tmp_path: Path, rows: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for output in ("kept/", "kept-%03d.tar"):
        name = unfinished_name(Path(output).name)
        gone = re.sub(r"\.\d+-\w+\.", ".999999999-0.", name)
        (tmp_path / gone).mkdir()
        (tmp_path / gone / "000000.tar").write_text("half")
        assert run("pairs.csv", "--keep-best", "4", "-o", output).code == 3
        assert not list(tmp_path.glob(".kept*"))
