"""Winoground: two images and two captions of the same words, to be matched both ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.rows import LineError, jsonl_rows
from dsd_trt.train.data.files import find_file, read_text
from dsd_trt.train.question import Question, shuffled

_ORIGIN = "the Winoground data set of facebook on the Hugging Face hub"
_FIELDS = ("image_0", "image_1", "caption_0", "caption_1")


def read_winoground(root: Path, seed: int) -> Iterator[Question]:
    """Four questions per item, with the item's id as their source.

    Two are of kind "text" (given an image, the right caption), then two of kind "image" (given a
    caption, the right image). The text score counts items with both "text" questions right, the
    image score those with both "image" questions right, the group score those with all four.

    Args:
        root: folder of `examples.jsonl` and of the images, which are in its subfolder `images` or
            in itself; an image name without an extension means a PNG file.
        seed: random seed of the right candidates' positions.

    Raises:
        InputError: a file is missing or malformed; the message names the line. Without
            `examples.jsonl` it is raised already when called.
    """
    return _questions(find_file("examples.jsonl", [root], _ORIGIN), root, seed)


def _questions(path: Path, root: Path, seed: int) -> Iterator[Question]:
    try:
        for number, (line, row) in enumerate(jsonl_rows(read_text(path))):
            fields = [row.get(field) for field in _FIELDS]
            texts = [field.strip() for field in fields if isinstance(field, str)]
            if len(texts) < len(_FIELDS) or not all(texts) or "id" not in row:
                raise LineError(line, f"it must have id,{','.join(_FIELDS)}")
            names, captions = texts[:2], texts[2:]
            images = [
                find_file(
                    name if Path(name).suffix else f"{name}.png", [root / "images", root], _ORIGIN
                )
                for name in names
            ]
            for place, (kind, i) in enumerate(itertools.product(("text", "image"), (0, 1))):
                right = images[i], captions[i]
                wrong = (right[0], captions[1 - i]) if kind == "text" else (images[1 - i], right[1])
                yield shuffled(kind, right, [wrong], str(row["id"]), [seed, number, place])
    except LineError as error:
        raise InputError(f"{path}, line {error.line}: {error}") from None
