"""VQAv2, from hand-written files in the published form and from the released test texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.vqa import (
    Row,
    read_released_vqa,
    read_rows,
    read_vqav2,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "vqav2"

# Question, image, text, answer, type.
TRAIN = [
    (10, 1, "Is it red?", "yes", "yes/no"),
    (11, 1, "What is it?", "dog", "other"),
    (12, 2, "How many?", "2", "number"),
    (13, 2, "Is it big?", "yes", "yes/no"),
    (14, 3, "What is it?", "cat", "other"),
    (15, 3, "Which?", "cow", "other"),
]
VAL = [
    (20, 4, "Is it wet?", "yes", "yes/no"),
    (21, 4, "What is it?", "whale", "other"),
    (22, 5, "Who?", "cat", "other"),
]


def write_split(root: Path, split: str, rows: list[tuple[int, int, str, str, str]]) -> None:
    questions = [{"image_id": i, "question": text, "question_id": n} for n, i, text, _, _ in rows]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": answer,
            "answers": [{"answer": "x", "answer_confidence": "yes", "answer_id": 1}] * 10,
            "image_id": i,
            "answer_type": about,
            "question_id": n,
        }
        for n, i, _, answer, about in reversed(rows)
    ]
    for name, content in {
        f"v2_OpenEnded_mscoco_{split}2014_questions.json": {"info": {}, "questions": questions},
        f"v2_mscoco_{split}2014_annotations.json": {"info": {}, "annotations": annotations},
    }.items():
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    (root / f"{split}2014").mkdir()
    for image in {i for _, i, *_ in rows}:
        (root / f"{split}2014" / f"COCO_{split}2014_{image:012d}.jpg").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", TRAIN)
    write_split(tmp_path, "val", VAL)
    return tmp_path


# Of the training answers "yes" comes twice and the others once: by alphabet 2, cat, cow, dog.
@pytest.mark.parametrize(
    ("split", "answers", "expected"),
    [
        (
            "train",
            3,
            [
                ("binary", 1, "Is it red?", "yes"),
                ("other", 2, "How many?", "2"),
                ("binary", 2, "Is it big?", "yes"),
                ("other", 3, "What is it?", "cat"),
            ],
        ),
        ("val", 3, [("binary", 4, "Is it wet?", "yes"), ("other", 5, "Who?", "cat")]),
        ("val", 1, [("binary", 4, "Is it wet?", "yes")]),
    ],
)
def test_a_question_goes_with_every_frequent_answer(
    split: str, answers: int, expected: list[tuple[str, int, str, str]], root: Path
) -> None:
    questions = list(read_vqav2(root, split, seed=0, answers=answers))
    assert len(questions) == len(expected)
    for question, (kind, image, text, answer) in zip(questions, expected, strict=True):
        name = f"COCO_{split}2014_{image:012d}.jpg"
        assert (question.kind, question.source) == (kind, name)
        assert {pair[0] for pair in question.candidates} == {root / f"{split}2014" / name}
        texts = [pair[1] for pair in question.candidates]
        assert texts[question.right] == f"{text} {answer}"
        assert sorted(texts) == sorted(f"{text} {other}" for other in ["yes", "2", "cat"][:answers])


def test_all_answers_where_there_are_fewer_than_asked_for(root: Path) -> None:
    questions = list(read_vqav2(root, "train", seed=0))
    assert len(questions) == len(TRAIN)
    assert {len(question.candidates) for question in questions} == {5}


def test_vqav2_follows_from_the_seed(root: Path) -> None:
    first, again = (list(read_vqav2(root, "train", 5)) for _ in range(2))
    assert first == again
    places = {tuple(q.right for q in read_vqav2(root, "train", seed)) for seed in range(20)}
    assert len(places) > 10


def test_what_vqav2_lacks_is_named_with_its_origin(root: Path) -> None:
    with pytest.raises(InputError, match="no split 'test' with public answers; it has train, val"):
        next(read_vqav2(root, "test", seed=0))
    (root / "val2014" / "COCO_val2014_000000000004.jpg").unlink()
    with pytest.raises(InputError, match=r"'COCO_val2014_000000000004.jpg'.*2014 val images"):
        next(read_vqav2(root, "val", seed=0))
    for name in (
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
        "v2_mscoco_train2014_annotations.json",
    ):
        (root / name).unlink()
        with pytest.raises(InputError, match=f"no file '{name}' in .* the VQA site"):
            next(read_vqav2(root, "val", seed=0))


def csv_row(right: str, *wrong: str, image: str = "42") -> str:
    texts = [*wrong, *(f"Is it? no {i}" for i in range(9 - len(wrong)))]
    return ",".join([right, image, *texts]) + "\n"


CSV_HEADER = ",".join(["sentence", "pos_image_id", *(f"neg_sentence_{i}" for i in range(1, 10))])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Is it? yes", "binary"),
        ("Big??? no", "binary"),
        ("Is it a 'dog?'? no", "binary"),
        ("Why? it's not", "other"),
        ("Which? yes and no", "other"),
        ("Who says no?", "other"),
    ],
)
def test_released_texts_of_yes_and_no_are_binary(text: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vqa_text_test.csv"
    path.write_text(f"{CSV_HEADER}\n{csv_row(text)}", encoding="utf-8")
    (row,) = read_rows(path)
    assert (row.kind, row.image, row.right) == (kind, 42, text)


def test_released_texts_are_questions(tmp_path: Path) -> None:
    (tmp_path / "vqa_text_test.csv").write_text(
        f"{CSV_HEADER}\n{csv_row('Is it? yes')}{csv_row('Who? he', 'Who? he', 'Who? ')}",
        encoding="utf-8",
    )
    image = tmp_path / "images" / "COCO_val2014_000000000042.jpg"
    image.parent.mkdir()
    image.touch()
    first, second = read_released_vqa(tmp_path, seed=0)
    assert first.source == second.source == image.name
    assert first.candidates[first.right] == (image, "Is it? yes")
    assert len(first.candidates) == 10
    # A wrong text that repeats the right one is none.
    texts = [text for _, text in second.candidates]
    assert texts[second.right] == "Who? he"
    assert sorted(texts) == sorted(["Who? he", "Who?", *(f"Is it? no {i}" for i in range(7))])
    image.unlink()
    with pytest.raises(InputError, match=r"'COCO_val2014_000000000042.jpg'.*2014 val images"):
        next(read_released_vqa(tmp_path, seed=0))
    (tmp_path / "vqa_text_test.csv").unlink()
    with pytest.raises(InputError, match=r"no file 'vqa_text_test.csv'.*eric-ai-lab/DSD"):
        next(read_released_vqa(tmp_path, seed=0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (csv_row("Who? he", image="x"), "the image must be a number, got 'x'"),
        (csv_row(""), "a sentence is empty"),
        (csv_row("Who? he", " "), "a sentence is empty"),
    ],
)
def test_malformed_released_texts_are_refused(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{CSV_HEADER}\n{csv_row('Who? she')}{row}", encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(read_rows(path))
    assert str(error.value) == f"{path}, line 3: {message}"


@pytest.mark.skipif(not REAL.exists(), reason="the real files are not here")
class TestRealFiles:
    def test_a_thousand_texts(self) -> None:
        rows = list(read_rows(REAL / "vqa_text_test.csv"))
        assert len(rows) == 1000
        assert Counter(row.kind for row in rows) == {"binary": 195 + 191, "other": 614}
        assert len({row.image for row in rows}) == 198
        # One row of the file has its right text among the wrong ones.
        assert Counter(len(row.wrong) for row in rows) == {9: 999, 8: 1}
        assert all(row.right not in row.wrong for row in rows)
        assert rows[0] == Row(108327, "What baseball team is on the hat? la", rows[0].wrong)

    def test_every_text_is_a_question(self, tmp_path: Path) -> None:
        (tmp_path / "vqa_text_test.csv").symlink_to(REAL / "vqa_text_test.csv")
        (tmp_path / "val2014").mkdir()
        for row in read_rows(REAL / "vqa_text_test.csv"):
            (tmp_path / "val2014" / f"COCO_val2014_{row.image:012d}.jpg").touch()
        questions = list(read_released_vqa(tmp_path, seed=0))
        assert questions == list(read_released_vqa(tmp_path, seed=0))
        places = Counter(question.right for question in questions)
        assert all(abs(places[place] - 100) < 45 for place in range(10))

    def test_their_answers_are_the_frequent_ones(self) -> None:
        counts = json.loads((REAL / "major_answers.json").read_text("utf-8"))
        assert len(counts) == 3129
        assert min(counts.values()) == 9
        for row in read_rows(REAL / "vqa_text_test.csv"):
            question = row.right.rpartition("?")[0]
            for text in (row.right, *row.wrong):
                assert text.startswith(question)
                assert text.removeprefix(question + "?").strip() in counts
