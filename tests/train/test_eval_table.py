"""`dsd-trt eval` of a bundle on a labelled table: figures of pairs, without the training stack."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import closed_form, probability
from numpy.typing import NDArray
from page_parts import PageParts
from PIL import Image

from dsd_trt import Bundle
from dsd_trt.commands.main import main
from dsd_trt.metrics import average_precision, roc_auc

TEXTS = ("a red circle", "a green square", "a blue dog", "a dog")
# Where these are missing, the extra "train" is not installed.
TRAINING = ("torch", "diffusers", "transformers", "accelerate", "ijson", "matplotlib")


class Labelled:
    """A table of pictures, whose rows' scores have a closed form."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.rows: list[tuple[str, str, object]] = []
        self.scores: list[float] = []
        for number in range(20):
            pixels: NDArray[np.uint8] = np.tile(rng.integers(0, 256, 3, np.uint8), (8, 8, 1))
            Image.fromarray(pixels).save(folder / f"{number}.png")
            for place, text in enumerate(rng.permutation(TEXTS)[: 1 + number % 4]):
                # Some images have one text alone: these pairs count as well.
                self.rows.append((f"{number}.png", str(text), int(place == 0 and number % 5 > 0)))
                self.scores.append(closed_form(pixels, str(text)))

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([label for *_, label in self.rows])

    def write(self, *more: Sequence[object]) -> str:
        with Path("pairs.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "text", "label"), *more, *self.rows])
        return "pairs.csv"


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Labelled:
    monkeypatch.chdir(tmp_path)
    return Labelled(tmp_path)


def _eval(bundle: Bundle, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(bundle.folder), "--engine", "onnxruntime", *arguments])
    return int(ended.value.code or 0)


def _figures(path: str = "figures.json") -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(Path(path).read_text())
    return figures


def test_a_table_on_standard_input_is_measured_as_a_file(
    bundle: Bundle,
    labelled: Labelled,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = Path(labelled.write(("gone.png", "a dog", 1))).read_bytes()
    assert _eval(bundle, "--data", "pairs.csv", "-o", "file.json", "--root", ".") == 3
    of_file = capsys.readouterr()
    Path("pairs.csv").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert _eval(bundle, "--data", "-", "-o", "piped.json") == 3
    piped = capsys.readouterr()
    assert _figures("piped.json") == _figures("file.json") | {"data": "-"}
    assert piped.out == of_file.out
    assert "standard input, line 2: no image file 'gone.png'" in piped.err
    assert "standard input: " in piped.err


def test_pairs_are_measured_beside_questions(bundle: Bundle, labelled: Labelled) -> None:
    arguments = ("--data", labelled.write(), "--threshold", "0.4", "-o", "figures.json")
    assert _eval(bundle, *arguments) == 0
    found, scores = _figures(), np.array(labelled.scores)
    pairs, labels = found["pairs"], labelled.labels
    assert (pairs["pairs"], pairs["positives"]) == (len(scores), labels.sum())
    assert pairs["groups"] == 20
    assert pairs["roc_auc"]["value"] == pytest.approx(roc_auc(scores, labels), abs=1e-3)
    precise = average_precision(scores, labels)
    assert pairs["average_precision"]["value"] == pytest.approx(precise, abs=1e-3)
    kept = np.array([probability(score) for score in scores]) >= 0.4
    (at,) = pairs["at"]
    assert (at["threshold"], at["kept"]) == (0.4, kept.sum())
    assert at["precision"]["value"] == pytest.approx(labels[kept].mean())
    assert at["recall"]["value"] == pytest.approx(labels[kept].sum() / labels.sum())
    assert pairs["roc_auc"]["low"] <= pairs["roc_auc"]["value"] <= pairs["roc_auc"]["high"]
    assert [row["name"] for row in found["figures"]] == ["text"]
    assert "onnxruntime" in found["engine"]


def test_a_broken_image_costs_its_pairs(bundle: Bundle, labelled: Labelled) -> None:
    Path("broken.png").write_bytes(b"no picture")
    bad = [("broken.png", "a dog", 1), ("broken.png", "green", 0), ("missing.png", "a dog", 1)]
    assert _eval(bundle, "--data", labelled.write(*bad), "-o", "figures.json") == 3
    assert _figures()["pairs"]["pairs"] == len(labelled.rows)
    assert any("broken.png" in str(it["image"]) for it in _figures()["errors"])


def test_a_stopped_evaluation_goes_on_from_its_scores(bundle: Bundle, labelled: Labelled) -> None:
    data = labelled.write()
    assert _eval(bundle, "--data", data, "--out", "out", "-o", "whole.json") == 0
    scores = Path("out") / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    assert len(lines) == len(labelled.rows)
    known = json.loads(lines[0])
    known["score"] = 0.123  # shows that it is not scored again
    scores.write_text("".join([json.dumps(known) + "\n", *lines[1:10], lines[10][:20]]))
    assert _eval(bundle, "--data", data, "--out", "out", "-o", "again.json") == 0
    kept = [json.loads(line) for line in scores.read_text().splitlines()]
    assert len(kept) == len(labelled.rows)
    assert kept[0]["score"] == 0.123
    assert {(it["image"], it["text"]) for it in kept} == {
        (json.loads(line)["image"], json.loads(line)["text"]) for line in lines
    }
    assert "pairs" in _figures("again.json")


def test_no_training_extra_is_needed(bundle: Bundle, labelled: Labelled) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING!r}))\n"
        "from dsd_trt.commands.main import main; main(sys.argv[1:])"
    )
    arguments = ["eval", str(bundle.folder), "--engine", "onnxruntime", "--data", labelled.write()]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ROC AUC" in done.stdout
    assert (Path("out") / "table.md").read_text() == done.stdout
    assert not (Path("out") / "figures.png").exists()


