"""VQAv2: given an image and a question, choose the right answer; the text is both together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.errors import InputError
from dsd_trt.train.data.files import (
    DSD,
    find_coco_image,
    find_file,
    read_csv,
    stream_json,
)
from dsd_trt.train.question import Question, shuffled

_ORIGIN = "the VQA site (visualqa.org), version 2 of the balanced real images"
_WRONG = tuple(f"neg_sentence_{place}" for place in range(1, 10))


@dataclass(frozen=True)
class Row:
    """One row of the released test texts.

    Attributes:
        image: number of an image in COCO's val2014.
        right: text of the question and the right answer.
        wrong: texts of the question and each wrong answer, without repetitions of `right`.
    """

    image: int
    right: str
    wrong: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Kind of question: "binary" if its answer is yes or no, else "other"."""
        return _kind(self.right.rpartition("? ")[2] in ("yes", "no"))


def read_vqav2(root: Path, split: str, seed: int, answers: int = 3129) -> Iterator[Question]:
    """Questions whose candidates are the most frequent answers; kinds "binary" and "other".

    The candidates are the most frequent answers of the training split, equally frequent ones in
    alphabetical order. Questions with another right answer are skipped, as in the released test
    texts. The source is the image's file name.

    Args:
        root: folder of the published questions and annotations and of COCO's 2014 images, which
            are in its subfolder `<split>2014`, `images/<split>2014` or `images`. The training
            annotations are needed for either split.
        split: split of the data set, "train" or "val".
        seed: random seed of the right answer's position.
        answers: number of candidates per question.

    Raises:
        InputError: the split does not exist, or a file is missing or malformed; without one of
            the published files already when called.
    """
    if split not in ("train", "val"):
        raise InputError(f"VQAv2 has no split {split!r} with public answers; it has train, val")
    learned, annotations, questions = (
        find_file(name, [root], _ORIGIN)
        for name in (
            "v2_mscoco_train2014_annotations.json",
            f"v2_mscoco_{split}2014_annotations.json",
            f"v2_OpenEnded_mscoco_{split}2014_questions.json",
        )
    )
    return _vqav2_questions(learned, annotations, questions, root, split, seed, answers)


def _vqav2_questions(
    learned: Path,
    annotations: Path,
    asked: Path,
    root: Path,
    split: str,
    seed: int,
    answers: int,
) -> Iterator[Question]:
    """The questions of `read_vqav2`.

    Args:
        learned: annotations of the training split, whose answers are the candidates.
        annotations: annotations of the split.
        asked: questions of the split.
        root: folder of the images.
        split: split of the data set.
        seed: random seed of the right answer's position.
        answers: number of candidates per question.
    """
    counts = Counter(answer for _, answer, _ in _annotations(learned))
    candidates = sorted(counts, key=lambda answer: (-counts[answer], answer))[:answers]
    known = set(candidates)
    right = {
        question: (answer, _kind(about == "yes/no"))
        for question, answer, about in _annotations(annotations)
        if answer in known
    }
    questions = stream_json(asked, "questions", ("question_id", "image_id", "question"))
    for number, (question, image_id, text) in enumerate(questions):
        if question not in right:
            continue
        answer, kind = right[question]
        image = find_coco_image(_image_name(split, image_id), root, split)
        wrong = [(image, f"{text} {other}") for other in candidates if other != answer]
        yield shuffled(kind, (image, f"{text} {answer}"), wrong, image.name, [seed, number])


def read_released_vqa(root: Path, seed: int) -> Iterator[Question]:
    """The paper's released test texts, up to ten per question; kinds "binary" and "other".

    The source is the image's file name.

    Args:
        root: folder of `vqa_text_test.csv` and of COCO's 2014 val images, which are in its
            subfolder `val2014`, `images/val2014` or `images`.
        seed: random seed of the right text's position.

    Raises:
        InputError: a file is missing or malformed; without the CSV file already when called.
    """
    return _released_questions(find_file("vqa_text_test.csv", [root], DSD), root, seed)


def _released_questions(path: Path, root: Path, seed: int) -> Iterator[Question]:
    for number, row in enumerate(read_rows(path)):
        image = find_coco_image(_image_name("val", row.image), root, "val")
        wrong = [(image, text) for text in row.wrong]
        yield shuffled(row.kind, (image, row.right), wrong, image.name, [seed, number])


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the released `vqa_text_test.csv`, in order; the images need not exist.

    Raises:
        InputError: the file is malformed; the message names the line.
    """
    for line, cells in read_csv(path, ("sentence", "pos_image_id", *_WRONG)):
        image, right = cells["pos_image_id"].strip(), cells["sentence"].strip()
        wrong = [cells[column].strip() for column in _WRONG]
        if not image.isdecimal():
            raise InputError(f"{path}, line {line}: the image must be a number, got {image!r}")
        if not right or not all(wrong):
            raise InputError(f"{path}, line {line}: a sentence is empty")
        yield Row(int(image), right, tuple(text for text in wrong if text != right))


def _annotations(path: Path) -> Iterator[tuple[Any, ...]]:
    """Question number, most frequent answer and answer type of each annotation."""
    fields = ("question_id", "multiple_choice_answer", "answer_type")
    return stream_json(path, "annotations", fields)


def _image_name(split: str, image: int) -> str:
    return f"COCO_{split}2014_{image:012d}.jpg"


def _kind(binary: bool) -> str:
    return "binary" if binary else "other"
