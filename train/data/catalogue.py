"""Every data set by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.train.data.comvg import read_comvg
from dsd_trt.train.data.refcocog import read_refcocog
from dsd_trt.train.data.table import read_table
from dsd_trt.train.data.vqa import read_released_vqa, read_vqav2
from dsd_trt.train.data.winoground import read_winoground
from dsd_trt.train.question import Question, split
from dsd_trt.train.shapes.datasets import shapes_comvg, shapes_refcocog, shapes_vqa

FEW_SHOT = 0.05
"""Share of the training sources that is learned from, as in the paper."""

SCENES = 1000
"""Questions of a shapes data set where no limit is given."""

_Read = Callable[[Path, int], Iterator[Question]]  # of a folder and a seed


@dataclass(frozen=True)
class _Parts:
    """How to read a data set.

    Attributes:
        train: what few-shot examples are taken from.
        test: what is tested on; the same where the data set is one whole.
        apart: whether the two cannot share a source.
    """

    train: _Read
    test: _Read
    apart: bool = False


_READERS = {
    "comvg": _Parts(read_comvg, read_comvg),
    "refcocog": _Parts(
        lambda root, seed: read_refcocog(root, "train", seed),
        lambda root, seed: read_refcocog(root, "val", seed),
    ),
    "vqav2": _Parts(
        lambda root, seed: read_vqav2(root, "train", seed),
        lambda root, seed: read_vqav2(root, "val", seed),
        apart=True,
    ),
    "vqav2-released": _Parts(read_released_vqa, read_released_vqa),
    "winoground": _Parts(read_winoground, read_winoground),
}
_GENERATORS = {
    "shapes-comvg": shapes_comvg,
    "shapes-refcocog": shapes_refcocog,
    "shapes-vqa": shapes_vqa,
}
NAMES = (*_READERS, *_GENERATORS)


def open_dataset(
    name: str,
    root: Path,
    part: str,
    seed: int,
    limit: int | None = None,
    fraction: float = FEW_SHOT,
) -> Iterator[Question]:
    """A data set's questions, one at a time; no source is both in "train" and in "test".

    Args:
        name: one of `NAMES`, or the path of a table that ends in .csv or .jsonl.
        root: the folder of its files; a table's path is relative to it. Shapes need none.
        part: "train", the few-shot examples, or "test", all that is tested on. Where a data set
            has splits of its own, examples are of "train" and tests of "val", the last split
            whose answers are public.
        seed: of the examples chosen and of every reader. The scenes of shapes are drawn from twice
            the seed for training, from the number after it for testing.
        limit: stop after so many questions; `SCENES` for shapes.
        fraction: share of the sources that few-shot examples are taken from, in [0, 1]; shapes,
            of which there are as many as one likes, have the limit alone.

    Raises:
        InputError: no such data set or part, or a file is missing or malformed; some only once the
            questions are read.
    """
    if part not in ("train", "test"):
        raise InputError(f"no part {part!r} of a data set; it is train or test")
    if name in _GENERATORS:
        count = SCENES if limit is None else limit
        return _GENERATORS[name](count, 2 * seed + (part == "test"))
    parts = _find(name)
    if part == "test" and parts.apart:
        return islice(parts.test(root, seed), limit)
    # Read twice rather than held: a question of VQAv2 has thousands of candidates.
    chosen = _few_shot_sources(parts.train(root, seed), fraction, seed)
    if part == "train":
        questions = (question for question in parts.train(root, seed) if question.source in chosen)
    else:
        questions = (
            question for question in parts.test(root, seed) if question.source not in chosen
        )
    return islice(questions, limit)


def _find(name: str) -> _Parts:
    if name in _READERS:
        return _READERS[name]
    if Path(name).suffix in (".csv", ".jsonl"):

        def read(root: Path, seed: int) -> Iterator[Question]:
            return read_table(root / name, seed)

        return _Parts(read, read)
    known = ", ".join(NAMES)
    raise InputError(f"no data set {name!r}; there are {known}, or a table: a .csv or .jsonl file")


def _few_shot_sources(questions: Iterator[Question], fraction: float, seed: int) -> set[str]:
    light = (replace(question, candidates=()) for question in questions)
    return {question.source for question in split(light, fraction, seed)[0]}
