"""Images that cannot be read, in every command that asks or learns from questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import make_bundle
from checkpoints import write_checkpoint
from click.testing import CliRunner, Result
from fragile_bundles import BLACK, WHITE, make_fragile_bundle
from PIL import Image
from test_baselines import write_clip

from dsd_trt import Scorer
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError
from dsd_trt.limits import IMAGE_PIXELS
from dsd_trt.results import Failure
from dsd_trt.train.data.table import read_table
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.evaluation.by_bundle import BundleScore
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.evaluation.reproduction import reproduce
from dsd_trt.train.evaluation.study import Study
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question

COLOURS = ("red", "green", "blue")
BAD = {
    "cut.jpg": "truncated",
    "empty.png": "the file is empty",
    "text.png": "not an image of a known format",
    "bomb.png": "more than 178956970 pixels",
}
GOOD = [f"good{number}.png" for number in range(9)]


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name in GOOD:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name)
    stream = BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    (folder / "cut.jpg").write_bytes(stream.getvalue()[:1200])
    (folder / "empty.png").touch()
    (folder / "text.png").write_bytes(b"no image")
    side = int(IMAGE_PIXELS.value() ** 0.5) + 1
    Image.new("1", (side, side)).save(folder / "bomb.png")


def _write_table(path: Path, names: list[str]) -> None:
    rows = [
        {
            "image": name,
            "text": f"a {COLOURS[i % 3]} circle",
            "negatives": [f"a {colour} square" for colour in COLOURS],
        }
        for i, name in enumerate(names)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables: bad images between good ones, either alone, and bad ones with a few good ones."""
    folder = tmp_path_factory.mktemp("data")
    _write_images(folder)
    mixed = [name for pair in zip(BAD, GOOD, strict=False) for name in pair] + GOOD[len(BAD) :]
    _write_table(folder / "mixed.jsonl", mixed)
    _write_table(folder / "good.jsonl", GOOD)
    _write_table(folder / "bad.jsonl", list(BAD))
    _write_table(folder / "few.jsonl", [*BAD, *GOOD[:5]])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def _run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def _require_named(done: Result, root: Path) -> None:
    """Each bad image by name and with its reason, a line each, and how many questions it cost."""
    assert done.exit_code == 3, done.output
    lines = done.stderr.splitlines()
    assert "4 questions left out, for 4 images that failed:" in lines
    for name, reason in BAD.items():
        (line,) = [line for line in lines if line.startswith(f"  {root / name}: ")]
        assert reason in line


@pytest.mark.parametrize("kind", ["bundle", "model"])
def test_eval_measures_the_rest(
    kind: str, root: Path, bundle: Path, model: Path, tmp_path: Path
) -> None:
    scorer, out = (bundle if kind == "bundle" else model), tmp_path / "out"
    arguments = ["eval", scorer, "--root", root, "--fraction", "0"]
    done = _run(*arguments, "--data", "mixed.jsonl", "--out", out)
    _require_named(done, root)
    table, _, engine = done.stdout.rpartition("\nEngine: ")
    assert table.endswith("\n\n4 questions left out, for 4 images that failed\n")
    assert engine.startswith("PyTorch FP32" if kind == "model" else "openvino ")  # what auto took
    assert (out / "table.md").read_text("utf-8") == done.stdout
    saved = json.loads((out / "figures.json").read_text("utf-8"))
    assert saved["left_out"] == 4
    assert engine == f"{saved['engine']}.\n"
    assert {Path(error["image"]).name for error in saved["errors"]} == BAD.keys()

    alone = _run(*arguments, "--data", "good.jsonl", "-f", "json")
    assert alone.exit_code == 0, alone.output
    # Rows' numbers decide the right answer's place alone, not what is asked.
    (row,), (of_good,) = saved["figures"], json.loads(alone.stdout)["figures"]
    assert (row["questions"], row["top1"]) == (9, of_good["top1"])

    answers = (out / "answers.jsonl").read_bytes()
    again = _run(*arguments, "--data", "mixed.jsonl", "--out", out)
    _require_named(again, root)
    assert again.stdout == done.stdout
    assert (out / "answers.jsonl").read_bytes() == answers


