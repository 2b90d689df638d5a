"""All data sets by name, with their train and test parts; readers are imported when used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_trt.errors import InputError

if TYPE_CHECKING:
    from dsd_trt.train.question import Question

FEW_SHOT = 0.05
"""Share of the sources used for few-shot training, as in the paper."""

SCENES = 1000
"""Default number of questions of a shapes data set, which has no end of its own."""

UNSEEN_TASKS = (
    "colours",
    "shapes",
    "counting",
    "touching",
    "sentences",
    "synonyms",
    "fillings",
    "larger",
    "style",
    "corners",
)
"""Tasks the demonstration has never seen, data sets "unseen-TASK"; see `shapes.unseen`."""

_Read = Callable[[Path, int], "Iterator[Question]"]  # from a folder and a random seed


@dataclass(frozen=True)
class _Parts:
    """Readers of a data set's parts.

    Attributes:
        train: reader of the questions that few-shot examples are taken from.
        test: reader of the test questions; None is `train`, for a data set without splits.
        apart: whether the two splits are known to share no source.
    """

    train: _Read
    test: _Read | None = None
    apart: bool = False


def _lazy(module: str, function: str, *split: str) -> Callable[[Any, int], Iterator[Question]]:
    """A reader whose module is imported when it is called: help needs the names alone.

    Args:
        module: module of `dsd_trt.train` that defines the reader.
        function: name of the reader in that module.
        split: name of the split to read, for readers that take one.
    """

    def read(source: Any, seed: int) -> Iterator[Question]:
        reader = getattr(import_module(f"dsd_trt.train.{module}"), function)
        questions: Iterator[Question] = reader(source, *split, seed)
        return questions

    return read


_READERS = {
    "comvg": _Parts(_lazy("data.comvg", "read_comvg")),
    "refcocog": _Parts(
        _lazy("data.refcocog", "read_refcocog", "train"),
        _lazy("data.refcocog", "read_refcocog", "val"),
    ),
    "vqav2": _Parts(
        _lazy("data.vqa", "read_vqav2", "train"),
        _lazy("data.vqa", "read_vqav2", "val"),
        apart=True,
    ),
    "vqav2-released": _Parts(_lazy("data.vqa", "read_released_vqa")),
    "winoground": _Parts(_lazy("data.winoground", "read_winoground")),
}
_GENERATORS: Mapping[str, Callable[[int, int], Iterator[Question]]] = {
    "shapes-comvg": _lazy("shapes.datasets", "shapes_comvg"),
    "shapes-refcocog": _lazy("shapes.datasets", "shapes_refcocog"),
    "shapes-vqa": _lazy("shapes.datasets", "shapes_vqa"),
    **{f"unseen-{task}": _lazy("shapes.unseen", "unseen_questions", task) for task in UNSEEN_TASKS},
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
    """The questions of one part of a data set, read lazily.

    The parts "train" and "test" share no source.

    Args:
        name: name of the data set, one of `NAMES`, or the path of a .csv or .jsonl table.
        root: folder of the data set's files, to which a table's path is relative; unused for
            shapes.
        part: part of the data set: "train" for few-shot examples, "test" for test questions. In
            a data set with splits, "test" is its "val" split, the last with public answers.
        seed: random seed of the few-shot sources and of the reader. Shapes use 2 * seed for
            "train" and 2 * seed + 1 for "test".
        limit: maximum number of questions; None means no limit, and `SCENES` for shapes.
        fraction: share of the sources used as few-shot examples, in [0, 1]; unused for shapes.

    Raises:
        InputError: the data set or part does not exist, or a file is missing or malformed. Some
            files are checked only when the questions are iterated.
    """
    if part not in ("train", "test"):
        raise InputError(f"no part {part!r} of a data set; it is train or test")
    if name in _GENERATORS:
        count = SCENES if limit is None else limit
        return _GENERATORS[name](count, 2 * seed + (part == "test"))
    parts = _find(name)
    test = parts.test or parts.train
    if part == "test" and parts.apart:
        return islice(test(root, seed), limit)
    # Read twice instead of kept in memory: a question of VQAv2 has thousands of candidates.
    chosen = _few_shot_sources(parts.train(root, seed), fraction, seed)
    if part == "train":
        questions = (question for question in parts.train(root, seed) if question.source in chosen)
    else:
        questions = (question for question in test(root, seed) if question.source not in chosen)
    return islice(questions, limit)


def _find(name: str) -> _Parts:
    if name in _READERS:
        return _READERS[name]
    if Path(name).suffix in (".csv", ".jsonl"):
        from dsd_trt.train.data.table import read_table

        def read(root: Path, seed: int) -> Iterator[Question]:
            return read_table(root / name, seed)

        return _Parts(read)
    known = ", ".join(NAMES)
    raise InputError(f"no data set {name!r}; there are {known}, or a table: a .csv or .jsonl file")


def _few_shot_sources(questions: Iterator[Question], fraction: float, seed: int) -> set[str]:
    from dsd_trt.train.question import split

    light = (replace(question, candidates=()) for question in questions)
    return {question.source for question in split(light, fraction, seed)[0]}
