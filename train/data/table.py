"""Anybody's data: a pairs file, as `dsd-trt score --pairs` reads it, that says what is right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.commands.inputs import Pair, read_pair
from dsd_trt.errors import InputError
from dsd_trt.files.rows import LineError, csv_rows, jsonl_rows, text_fault
from dsd_trt.files.schema import parse_json
from dsd_trt.train.data.files import read_text
from dsd_trt.train.question import Question, shuffled


def read_table(path: Path, seed: int) -> Iterator[Question]:
    """Questions of kind "text", given an image the right text; the source is the image's name.

    Args:
        path: UTF-8 CSV with a header, or JSONL; the images in it are named relative to its folder.
            Columns `image,text,negatives` make a question of each row, against the row's list of
            wrong texts (in CSV, a JSON list in the cell). Columns `image,text,label` make a
            question of each row with label 1, against its image's rows with label 0.
        seed: of the right text's place.

    Raises:
        InputError: it is malformed, with the line; an image does not exist, or lacks right or
            wrong texts; a text is both right and wrong.
    """
    text = read_text(path)
    rows = (
        jsonl_rows(text)
        if text.lstrip().startswith("{")
        else csv_rows(text, ("image", "text"), ("label", "negatives"))
    )
    try:
        if not (first := next(rows, None)):
            raise InputError(f"{path} has no rows")
        rows = itertools.chain([first], rows)
        if "negatives" in first[1]:
            examples = _with_negatives(path, rows)
        elif "label" in first[1]:
            examples = _with_labels(path, rows)
        else:
            raise LineError(first[0], "the columns are image,text,label or image,text,negatives")
        for number, (pair, wrong) in enumerate(examples):
            if pair.text in wrong:
                raise InputError(
                    f"{path}: {pair.text!r} is both right and wrong for the image {pair.name!r}"
                )
            yield shuffled(
                "text",
                (pair.image, pair.text),
                [(pair.image, text) for text in wrong],
                pair.name,
                [seed, number],
            )
    except LineError as error:
        raise InputError(f"{path}, line {error.line}: {error}") from None


def _with_negatives(
    path: Path, rows: Iterator[tuple[int, dict[str, object]]]
) -> Iterator[tuple[Pair, list[str]]]:
    """Each row's pair and its list of wrong texts."""
    for line, row in rows:
        negatives = row.get("negatives")
        if isinstance(negatives, str):
            try:
                negatives = parse_json(negatives)
            except ValueError:
                negatives = None
        texts = negatives if isinstance(negatives, list) else []
        if not texts or not all(
            isinstance(text, str) and text.strip() and not text_fault(text) for text in texts
        ):
            raise LineError(line, 'negatives must be a list of texts, such as ["a dog", "a cat"]')
        yield read_pair(path.parent, line, row), [text.strip() for text in texts]


def _with_labels(
    path: Path, rows: Iterator[tuple[int, dict[str, object]]]
) -> Iterator[tuple[Pair, list[str]]]:
    """Each pair of label 1, and its image's texts of label 0; an image's rows may lie anywhere."""
    by_image: dict[str, tuple[list[Pair], list[Pair]]] = {}
    for line, row in rows:
        label = str(row.get("label")).strip()
        if label not in ("0", "1"):
            raise LineError(line, f"label must be 0 or 1, got {label!r}")
        pair = read_pair(path.parent, line, row)
        by_image.setdefault(pair.name, ([], []))[int(label)].append(pair)
    for name, labelled in by_image.items():
        for number, pairs in enumerate(labelled):
            if not pairs:
                raise InputError(f"{path}: the image {name!r} has no text with label {number}")
        wrong, right = labelled
        texts = [pair.text for pair in wrong]
        yield from ((pair, texts) for pair in right)
