"""Data sets by name: the parts they come in, and what each name opens."""

from __future__ import annotations

import csv
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError
from dsd_trt.train.data.catalogue import NAMES, SCENES, open_dataset, require_files
from dsd_trt.train.question import Question

IMAGES = 40


def sources(questions: list[Question]) -> set[str]:
    return {question.source for question in questions}


def both(name: str, root: Path, **options: float) -> tuple[list[Question], list[Question]]:
    few, rest = (
        list(open_dataset(name, root, part, 0, fraction=options.get("fraction", 0.1)))
        for part in ("train", "test")
    )
    return few, rest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set that has files, small, in one folder; images are never opened."""
    root = tmp_path_factory.mktemp("data")
    numbers = range(1, IMAGES + 1)
    for name in ("images", "train2014", "val2014"):
        (root / name).mkdir()
    for i in numbers:
        (root / "images" / f"{i}.jpg").touch()
        (root / "images" / f"wino{i}.png").touch()
        for split in ("train", "val"):
            (root / f"{split}2014" / f"COCO_{split}2014_{i:012d}.jpg").touch()

    with (root / "compositional_visual_genome.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sentence", "pos_image_id", "neg_image_id", "neg_value"])
        writer.writerows((i, f"text {i}", i, i % IMAGES + 1, "verb") for i in numbers)

    def ref(i: int, split: str, text: str) -> dict[str, object]:
        return {"image_id": i, "split": split, "sentences": [{"sent": f"{text} {i}"}]}

    refs = [ref(i, "train", "thing") for i in numbers] + [ref(i, "val", "one") for i in numbers]
    (root / "refs(google).p").write_bytes(pickle.dumps(refs))
    images = [{"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg"} for i in numbers]
    (root / "instances.json").write_text(json.dumps({"images": images}))

    for split in ("train", "val"):
        questions = [{"question_id": i, "image_id": i, "question": "Is it?"} for i in numbers]
        annotations = [
            {"question_id": i, "multiple_choice_answer": answer, "answer_type": "yes/no"}
            for i, answer in zip(numbers, ["yes", "no"] * IMAGES, strict=False)
        ]
        (root / f"v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(
            json.dumps({"questions": questions})
        )
        (root / f"v2_mscoco_{split}2014_annotations.json").write_text(
            json.dumps({"annotations": annotations})
        )
    with (root / "vqa_text_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "pos_image_id", *(f"neg_sentence_{i}" for i in range(1, 10))])
        writer.writerows(["Is it? yes", i, *(f"Is it? {k}" for k in range(9))] for i in numbers)

    items = [
        {
            "id": i,
            "image_0": f"wino{i}",
            "image_1": f"wino{i % IMAGES + 1}",
            "caption_0": "a b",
            "caption_1": "b a",
        }
        for i in numbers
    ]
    (root / "examples.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows = [{"image": f"images/{i}.jpg", "text": "x", "negatives": ["y"]} for i in numbers]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


# Sources of the few-shot part, and questions of each part, at a tenth of 40 sources.
@pytest.mark.parametrize(
    ("name", "few_sources", "few", "rest"),
    [
        ("comvg", 4, 4, 36),
        ("refcocog", 4, 4, 36),
        ("vqav2", 4, 4, 40),  # of other images altogether
        ("vqav2-released", 4, 4, 36),
        ("winoground", 4, 16, 144),
        ("mine.jsonl", 4, 4, 36),
    ],
)
def test_no_source_is_in_both_parts(
    name: str, few_sources: int, few: int, rest: int, root: Path
) -> None:
    train, test = both(name, root)
    assert len(sources(train)) == few_sources
    assert (len(train), len(test)) == (few, rest)
    assert not sources(train) & sources(test)
    assert both(name, root) == (train, test)
    reseeded = list(open_dataset(name, root, "train", 1, fraction=0.1))
    assert sources(reseeded) != sources(train)


@pytest.mark.parametrize("name", ["comvg", "refcocog", "vqav2", "winoground", "mine.jsonl"])
def test_a_fraction_of_nothing_leaves_all_to_test_on(name: str, root: Path) -> None:
    train, test = both(name, root, fraction=0)
    assert train == []
    assert len(sources(test)) == IMAGES


def test_refcocog_is_tested_on_its_own_split(root: Path) -> None:
    train, test = both("refcocog", root)
    assert all(q.candidates[q.right][1].startswith("thing") for q in train)
    assert all(q.candidates[q.right][1].startswith("one") for q in test)


def test_vqav2_is_tested_without_its_training_images(root: Path) -> None:
    (root / "train2014").rename(root / "away")
    try:
        assert len(list(open_dataset("vqav2", root, "test", 0))) == IMAGES
        with pytest.raises(InputError, match="COCO_train2014_"):
            list(open_dataset("vqav2", root, "train", 0))
    finally:
        (root / "away").rename(root / "train2014")


def test_few_shot_is_one_in_twenty(root: Path) -> None:
    assert len(list(open_dataset("comvg", root, "train", 0))) == 2


@pytest.mark.parametrize("name", [*NAMES, "mine.jsonl"])
def test_every_name_opens_and_a_limit_holds(name: str, root: Path) -> None:
    assert len(list(open_dataset(name, root, "test", 0, limit=3))) == 3
    assert len(list(open_dataset(name, root, "test", 0, limit=0))) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shapes-")])
def test_shapes_are_trained_and_tested_on_other_scenes(name: str) -> None:
    def pictures(part: str, seed: int) -> set[bytes]:
        questions = open_dataset(name, Path(), part, seed, limit=20)
        return {np.asarray(image).tobytes() for q in questions for image, _ in q.candidates}

    parts = [pictures(part, seed) for seed in (0, 1) for part in ("train", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_without_a_limit_shapes_are_a_thousand(undrawn: None) -> None:
    assert len(list(open_dataset("shapes-vqa", Path(), "train", 0))) == SCENES == 1000


def test_a_table_may_lie_elsewhere(root: Path) -> None:
    assert len(list(open_dataset(str(root / "mine.jsonl"), Path(), "test", 0))) == 40


def test_a_table_is_used_whole_unless_told(root: Path) -> None:
    for part in ("train", "test"):
        assert len(list(open_dataset("mine.jsonl", root, part, 0))) == 40
    few, rest = both("mine.jsonl", root, fraction=0.05)
    assert (len(few), len(rest)) == (2, 38)
    part_of_it = open_dataset("mine.jsonl", root, "train", 0, fraction=0.05)
    assert len(list(part_of_it)) == 2
    assert part_of_it.lines() == [
        "mine.jsonl: 40 rows, 40 questions about 40 images",
        "mine.jsonl: left out: 38 questions in the other part (fraction 0.05)",
    ]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as error:
        open_dataset("comgv", Path(), "train", 0)
    assert str(error.value) == (
        f"no data set 'comgv'; there are {', '.join(NAMES)}, or a table: "
        "a CSV, JSONL or Parquet file"
    )


def test_an_unknown_part_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no part 'val' of a data set; it is train or test"):
        open_dataset("comvg", Path(), "val", 0)


def test_reading_takes_no_torch(root: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "  # importing it would be an error
        "from dsd_trt.train.data.catalogue import NAMES, open_dataset; from pathlib import Path; "
        "[list(open_dataset(name, Path(sys.argv[1]), 'test', 0, 1)) for name in NAMES]"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


@pytest.mark.parametrize("command", ["train", "eval", "ablate", "baseline"])
def test_help_names_every_data_set(command: str) -> None:
    text = CliRunner().invoke(cli, [command, "--help"]).output
    for name in NAMES:  # a name may be broken across lines at its hyphens
        assert name in "".join(text.split())


def test_the_guide_names_every_data_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?`) \| (?:read|drawn) ", page, re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`([\w-]+)`", row)] == list(NAMES)


@pytest.mark.parametrize(
    ("name", "part", "file"),
    [
        ("comvg", "test", "compositional_visual_genome.csv"),
        ("refcocog", "train", "refs(google).p"),
        ("refcocog", "test", "instances.json"),
        ("vqav2", "train", "v2_mscoco_train2014_annotations.json"),
        ("vqav2", "train", "v2_OpenEnded_mscoco_train2014_questions.json"),
        ("vqav2", "test", "v2_mscoco_train2014_annotations.json"),
        ("vqav2", "test", "v2_mscoco_val2014_annotations.json"),
        ("vqav2", "test", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("vqav2-released", "test", "vqa_text_test.csv"),
        ("winoground", "test", "examples.jsonl"),
    ],
)
def test_a_missing_file_is_named_before_the_others_are_read(
    name: str, part: str, file: str, root: Path, tmp_path: Path
) -> None:
    for path in root.iterdir():
        if path.is_file() and path.name != file:
            (tmp_path / path.name).write_text("this cannot be read")
    for complain in (
        lambda: require_files(name, tmp_path),
        lambda: open_dataset(name, tmp_path, part, 0),
    ):
        with pytest.raises(InputError, match=rf"no file {re.escape(repr(file))} in"):
            complain()


def test_files_that_are_there_are_not_read(root: Path, tmp_path: Path) -> None:
    for path in root.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text("this cannot be read")
    for name in NAMES:
        require_files(name, tmp_path)


def test_a_part_without_questions_is_refused_and_another_keeps_its_first(root: Path) -> None:
    every = list(open_dataset("mine.jsonl", root, "test", 0))
    part = open_dataset("mine.jsonl", root, "test", 0)
    part.require_some("test questions")
    assert list(part) == every
    for name in ("mine.jsonl", "comvg"):
        part = open_dataset(name, root, "test", 0, fraction=1.0)
        with pytest.raises(InputError, match=f"{name} has no test questions: 40 questions, all in"):
            part.require_some("test questions")
    drawn = open_dataset("shapes-vqa", root, "test", 0, limit=3)
    drawn.require_some("test questions")
    assert len(list(drawn)) == 3
