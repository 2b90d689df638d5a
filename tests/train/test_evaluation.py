"""Measuring: answers and their ranks, stopped runs that go on, figures and their intervals."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundles import make_bundle
from click.testing import CliRunner, Result
from PIL import Image

from dsd_trt import Bundle, Scorer
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError
from dsd_trt.results import Failure
from dsd_trt.train.data.table import read_table
from dsd_trt.train.evaluation.answers import Answer, ask, grade, growing
from dsd_trt.train.evaluation.by_bundle import BundleScore
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.evaluation.figures import (
    Figure,
    as_text,
    count_left_out,
    figures,
    plot,
    to_json,
)
from dsd_trt.train.evaluation.reproduction import reproduce
from dsd_trt.train.evaluation.study import Study
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut, ignore
from dsd_trt.train.question import Question, Report
from dsd_trt.train.run_key import claim
from dsd_trt.train.shapes.datasets import shapes_comvg, shapes_refcocog

ROOT = Path(__file__).parents[2]

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)


def _question(number: int, candidates: int = 3) -> Question:
    pairs = tuple((f"{number}.png", f"text {k}") for k in range(candidates))
    return Question("kind", pairs, number % candidates, f"source {number}")


@pytest.mark.parametrize(
    ("scores", "rank", "chosen"),
    [
        ([0.1, 0.3, 0.2], 1, 1),
        ([0.4, 0.3, 0.2], 2, 0),
        ([0.4, 0.3, 0.5], 3, 2),
        ([0.3, 0.3, 0.1], 2, 0),  # a tie stands before
        ([0.3, 0.3, 0.3], 3, 0),
        ([0.1, math.nan, 0.2], None, None),
        ([math.nan, 0.3, 0.2], None, None),  # nobody knows whether it would have been higher
        ([0.1, 0.3, math.inf], None, None),
    ],
)
def test_a_rank_counts_ties_against_it_and_needs_all_scores(
    scores: list[float], rank: int | None, chosen: int | None
) -> None:
    assert grade(_question(1), scores) == Answer("kind", "source 1", 3, rank, chosen=chosen)


class Judge:
    """Scores candidates by a fixed rule and remembers what it was asked."""

    def __init__(self, dies_at: int | None = None, torn: Sequence[int] = ()) -> None:
        self.asked: list[str] = []
        self._dies_at, self._torn = dies_at, [f"source {number}" for number in torn]

    def __call__(
        self, questions: Sequence[Question], left_out: Report = ignore
    ) -> list[list[float]]:
        scores = []
        for question in questions:
            self.asked.append(question.source)
            if len(self.asked) == self._dies_at:
                raise KeyboardInterrupt
            place = int(question.source.split()[1]) % 2
            scores.append([float(k == place) for k in range(3)])
            if question.source in self._torn:
                left_out(question, [Failure(question.source, "it is torn")])
                scores[-1][1] = math.nan
        return scores


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    questions = [_question(number) for number in range(100)]
    whole = list(ask(questions, Judge()))
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(ask(questions, Judge(dies_at=80), path))
    kept = len(path.read_text("utf-8").splitlines())
    assert 0 < kept < 80
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "ki')  # what a kill in the middle of writing leaves
    judge = Judge()
    told: list[int] = []
    assert list(ask(questions, judge, path, told.append)) == whole
    assert judge.asked == [question.source for question in questions[kept:]]
    assert told[-1] == 100
    again = Judge()
    assert list(ask(questions, again, path)) == whole
    assert again.asked == []


def test_what_was_left_out_is_asked_again_and_the_rest_is_not(tmp_path: Path) -> None:
    questions, path = [_question(number) for number in range(70)], tmp_path / "answers.jsonl"
    torn = (3, 40, 69)
    first = list(ask(questions, Judge(torn=torn), path))
    assert [i for i, answer in enumerate(first) if answer.rank is None] == list(torn)
    assert first[40].failures == (Failure("source 40", "it is torn"),)
    assert first == list(ask(questions, Judge(torn=torn)))
    before = path.read_bytes()

    again = Judge(torn=torn)
    assert list(ask(questions, again, path)) == first
    assert again.asked == ["source 3", "source 40", "source 69"]
    assert path.read_bytes() == before

    mended = list(ask(questions, Judge(torn=(40,)), path))
    assert [i for i, answer in enumerate(mended) if answer.rank is None] == [40]
    judge = Judge()
    assert list(ask(questions, judge, path)) == list(ask(questions, Judge()))
    assert judge.asked == ["source 40"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for content in ("[1]\n", "no json\n", '{"kind": "k"}\n', "\u00e9\n"):
        path.write_text(content, "latin-1")
        with pytest.raises(InputError, match=r"answers\.jsonl is damaged or not a file of"):
            list(ask([_question(1)], Judge(), path))


@pytest.mark.parametrize("place", [1, 40, 69])
def test_from_a_damaged_answer_on_questions_are_asked_again(tmp_path: Path, place: int) -> None:
    questions, path = [_question(number) for number in range(70)], tmp_path / "answers.jsonl"
    whole = list(ask(questions, Judge(), path))
    content = path.read_bytes()
    for damage in (b"{", b"\xff\0", b"null", b'{"kind": 1}', b'{"rank": []}'):
        lines = content.split(b"\n")
        lines[place] = damage
        path.write_bytes(b"\n".join(lines))
        judge = Judge()
        assert list(ask(questions, judge, path)) == whole
        assert judge.asked == [question.source for question in questions[place:]]
        assert path.read_bytes() == content


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    list(ask([_question(1), _question(2)], Judge(), path))
    for others in ([_question(1), _question(3)], [_question(1)]):
        with pytest.raises(InputError, match="answers to other questions: delete it"):
            list(ask(others, Judge(), path))


def test_answers_are_of_these_very_texts_and_images(tmp_path: Path) -> None:
    path, picture = tmp_path / "answers.jsonl", tmp_path / "a.png"
    picture.write_bytes(b"one")
    pairs = ((picture, "a dog"), (picture, "a cat"), (picture, "a cow"))
    question = Question("kind", pairs, 0, "source 1")
    list(ask([question], Judge(), path))
    judge = Judge()
    list(ask([question], judge, path))
    assert judge.asked == []
    renamed = (pairs[0], (picture, "a hat"), pairs[2])
    for other in (replace(question, candidates=renamed), replace(question, right=1)):
        with pytest.raises(InputError, match="answers to other questions"):
            list(ask([other], Judge(), path))
    picture.write_bytes(b"two")
    with pytest.raises(InputError, match="answers to other questions"):
        list(ask([question], Judge(), path))


def _answers(
    kind: str, ranks: Sequence[int], candidates: int = 2, per_source: int = 1
) -> list[Answer]:
    return [
        Answer(kind, f"{kind} {i // per_source}", candidates, rank) for i, rank in enumerate(ranks)
    ]


def _row(rows: Sequence[Figure], name: str) -> Figure:
    (row,) = [row for row in rows if row.name == name]
    return row


def test_kinds_are_counted_alone_in_their_group_and_all_together() -> None:
    rows = figures(
        [
            *_answers("subject", [1, 1, 2, 1]),
            *_answers("predicate: above", [1, 2]),
            *_answers("predicate: inside", [2, 2, 1, 1, 1, 1]),
        ]
    )
    assert [row.name for row in rows] == [
        "subject", "predicate", "predicate: above", "predicate: inside", "all",
    ]  # fmt: skip
    expected = {"subject": 75, "predicate": 62.5, "predicate: above": 50, "all": 100 * 8 / 12}
    for name, percent in expected.items():
        assert _row(rows, name).top1 == pytest.approx(percent)
        assert _row(rows, name).chance == 50
        assert _row(rows, name).top5 is None
    assert _row(rows, "all").questions == 12


def test_five_best_of_ten() -> None:
    (row,) = figures(_answers("text of ten", [1, 5, 6, 10], candidates=10))
    assert (row.top1, row.top5, row.chance) == (25, 50, 10)


def test_intervals_are_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    ranks = [1 if hit else 2 for hit in rng.random(400) < 0.7]
    (row,) = figures(_answers("k", ranks))
    p = row.top1 / 100
    half = 196 * math.sqrt(p * (1 - p) / 400)
    assert row.top1 - row.low == pytest.approx(half, rel=0.15)
    assert row.high - row.top1 == pytest.approx(half, rel=0.15)
    # Every answer four times over, in one source each, says no more than it did once.
    (repeated,) = figures(_answers("k", np.repeat(ranks, 4).tolist(), per_source=4))
    assert repeated.high - repeated.low == pytest.approx(row.high - row.low, rel=0.05)


def test_winoground_items_count_as_a_whole() -> None:
    def item(name: str, *ranks: int) -> list[Answer]:
        kinds = ("text", "text", "image", "image")
        return [Answer(k, name, 2, rank) for k, rank in zip(kinds, ranks, strict=True)]

    rows = figures([*item("a", 1, 1, 1, 1), *item("b", 1, 1, 2, 1), *item("c", 1, 2, 1, 1)])
    assert [row.name for row in rows] == ["text score", "image score", "group score"]
    assert [row.top1 for row in rows] == pytest.approx([200 / 3, 200 / 3, 100 / 3])
    assert [row.chance for row in rows] == [25, 25, 6.25]
    assert {row.questions for row in rows} == {3}


def test_tables_and_plots_show_every_row(tmp_path: Path) -> None:
    rows = figures([*_answers("subject", [1, 1, 2, 1]), *_answers("object", [1, 2])])
    lines = as_text(rows, LeftOut()).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("| asked | questions | chance | top-1 |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| subject", "| object", "| all"]
    assert " | 75.0 | " in lines[2]
    plot(rows, tmp_path / "plot.png", "a title")
    with Image.open(tmp_path / "plot.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 10


def test_what_is_left_out_counts_for_nothing() -> None:
    lost = Answer("object", "object 9", 2, None, (Failure("a.png", "torn"),))
    gone = Answer("verb", "verb 1", 2, None, (Failure("a.png", "torn"), Failure("b.png", "torn")))
    whole = _answers("subject", [1, 1, 2, 1]) + _answers("object", [1, 2])
    answers = [lost, *whole, gone]
    assert [row.name for row in figures(answers)] == ["subject", "object", "all"]
    by_name = {row.name: row for row in figures(whole)}
    assert _row(figures(answers), "object") == by_name["object"]
    assert figures([lost, gone]) == []
    left_out = count_left_out(answers)
    assert left_out.questions == 2
    assert [failure.image for failure in left_out.failures] == ["a.png", "b.png"]
    text = as_text(figures(answers), left_out)
    assert text.endswith("|\n\n2 questions left out, for 2 images that failed\n")
    plain = json.loads(to_json(figures(answers), {"data": "x"}, left_out))
    assert (plain["left_out"], len(plain["errors"])) == (2, 2)


def test_an_item_with_a_question_left_out_is_left_out_as_a_whole() -> None:
    """What is left of it would be easier to answer."""
    ranks = {"a": (1, 1, 1, 1), "b": (1, None, 1, 1), "c": (1, 2, 1, 1)}
    answers = [
        Answer(kind, name, 2, rank)
        for name, of_item in ranks.items()
        for kind, rank in zip(("text", "text", "image", "image"), of_item, strict=True)
    ]
    assert [(row.questions, row.top1) for row in figures(answers)] == [(2, 50), (2, 100), (2, 50)]
    assert figures([answer for answer in answers if answer.source == "b"]) == []


def test_model_and_bundle_give_the_same_scores(exported_fp32: Exported) -> None:
    questions = [*shapes_comvg(3, 1), *shapes_refcocog(2, 1)]
    bundle = BundleScore(Scorer(exported_fp32.bundle, "onnxruntime"))
    settings = exported_fp32.settings
    model = by_model(str(settings.model), settings.adapter, levels=settings.levels)
    for one, other, question in zip(bundle(questions), model(questions), questions, strict=True):
        assert len(one) == len(question.candidates)
        assert np.ptp(one) > 1e-5
        assert np.abs(np.subtract(one, other)).max() < 1e-5


def test_a_bundle_decodes_the_next_questions_while_it_scores(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's runs for a chunk wait until an image of the next one is being decoded."""
    pictures = [np.full((8, 8, 3), number, np.uint8) for number in range(40)]
    texts = ("a dog", "a red circle")
    questions = [
        Question("kind", tuple((it, text) for text in texts), 0, f"source {number}")
        for number, it in enumerate(pictures)
    ]
    alone = BundleScore(Scorer(bundle, "onnxruntime"))
    expected = [row for chunk in growing(questions, 32) for row in alone(chunk)]
    begun, decoding = list[int](), threading.Condition()

    def decode(picture: Any, *_: object) -> Any:
        with decoding:
            begun.append(int(picture[0, 0, 0]))
            decoding.notify_all()
        return picture

    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    scorer = Scorer(bundle, "onnxruntime")
    encoder: Any = scorer._pipeline.engine("image_encoder")
    run = encoder._run
    last = iter([2, 6, 14, 30, 39, 39])  # last images of the chunks from the second on

    def encode(feeds: Any) -> Any:
        of_next = next(last)
        with decoding:
            assert decoding.wait_for(lambda: of_next in begun, 60)
        return run(feeds)

    monkeypatch.setattr(encoder, "_run", encode)
    with BundleScore(scorer) as score:
        answers = list(ask(questions, score, expect=score.expect))
        assert not score._begun
    assert answers == [grade(*it) for it in zip(questions, expected, strict=True)]
    assert not [it for it in threading.enumerate() if it.name.startswith("decode")]


