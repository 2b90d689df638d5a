"""`dsd-trt calibrate` on the stand-in bundle: the fit, what it writes, and what it leaves out."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from bundles import CALIBRATION, MATRIX_CALIBRATION, closed_form, make_bundle
from numpy.typing import NDArray
from PIL import Image

import dsd_trt.calibration
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.folder import read_bundle, write_bundle
from dsd_trt.bundle.probability import card_rows
from dsd_trt.commands.main import main
from dsd_trt.tables.labelled import read_labelled
from dsd_trt.tables.table import Table

ENGINE = ("--engine", "onnxruntime")
TEXTS = ("a red circle", "a green square", "a blue dog", "a dog", "green", "a circle")
Row = tuple[str, str, object]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return {f"{i}.png": np.tile(rng.integers(0, 256, 3, np.uint8), (8, 8, 1)) for i in range(40)}


@pytest.fixture
def rows(
    pictures: dict[str, NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Row]:
    """Three texts of each picture, whose labels are drawn from a probability of their score."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    found: list[Row] = []
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
        for text in rng.choice(TEXTS, 3, replace=False):
            logit = 25 * closed_form(pixels, str(text)) - 14
            found.append((name, str(text), int(rng.random() < 1 / (1 + np.exp(-logit)))))
    return found


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle to change, without a calibration, and with a model card."""
    folder = tmp_path / "own"
    shutil.copytree(bundle.folder, folder)
    manifest = replace(bundle.manifest, calibration=None)
    (folder / "MODEL_CARD.md").write_text(f"# Card\n\n{card_rows(manifest)}\nThe end.\n")
    write_bundle(folder, manifest)
    return folder


def _write(rows: Sequence[Sequence[object]], path: str = "pairs.csv", header: str = "") -> str:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((header or "image,text,label").split(","))
        writer.writerows(rows)
    return path


def _calibrate(
    capsys: pytest.CaptureFixture[str], *arguments: object, engine: Sequence[str] = ENGINE
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", *map(str, arguments), *engine])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = _calibrate(capsys, *arguments, "-f", "json")
    assert code == 0, err

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(out, parse_constant=refuse)
    return found


def test_a_bundle_gets_probabilities(
    own: Path,
    rows: list[Row],
    pictures: dict[str, NDArray[np.uint8]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert np.isnan(Scorer.load(own, "onnxruntime").score(["0.png"], ["a dog"]).probabilities).all()
    code, out, err = _calibrate(capsys, own, "--data", _write(rows))
    assert code == 0, err
    assert "120 pairs of 40 images" in out
    fitted = read_bundle(own).manifest.calibration
    assert fitted is not None
    labels = np.array([label for *_, label in rows])
    found = Scorer.load(own, "onnxruntime").score_pairs([(image, text) for image, text, _ in rows])
    exact = np.array([closed_form(pictures[image], text) for image, text, _ in rows])
    assert found.probabilities == pytest.approx(
        1 / (1 + np.exp(-(fitted.a * exact + fitted.b))), abs=1e-4
    )
    # At the optimum, probabilities have the mean and the product with scores of Platt's targets.
    n, m = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n + 1) / (n + 2), 1 / (m + 2))
    assert found.probabilities.mean() == pytest.approx(target.mean(), abs=1e-5)
    assert (found.probabilities * exact).mean() == pytest.approx((target * exact).mean(), abs=1e-5)


def test_an_image_is_one_however_its_path_is_written(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = _json(capsys, own, "--data", _write(rows), "--dry-run")
    dotted = [(f"./{rows[i][0]}" if i % 2 else rows[i][0], *rows[i][1:]) for i in range(len(rows))]
    assert _json(capsys, own, "--data", _write(dotted), "--dry-run") == plain
    assert plain["after"]["groups"] == 40


def test_images_may_lie_in_another_folder_than_the_table(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    beside = _json(capsys, own, "--data", _write(rows), "--dry-run")
    Path("tables").mkdir()
    Path("pairs.csv").replace("tables/pairs.csv")
    code, _, err = _calibrate(capsys, own, "--data", "tables/pairs.csv", "--dry-run")
    assert (code, "--images" in err) == (2, True), err
    elsewhere = ("--data", "tables/pairs.csv", "--images", ".")
    assert _json(capsys, own, *elsewhere, "--dry-run") == beside


def test_a_table_on_standard_input_is_fitted_as_a_file(
    own: Path,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = Path(_write(rows)).read_bytes()
    of_file = _json(capsys, own, "--data", "pairs.csv", "--dry-run")
    Path("pairs.csv").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    piped = _json(capsys, own, "--data", "-")
    for report, table in ((of_file, "pairs.csv"), (piped, "standard input")):
        assert report["calibration"]["fitted_on"].pop("table") == table
        report["calibration"]["fitted_on"].pop("date")
    assert piped == of_file
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"image,text\na.png,dog\n")))
    code, _, err = _calibrate(capsys, own, "--data", "-")
    assert (code, "standard input, line 1: no labels" in err) == (2, True)


def test_probabilities_that_fit_no_better_than_before_are_told(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    told = set()
    for count in (120, 24, 16, 12, 120):
        code, out, err = _calibrate(capsys, own, "--data", _write(rows[:count]), "-f", "json")
        assert code == 0, err
        before, after = (json.loads(out)[when] for when in ("before", "after"))
        errors = [it and it["calibration"]["error"]["value"] for it in (before, after)]
        worse = before is not None and errors[1] > errors[0]
        assert (f"error is {errors[1]:.3f}, with the probabilities before" in err) is worse
        told.add(worse)
    assert told == {True, False}


def test_what_a_calibration_was_fitted_on_is_recorded(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    report = _json(capsys, own, "--data", _write(rows))
    manifest = read_bundle(own).manifest
    assert manifest.calibration is not None
    record = manifest.calibration.fitted_on
    assert record is not None
    positives = sum(label == 1 for *_, label in rows)
    assert (record.table, record.pairs, record.images) == ("pairs.csv", 120, 40)
    assert record.positives == positives
    assert record.prior == pytest.approx(positives / 120)
    assert (record.mode, record.levels) == ("pair", manifest.method.noise_levels.fractions)
    assert report["after"]["calibration"]["error"]["value"] == pytest.approx(
        record.calibration_error, abs=1e-6
    )
    card = (own / "MODEL_CARD.md").read_text()
    assert card == f"# Card\n\n{card_rows(manifest)}\nThe end.\n"
    assert f"a = {manifest.calibration.a:.6g}" in card


def test_before_and_after_are_compared(
    bundle: Bundle, rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in's own probabilities are far from those that labels were drawn from."""
    before = [it.read_bytes() for it in sorted(bundle.folder.rglob("*")) if it.is_file()]
    report = _json(capsys, bundle.folder, "--data", _write(rows), "-o", "new", "--plot", "p.svg")
    wrong, right = (report[it]["calibration"]["error"]["value"] for it in ("before", "after"))
    assert right < 0.7 * wrong
    assert report["after"]["calibration"]["chance"] < 2 * right
    assert before == [it.read_bytes() for it in sorted(bundle.folder.rglob("*")) if it.is_file()]
    assert read_bundle(tmp_path / "new").manifest.calibration != CALIBRATION
    circles = ElementTree.parse(tmp_path / "p.svg").iter("{http://www.w3.org/2000/svg}title")
    assert len(list(circles)) == len(report["bins_before"]) + len(report["bins"])


