"""Score scenes by another renderer: python tests/support/held_out.py [--bundle B] [--count N].

Prints the accuracy of two kinds of question. Given a text, choose between two images that differ
in subject, object or predicate (chance 50 %). Given an image, choose one of ten texts (chance
10 %). A tie counts as wrong. The command line scores the same pairs again:
dsd-trt score --pairs FOLDER/pairs.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from other_renderer import PARTS, RELATIONS, image_choices, text_choices

from dsd_trt import Scorer
from dsd_trt.errors import DsdError


@dataclass(frozen=True)
class Question:
    """A question: a contiguous range of pairs, one of which is the right answer.

    Attributes:
        kind: relation and changed part, or ("text of ten", "").
        start: index of the first pair.
        stop: index after the last pair.
        right: offset from `start` of the pair that should have the highest score.
    """

    kind: tuple[str, str]
    start: int
    stop: int
    right: int


def write_questions(
    folder: Path, count: int, seed: int
) -> tuple[list[tuple[Path, str]], list[Question]]:
    """Draw `count` image choices and half as many text choices, and write pairs.csv."""
    pairs: list[tuple[Path, str]] = []
    questions: list[Question] = []
    for i, choice in enumerate(image_choices(count, seed)):
        names = [folder / f"choice-{i:04d}-{side}.png" for side in ("a", "b")]
        right = (seed + i) % 2
        for k, name in enumerate(names):
            (choice.right if k == right else choice.wrong).save(name, compress_level=1)
        pairs += [(name, choice.text) for name in names]
        questions.append(
            Question((choice.relation, choice.part), len(pairs) - 2, len(pairs), right)
        )
    for i, asked in enumerate(text_choices(count // 2, seed)):
        name = folder / f"of-ten-{i:04d}.png"
        asked.image.save(name, compress_level=1)
        start = len(pairs)
        pairs += [(name, text) for text in asked.texts]
        questions.append(Question(("text of ten", ""), start, len(pairs), asked.right))
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text"))
        writer.writerows((name.name, text) for name, text in pairs)
    return pairs, questions


def grade(
    scores: NDArray[np.float32], questions: Sequence[Question]
) -> dict[tuple[str, str], list[bool]]:
    """Whether each answer is right, by kind of question; a tie for the highest score is wrong."""
    answers: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for question in questions:
        of_question = scores[question.start : question.stop]
        wrong = np.delete(of_question, question.right)
        answers[question.kind].append(bool(of_question[question.right] > wrong.max()))
    return answers


def report(answers: dict[tuple[str, str], list[bool]]) -> str:
    """A table of accuracies in percent, with the number of questions of each."""

    def cell(kinds: list[tuple[str, str]]) -> str:
        hits = [hit for kind in kinds for hit in answers.get(kind, [])]
        return f"{100 * np.mean(hits):5.1f} ({len(hits)})" if hits else "-"

    def row(name: str, relations: Sequence[str]) -> str:
        columns = [[(relation, part) for relation in relations] for part in PARTS]
        columns.append([kind for column in columns for kind in column])
        return f"{name:12}" + "".join(f"{cell(column):>14}" for column in columns)

    head = f"{'':12}" + "".join(f"{name:>14}" for name in (*PARTS, "all"))
    rows = [row(relation, [relation]) for relation in RELATIONS]
    of_ten = cell([("text of ten", "")])
    lines = ["Right image of two, % (questions)", head, *rows, row("all", RELATIONS)]
    return "\n".join([*lines, f"Right text of ten: {of_ten}"])


def figures(answers: dict[tuple[str, str], list[bool]]) -> dict[str, float]:
    """Accuracies in percent, under the names in the model card's tables."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for (relation, part), right in answers.items():
        if not part:
            hits["R@1 of ten"] += right
            continue
        hits[f"image {part}"] += right
        if part == "predicate":
            hits[f"image {part}: {relation}"] += right
    return {name: 100 * float(np.mean(right)) for name, right in sorted(hits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="bundle to score with; default: the embedded one")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--count", type=int, default=360, help="image choices; 7 pairs each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep images and pairs.csv in this folder")
    parser.add_argument("--json", action="store_true", help="print figures for the model card")
    asked = parser.parse_args()
    scorer = Scorer.load(asked.bundle, asked.engine)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        pairs, questions = write_questions(folder, asked.count, asked.seed)
        scored = scorer.score_pairs(pairs)
    answers = grade(scored.scores, questions)
    if asked.json:
        print(json.dumps(figures(answers)))
    else:
        print(f"{scorer.engine}; {len(pairs)} pairs, seed {asked.seed}")
        print(report(answers))


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