def test_answered_questions_are_not_expected(tmp_path: Path) -> None:
    questions, path = [_question(number) for number in range(70)], tmp_path / "answers.jsonl"
    list(ask(questions[:40], Judge(torn=(35,)), path))
    expected: list[str] = []
    list(ask(questions, Judge(), path, expect=lambda of: expected.extend(it.source for it in of)))
    assert expected == [f"source {number}" for number in (35, *range(40, 70))]


# Commands


def test_eval_command_writes_its_table_and_goes_on(exported_fp32: Exported, tmp_path: Path) -> None:
    arguments = ["eval", str(exported_fp32.bundle.folder), "--data", "shapes-comvg"]
    arguments += ["--limit", "6", "--engine", "onnxruntime", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[2].startswith("| subject | 2 | 50.0 |")
    saved = json.loads((tmp_path / "out" / "figures.json").read_text("utf-8"))
    assert saved["figures"][-1]["name"] == "all"
    assert (tmp_path / "out" / "table.md").read_text("utf-8") == done.stdout
    again = CliRunner().invoke(cli, [*arguments, "-f", "json"])
    assert json.loads(again.stdout)["figures"] == saved["figures"]


def test_a_folder_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    """Bundle, engine, mode, data and settings: one bundle never gets another's answers."""
    first = make_bundle(tmp_path / "first", matrix=True).folder
    other = make_bundle(tmp_path / "other", matrix=True, token_mask="words").folder
    out = tmp_path / "out"

    def run(bundle: Path, *options: str) -> Result:
        arguments = ["eval", str(bundle), "--data", "shapes-comvg", "--out", str(out)]
        arguments += ["--limit", "3", "--engine", "onnxruntime", *options]
        return CliRunner().invoke(cli, arguments)

    assert run(first).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for arguments, named in (
        ((other,), "bundle"),
        ((first, "--engine", "openvino"), "engine"),
        ((first, "--mode", "matrix"), "mode"),
        ((first, "--data", "shapes-vqa"), "data"),
        ((first, "--seed", "1"), "seed"),
        ((first, "--fraction", "0.1"), "fraction"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert f"{out} holds another run: {named} was" in done.output
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    moved = shutil.copytree(first, tmp_path / "moved")
    assert run(moved).exit_code == 0  # the same bundle, wherever it lies
    assert run(first, "--limit", "6").exit_code == 0  # more of the same
    (out / "run.json").unlink()
    assert "of a run whose settings are unknown" in run(first).output
    (out / "run.json").write_text("[", "utf-8")
    assert "run.json cannot be read" in run(first).output


def test_a_reproduction_goes_on_with_its_own_parts_alone(tmp_path: Path) -> None:
    (tmp_path / "shapes-comvg").mkdir()
    (tmp_path / "shapes-comvg" / "table.md").write_text("figures")
    plan = Study("shapes", None, None, 2, 2, FewShotSettings(steps=1))
    claim(tmp_path, {"model": "another"}, ())
    with pytest.raises(InputError, match="holds another run: model was another, and now is"):
        reproduce(plan, tmp_path, lambda *told: None)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match="holds shapes-comvg of a run whose settings are unknown"):
        reproduce(plan, tmp_path, lambda *told: None)


@dataclass(frozen=True)
class TablePlan(Study):
    """A reproduction on a table in place of the paper's data sets."""

    @property
    def data(self) -> tuple[str, ...]:
        return ("table",)

    def open(self, data: str, part: str) -> Iterator[Question]:
        assert self.root is not None
        return iter(read_table(self.root / f"{part}.jsonl", self.seed).questions)


def test_a_reproduction_knows_its_data_by_their_content(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    picture = (ROOT / "examples/images/lone-star.png").read_bytes()
    for part in ("train", "test"):
        (root / f"{part}.png").write_bytes(picture)
        row = {"image": f"{part}.png", "text": "a star", "negatives": ["a dog"]}
        (root / f"{part}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")

    class StoppedError(Exception):
        pass

    def stop(stage: str, *_: object) -> None:
        if not stage.startswith("reading"):
            raise StoppedError

    def run(at: Path) -> None:
        plan = TablePlan(str(checkpoint_folder), None, at, None, None, FewShotSettings(steps=1))
        reproduce(plan, out, stop)

    with pytest.raises(StoppedError):
        run(root)
    with pytest.raises(StoppedError):  # the same, wherever it lies
        run(Path(shutil.copytree(root, tmp_path / "moved")))
    for name, part in (("test.png", "test"), ("train.jsonl", "train")):
        path = root / name
        before, status = path.read_bytes(), path.stat()
        path.write_bytes(before.replace(b"dog", b"cat") if part == "train" else before + b"\0")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(InputError, match=f"run: questions of table to {part} on was"):
            run(root)
        path.write_bytes(before)
    with pytest.raises(StoppedError):
        run(root)


def test_an_adapter_of_other_questions_is_not_gone_on_with(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """The table has its name, and other texts in it."""
    (tmp_path / "a.png").write_bytes((ROOT / "examples/images/lone-star.png").read_bytes())
    table = tmp_path / "table.csv"
    arguments = ["train", "--model", str(checkpoint_folder), "--data", "table.csv"]
    arguments += ["--root", str(tmp_path), "--fraction", "1", "--steps", "1", "--batch", "1"]
    arguments += ["--validation", "0", "--out", str(tmp_path / "out")]
    for text, code in (("red", 0), ("red", 0), ("green", 2)):
        table.write_text(f'image,text,negatives\na.png,a {text} star,"[""a dog""]"\n', "utf-8")
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == code, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--data", "nothing"], "no data set 'nothing'"),
        (["shapes", "--data", "shapes-vqa", "--engine", "openvino"], "omit --engine"),
        (["nowhere", "--data", "shapes-vqa"], "no model 'nowhere'"),
    ],
)
def test_eval_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["eval", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_train_command_learns_and_goes_on(checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    arguments = ["train", "--model", str(checkpoint_folder), "--data", "shapes-comvg"]
    arguments += ["--limit", "12", "--batch", "2", "--validate-every", "2", "--validation", "0.25"]
    done = CliRunner().invoke(cli, [*arguments, "--steps", "4", "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert len(report["losses"]) == 4
    assert [v["step"] for v in report["validations"]] == [0, 2, 4]
    assert report["questions"] == [9, 3]
    assert report["versions"]["torch"]
    with Image.open(out / "curves.png") as picture:
        assert picture.size[0] > 300

    weights = (out / "adapter.safetensors").read_bytes()
    again = CliRunner().invoke(cli, [*arguments, "--steps", "4", "--out", str(out)])
    assert again.exit_code == 0
    assert (out / "adapter.safetensors").read_bytes() == weights
    other = CliRunner().invoke(cli, [*arguments, "--steps", "5", "--out", str(out)])
    assert other.exit_code == 2
    assert "other settings" in other.output


@pytest.mark.slow  # exports
def test_what_train_learned_can_be_exported(checkpoint_folder: Path, tmp_path: Path) -> None:
    adapter, bundle = str(tmp_path / "adapter"), str(tmp_path / "bundle")
    model = ["--model", str(checkpoint_folder)]
    train = ["train", *model, "--data", "shapes-comvg", "--limit", "8", "--batch", "2"]
    done = CliRunner().invoke(cli, [*train, "--steps", "2", "--validation", "0", "--out", adapter])
    assert done.exit_code == 0, done.output
    export = ["export", *model, "--adapter", adapter, "--levels", "0.4", "--verify", "quick"]
    done = CliRunner().invoke(cli, [*export, "--out", bundle])
    assert done.exit_code == 0, done.output
    assert Scorer.load(bundle).manifest.provenance.adapter_hash


@pytest.mark.slow
def test_several_processes_learn_together(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Two processes with a batch each step as one with the mean of their gradients."""
    arguments = ["train", "--model", str(checkpoint_folder), "--data", "shapes-comvg"]
    arguments += ["--limit", "8", "--batch", "2", "--steps", "3", "--validation", "0.25"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--master_addr", "127.0.0.1"]
    launch += ["--nproc_per_node", "2", "-m", "dsd_trt", *arguments, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output

    reports = [
        json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("one", "two")
    ]
    for training in ("losses", "refit_losses"):
        one, two = ([float(loss) for loss in report[training]] for report in reports)
        assert two[0] == pytest.approx(one[0], rel=1e-6)  # the first one's batch
        assert two[1:] != pytest.approx(one[1:], rel=1e-6)  # both moved it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", "nan"], "nan is no finite number"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--out", "file/below"], "cannot write to the folder 'file/below"),
    ],
)
def test_eval_command_refuses_what_makes_no_sense(
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    command = ["eval", str(checkpoint_folder), "--data", "shapes-comvg", "--limit", "2"]
    done = CliRunner().invoke(cli, [*command, *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.output