def test_each_mode_has_its_own_calibration(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "both", matrix=True).folder
    data = _write(rows)
    assert _json(capsys, folder, "--data", data, "--mode", "matrix")["mode"] == "matrix"
    manifest = read_bundle(folder).manifest
    assert manifest.calibration == CALIBRATION
    assert manifest.matrix is not None
    assert manifest.matrix.calibration not in (None, MATRIX_CALIBRATION)
    _json(capsys, folder, "--data", data, "--mode", "pair")
    again = read_bundle(folder).manifest
    assert again.matrix == manifest.matrix
    assert again.calibration != CALIBRATION


def test_what_cannot_be_used_is_left_out_and_counted(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    bad: list[Row] = [
        ("missing.png", "a dog", 1),
        ("broken.png", "a dog", 0),
        ("0.png", "", 1),
        ("0.png", "a dog", "perhaps"),
        ("0.png", "a dog", ""),
    ]
    code, out, err = _calibrate(capsys, own, "--data", _write([*bad, *rows]), "-f", "json")
    assert code == 3
    report = json.loads(out)
    assert (report["rows"], report["unlabelled"], report["left_out"]) == (125, 1, 1)
    assert report["after"]["pairs"] == 120
    for reason in ("line 2", "missing.png", "broken.png", "text is empty", "'perhaps'"):
        assert reason in err
    kept = read_bundle(own).manifest.calibration
    # As if the bad rows were not there.
    _json(capsys, own, "--data", _write(rows))
    alone = read_bundle(own).manifest.calibration
    assert kept is not None
    assert alone is not None
    assert (kept.a, kept.b) == pytest.approx((alone.a, alone.b), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda label: 1, "pairs.csv has 120 pairs without a negative one"),
        (lambda label: 1 - label, "positives do not score higher than negatives"),
        (lambda label: "", "120 rows, and none can be used"),
    ],
)
def test_labels_that_give_no_fit_are_refused(
    own: Path,
    rows: list[Row],
    change: Callable[[Any], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (own / "bundle.json").read_bytes()
    data = _write([(image, text, change(label)) for image, text, label in rows])
    code, _, err = _calibrate(capsys, own, "--data", data)
    assert code == 2
    assert message in err
    assert (own / "bundle.json").read_bytes() == before


def test_images_that_cost_all_pairs_of_a_label_are_named(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("damaged.png").write_bytes(b"<html>")
    data = _write([(it[0] if it[2] else "damaged.png", *it[1:]) for it in rows])
    code, _, err = _calibrate(capsys, own, "--data", data)
    assert code == 2
    assert "without a negative one: a fit needs both" in err
    assert "such as damaged.png" in err


def test_equal_scores_of_both_labels_give_no_fit(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounding makes the slope 1e-15 where each pair has both labels."""
    before = (own / "bundle.json").read_bytes()
    data = _write([(image, text, label) for image, text, _ in rows for label in (0, 1)])
    code, _, err = _calibrate(capsys, own, "--data", data)
    assert code == 2
    assert "positives do not score higher than negatives" in err
    assert f"{len(rows)} pairs with the labels 1 and 0" in err
    assert (own / "bundle.json").read_bytes() == before


def test_negatives_take_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    described = [(f"{i}.png", f"a dog, {i}", ["a red, red circle", f"no {i}"]) for i in range(3)]
    for image, *_ in described:
        Path(image).touch()
    labelled = [
        (image, text, label)
        for image, positive, negatives in described
        for text, label in ((positive, True), *((it, False) for it in negatives))
    ]
    objects = [{"image": i, "text": t, "negatives": n} for i, t, n in described]
    Path("d.jsonl").write_text("\n".join(map(json.dumps, objects)))
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(objects), "e.pq")
    tables = [
        _write([(i, t, int(label)) for i, t, label in labelled], "labels.csv"),
        _write([(i, t, json.dumps(n)) for i, t, n in described], "a.csv", "image,text,negatives"),
        _write([(i, t, "|".join(n)) for i, t, n in described], "b.csv", "image,text,negatives"),
        _write([(i, t, *n) for i, t, n in described], "c.csv", "image,text,negative_1,negative_2"),
        *("d.jsonl", "e.pq"),
    ]
    for table in tables:
        found = read_labelled(Table.open(table))
        assert [(it.key, it.text, it.label) for it in found.pairs] == labelled
        assert not found.failures


@pytest.mark.parametrize(
    ("negatives", "reason"),
    [
        ("[]", "negatives is empty"),
        ("[1]", "must be texts, got '1'"),
        ("[", "not a valid JSON list"),
        ("a dog", "'a dog' is among its own negatives"),
        ("  ", "negatives is empty"),
    ],
)
def test_negatives_that_are_none_cost_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, negatives: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0.png").touch()
    good = ("0.png", "a dog", "a circle")
    rows = [good, ("0.png", "a dog", negatives), good]
    found = read_labelled(Table.open(_write(rows, header="image,text,negatives")))
    assert len(found.pairs) == 4
    (failure,) = found.failures
    assert failure.image == "pairs.csv, line 3"
    assert reason in failure.reason


def test_columns_have_other_names_and_subsets_are_counted(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [
        (text, image, label, "web" if i % 3 else "book")
        for i, (image, text, label) in enumerate(rows)
    ]
    report = _json(
        capsys,
        own,
        *("--data", _write(named, header="caption,file,match,source"), "--dry-run"),
        *("--image-column", "file", "--text-column", "caption", "--label-column", "match"),
        *("--by", "source"),
    )
    subsets = {it["name"]: it for it in report["subsets"]}
    assert {name: it["pairs"] for name, it in subsets.items()} == {"book": 40, "web": 80}
    assert subsets["book"]["positives"] == sum(row[2] == 1 for row in named if row[3] == "book")
    assert subsets["book"]["share"] == pytest.approx(subsets["book"]["positives"] / 40)
    code, _, err = _calibrate(capsys, own, "--data", _write(rows), "--by", "source")
    assert code == 2
    assert "no column 'source' among 'image', 'text', 'label'" in err


def test_thresholds_hold_for_the_bundle_that_was_written(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    report = _json(
        capsys,
        *(own, "--data", _write(rows), "--target-precision", "0.6", "--target-precision", "0.999"),
        *("--target-recall", "0.8"),
    )
    found = Scorer.load(own, "onnxruntime").score_pairs([(image, text) for image, text, _ in rows])
    labels = np.array([label == 1 for *_, label in rows])
    for it in report["thresholds"]:
        kept = found.probabilities >= it["found"]["threshold"]
        assert it["found"]["kept"] == kept.sum()
        assert it["found"]["precision"] == pytest.approx(labels[kept].mean())
        assert it["found"]["recall"] == pytest.approx(labels[kept].sum() / labels.sum())
    assert [it["found"]["reached"] for it in report["thresholds"]] == [True, False, True]
    code, out, _ = _calibrate(capsys, own, "--data", "pairs.csv", "--target-precision", "0.999")
    assert code == 0
    assert "precision 0.999: no threshold is sure to reach it. Closest is" in out


def test_a_prior_lowers_probabilities(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    data = _write(rows)
    even = _json(capsys, own, "--data", data, "--dry-run", "--prior", "0.5")
    rare = _json(capsys, own, "--data", data, "--dry-run", "--prior", "0.05")
    assert rare["calibration"]["fitted_on"]["prior"] == 0.05
    # The mean probability, weighed to the prior, is the prior but for Platt's targets.
    for report, prior in ((even, 0.5), (rare, 0.05)):
        mean = np.average(
            [it["probability"] for it in report["bins"]],
            weights=[it["weight"] for it in report["bins"]],
        )
        assert mean == pytest.approx(prior, abs=0.02)
    assert rare["after"]["roc_auc"]["value"] == pytest.approx(even["after"]["roc_auc"]["value"])


def test_few_pairs_are_judged_by_their_own_fit(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    few = [("0.png", "a dog", 1), ("0.png", "a red circle", 0)]
    scores = Scorer.load(own, "onnxruntime").score(["0.png"], [text for _, text, _ in few]).scores
    few = few if scores[0, 0] > scores[0, 1] else [(*few[1][:2], 1), (*few[0][:2], 0)]
    report = _json(capsys, own, "--data", _write(few), "--dry-run")
    assert not report["cross_validated"]
    assert report["after"]["pairs"] == 2
    _, shown, _ = _calibrate(capsys, own, "--data", _write(few), "--dry-run")
    assert "calibration error, 1 bin |" in shown


def test_a_stopped_write_leaves_a_bundle(
    own: Path,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped between the two files that change: the card and `bundle.json`."""

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    data = _write(rows)
    with monkeypatch.context() as patch:
        patch.setattr(dsd_trt.calibration, "file_entry", stop)
        assert _calibrate(capsys, own, "--data", data)[0] == 130
    assert read_bundle(own).manifest.calibration is not None
    assert _calibrate(capsys, own, "--data", data)[0] == 0
    read_bundle(own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shapes",), "part of the package: write a copy with -o NEW_BUNDLE"),
        (("own", "-o", "full"), "full is not empty"),
        (("own", "-o", "pairs.csv"), "pairs.csv is a file"),
        (("own", "--plot", "p.png"), "give --plot p.svg"),
        (("nothing",), "no folder 'nothing'"),
        (("own", "--target-precision", "95"), "write it as a share: 0.95"),
        (("own", "--target-recall", "nan"), "nan"),
        (("own", "--prior", "0"), "0.0 is not in the range 0<x<1"),
        (("own", "--mode", "matrix"), "matrix"),
    ],
)
def test_places_and_numbers_that_make_no_sense_are_refused(
    own: Path,
    rows: list[Row],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("full").mkdir()
    (Path("full") / "file").touch()
    code, _, err = _calibrate(capsys, *arguments, "--data", _write(rows))
    assert code == 2
    assert message in err


def test_a_signature_of_the_former_bundle_is_removed(
    own: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    minisign = pytest.importorskip("minisign")
    pair = minisign.KeyPair.generate()
    Path("key").write_bytes(bytes(pair.secret_key))
    Path("key.pub").write_bytes(bytes(pair.public_key))
    from dsd_trt.signature import open_bundle, sign_bundle

    sign_bundle(own, Path("key"))
    data = _write(rows)
    code, _, err = _calibrate(capsys, own, "--data", data, "--require-signature", "key.pub")
    assert code == 0, err
    assert f"sign it again with dsd-trt sign {own} --key KEY" in err
    assert not (own / "bundle.json.minisig").exists()
    sign_bundle(own, Path("key"))
    assert open_bundle(own, "key.pub").manifest.calibration is not None
