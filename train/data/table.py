"""The user's own data: a pairs file, as for `dsd-trt score --pairs`, with labels or negatives."""

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

    Columns `image,text,negatives` yield one question per row, against the row's list of negative
    texts (in CSV, a JSON list in the cell). Columns `image,text,label` yield one question per row
    of label 1, against its image's rows of label 0.

    Args:
        path: path of a UTF-8 CSV file with a header, or of a JSONL file; image names in it are
            relative to its folder.
        seed: random seed of the right text's position.

    Raises:
        InputError: the file is malformed, with the line in the message; an image does not exist,
            or lacks positive or negative texts; a text is both positive and negative.
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
    """Each row's positive pair and its list of negative texts."""
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
    """Each pair of label 1 with its image's texts of label 0; an image's rows may be scattered."""
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