@pytest.mark.parametrize("command", ["eval BUNDLE", "eval MODEL", "train", "ablate", "baseline"])
def test_a_data_set_that_cannot_be_read_at_all_is_refused(
    command: str, root: Path, bundle: Path, model: Path, clip: Path, tmp_path: Path
) -> None:
    arguments = {
        "eval BUNDLE": ["eval", bundle, "--fraction", "0"],
        "eval MODEL": ["eval", model, "--fraction", "0"],
        "train": ["train", "--model", model, "--fraction", "1", "--validation", "0"],
        "ablate": ["ablate", "--model", model],
        "baseline": ["baseline", clip, "--method", "zero-shot", "--fraction", "0"],
    }[command]
    if command in ("train", "ablate"):
        arguments += ["--out", tmp_path]
    done = _run(*arguments, "--data", "bad.jsonl", "--root", root)
    assert done.exit_code == 2, done.output
    assert "none of 4 can be used" in done.stderr
    assert str(root) in done.stderr
    assert "Traceback" not in done.output


def test_a_missing_image_and_a_folder_in_its_place_are_wrong_usage(
    root: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    missing, folder = (str(tmp_path / name) for name in ("missing.png", "folder.png"))
    for name, complaint in (
        ("missing.png", f"no image file {missing!r}"),
        ("folder.png", f"{folder!r} is no file"),
    ):
        _write_table(tmp_path / "t.jsonl", [name])
        done = _run("eval", bundle, "--data", "t.jsonl", "--root", tmp_path, "--fraction", "0")
        assert done.exit_code == 2
        assert f"line 1: {complaint}" in done.stderr


def test_train_learns_from_the_rest_and_goes_on(root: Path, model: Path, tmp_path: Path) -> None:
    def train(out: str, data: str, *more: str) -> Result:
        arguments = ["train", "--model", model, "--root", root, "--data", data, "--fraction", "1"]
        return _run(*arguments, "--batch", "2", "--steps", "2", "--out", tmp_path / out, *more)

    done = train("mixed", "mixed.jsonl", "--validation", "0")
    _require_named(done, root)
    report = json.loads((tmp_path / "mixed" / "report.json").read_text("utf-8"))
    assert report["questions"] == [9, 0]
    assert report["left_out"] == 4
    assert {Path(error["image"]).name for error in report["errors"]} == BAD.keys()
    again = train("mixed", "mixed.jsonl", "--validation", "0")
    _require_named(again, root)
    assert json.loads((tmp_path / "mixed" / "report.json").read_text("utf-8")) == report

    split = train("split", "mixed.jsonl", "--validation", "0.5")
    _require_named(split, root)
    report = json.loads((tmp_path / "split" / "report.json").read_text("utf-8"))
    assert sum(report["questions"]) == 9


def test_ablate_measures_the_rest(root: Path, model: Path, tmp_path: Path) -> None:
    arguments = ["ablate", "--model", model, "--root", root, "--out", tmp_path]
    done = _run(*arguments, "--data", "mixed.jsonl")
    _require_named(done, root)
    saved = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert (saved["questions"], saved["left_out"]) == (9, 4)
    assert (tmp_path / "ablation.md").read_text("utf-8") == done.stdout
    assert "4 questions left out" in done.stdout


@pytest.mark.parametrize("method", ["zero-shot", "fine-tuning"])
def test_baselines_learn_from_and_answer_the_rest(
    method: str, root: Path, clip: Path, tmp_path: Path
) -> None:
    arguments = ["baseline", clip, "--method", method, "--root", root, "--data", "mixed.jsonl"]
    fraction = "0" if method == "zero-shot" else "0.5"
    options = ["--fraction", fraction, "--validation", "0", "--steps", "2", "--out", tmp_path]
    done = _run(*arguments, *options)
    _require_named(done, root)  # those of the examples and of the test questions together
    saved = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    learned = saved["training"] if method != "zero-shot" else {"left_out": 0, "examples": 0}
    assert learned["left_out"] + saved["left_out"] == 4
    assert learned["examples"] + saved["figures"][0]["questions"] == 9


@dataclass(frozen=True)
class TablePlan(Study):
    """A reproduction on the table in place of the paper's data sets."""

    table: Path = Path()

    @property
    def data(self) -> tuple[str, ...]:
        return ("table",)

    def open(self, data: str, part: str) -> Iterator[Question]:
        return iter(read_table(self.table, self.seed).questions)


@pytest.mark.slow
def test_reproduce_names_them_once_and_again_when_it_goes_on(
    root: Path, model: Path, tmp_path: Path
) -> None:
    settings = FewShotSettings(steps=1, questions=2, levels=(0.4,))
    plan = TablePlan(str(model), None, root, None, None, settings, table=root / "few.jsonl")
    for done_before in (False, True):
        done = reproduce(plan, tmp_path, lambda *_: None)
        assert {Path(str(it.image)).name for it in done.left_out.failures} == BAD.keys()
        assert ("4 parts having been done" in done.report) == done_before
        for name in BAD:
            assert done.report.count(f"- {root / name}: ") == 1


# What is no number


def test_a_bundle_without_a_score_costs_the_question(tmp_path: Path) -> None:
    make_fragile_bundle(tmp_path)
    grey = np.full_like(BLACK, 90)
    questions = [
        Question("k", ((grey, "a dog"), (grey, "red")), 0, "fine"),
        Question("k", ((WHITE, "a dog"), (grey, "a dog")), 0, "white"),
        Question("k", ((BLACK, "red"), (BLACK, "a dog")), 0, "black"),
        Question("k", ((grey, "blue"), (grey, "red")), 0, "blue"),
    ]
    left_out = LeftOut()
    scores = BundleScore(Scorer.load(tmp_path))(questions, left_out.add)
    assert [bool(np.isfinite(row).all()) for row in scores] == [True, False, False, False]
    assert [(failure.image, failure.text) for failure in left_out.failures] == [
        ("an image of white", None),
        ("an image of black", "a dog"),
        (None, "blue"),
    ]


def test_a_model_without_a_latent_or_a_state_costs_the_question(model: Path) -> None:
    checkpoint = read_checkpoint(model)
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 200, (5, 32, 32, 3), np.uint8)
    noise[3, 0, 0] = 255
    questions = [
        Question("k", ((image, f"a circle {i}"), (image, "a square")), 0, f"photo {i}")
        for i, image in enumerate(noise)
    ]
    encoder = checkpoint.image_encoder.forward

    def overflow(pixels: torch.Tensor) -> torch.Tensor:
        latent = encoder(pixels)
        latent[(pixels == 255).flatten(1).any(dim=1), 0, 1, 1] = torch.inf
        return latent

    checkpoint.image_encoder.forward = overflow  # type: ignore[method-assign]
    whole = encode_questions(checkpoint, questions[:3])
    left_out = LeftOut()
    examples = encode_questions(checkpoint, questions, left_out=left_out.add)
    assert left_out.failures == (Failure("an image of photo 3", "its latent has NaN or infinity"),)
    assert (len(examples), len(examples.latents)) == (4, 4)
    assert torch.allclose(examples.latents[:3], whole.latents, atol=1e-5)
    assert torch.isfinite(examples.latents).all()
    with pytest.raises(InputError, match="an image of photo 3: its latent has NaN"):
        encode_questions(checkpoint, questions)


def test_questions_with_one_candidate_can_be_asked_of_a_model(model: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    (row,) = by_model(str(model), None)([Question("k", ((picture, "a dog"),), 0, "s")])
    assert np.isfinite(row).all()


@pytest.mark.parametrize(
    ("questions", "failures", "said"),
    [
        (1, [Failure("a.png", "broken")], "1 question left out, for 1 image that failed"),
        (
            2,
            [Failure("a.png", "broken"), Failure(None, "NaN", "dog")],
            "2 questions left out, for 1 image and 1 text or pair that failed",
        ),
        (
            3,
            [Failure(name, "NaN", "dog") for name in ("a.png", "b.png")],
            "3 questions left out, for 2 texts or pairs that failed",
        ),
    ],
)
def test_numbers_agree_with_their_nouns(questions: int, failures: list[Failure], said: str) -> None:
    left_out = LeftOut()
    left_out.merge(questions, failures)
    assert left_out.sentence() == said