def test_a_page_has_figures_confusions_and_answers(bundle: Bundle, labelled: Labelled) -> None:
    labelled.write(("gone.png", "a dog", 1))
    Path("2.png").write_text("no image")
    assert _eval(bundle, "--data", "pairs.csv", "-o", "figures.json", "--out", "kept") == 3
    assert _eval(bundle, "--data", "pairs.csv", "-o", "answers.html", "--out", "kept") == 3
    figures, parts = _figures(), PageParts(Path("answers.html").read_text("utf-8"))
    captions = [it.text for it in parts.all("caption")]
    accuracy, pairs, confusions, failed = captions
    assert (pairs, failed) == (
        f"{figures['pairs']['pairs']} pairs of {figures['pairs']['groups']} images, "
        f"{figures['pairs']['positives']} of them positive",
        "Could not be scored: 2",
    )
    (row,) = figures["figures"]
    shown = [it.text for it in parts.all("span") if it.attributes.get("class") == "number"]
    assert shown[0] == f"{row['top1']:.1f}"
    names, answers = parts.data("names"), parts.data("rows")
    assert figures["left_out"] == 1
    assert len(answers) == row["questions"] + figures["left_out"]
    wrong = Counter[tuple[str, str]]()
    for image, text, kind, chosen, rank, candidates, said, more in answers:
        assert kind == "text"
        right, name = names["texts"][text], names["images"][image]
        assert len(more["All candidates"]) == candidates
        if said == "left out":
            assert (rank, chosen, name) == (None, None, "2.png")
            continue
        assert said == ("right" if rank == 1 else "wrong")
        # From the closed form: which of the image's texts has the highest score.
        pixels = np.asarray(Image.open(name))
        offered = {it: closed_form(pixels, it) for it in more["All candidates"]}
        best = max(offered, key=lambda it: offered[it])
        assert names["texts"][chosen] == best
        if said == "wrong":
            wrong[right, best] += 1
    assert wrong
    assert confusions.startswith(f"Which wrong text won: {len(wrong)} of {len(wrong)}")
    body = parts.all("tbody")[2].text.splitlines()
    assert sum(int(line[-1]) for line in body) == sum(wrong.values())
    assert all(any(a + b in line for line in body) for a, b in wrong)
    assert accuracy.startswith("Accuracy")


@pytest.mark.parametrize("name", ["figures.csv", "figures.txt"])
def test_figures_are_json_or_a_page(
    bundle: Bundle, labelled: Labelled, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(bundle, "--data", labelled.write(), "-o", name) == 2
    assert "-o figures.json or figures.html" in capsys.readouterr().err


def test_a_page_goes_to_the_file_or_to_a_pipe(
    bundle: Bundle, labelled: Labelled, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled.write()
    _eval(bundle, "--data", data, "-f", "html", "-o", "page")
    assert capsys.readouterr().out.startswith("| asked")
    assert Path("page").read_text().startswith("<!DOCTYPE html>")
    _eval(bundle, "--data", data, "-f", "html", "-o", "figures.json")
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")
    assert _figures()["data"] == data
