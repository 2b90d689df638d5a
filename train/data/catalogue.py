"""All data sets by name, with their train and test parts; readers are imported when used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_trt.errors import InputError, counted
from dsd_trt.tables.columns import ColumnNames

if TYPE_CHECKING:
    from dsd_trt.results import Failure
    from dsd_trt.train.data.table import TableQuestions
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

# From a folder and a random seed; a file that is missing is named when it is called, not when the
# questions are read.
_Read = Callable[[Path, int], "Iterator[Question]"]


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
    "shapes-edits": _lazy("shapes.datasets", "shapes_edits"),
    **{f"unseen-{task}": _lazy("shapes.unseen", "unseen_questions", task) for task in UNSEEN_TASKS},
}
NAMES = (*_READERS, *_GENERATORS)


class Part(Iterator["Question"]):
    """The questions of one part of a data set, read lazily once, and what it left out.

    Attributes:
        name: name of the data set.
        fraction: share of the sources that are few-shot examples.
        table: what a table had besides questions; None for a named data set.
        others: questions of the other part that were read so far.
        alone: questions left out because every other text may describe their image.
        total: number of questions; the limit, or None, if it is known only when all are read.
        beyond: questions of a table that are left out because of a limit.
        images: number of images in the questions that were read so far.
    """

    def __init__(
        self, name: str, questions: Iterable[Question], fraction: float = FEW_SHOT
    ) -> None:
        self.name: str = name
        self.fraction: float = fraction
        self.table: TableQuestions | None = None
        self.total: int | None = None
        self.others = self.alone = self.beyond = 0
        self.images: int = 0
        self._seen: set[object] = set()
        self._questions = iter(questions)

    def __next__(self) -> Question:
        from dsd_trt.image.preprocess import image_identity  # imports Pillow

        question = next(self._questions)
        images = {image_identity(image) for image, _ in question.candidates}
        stored = {it for it in images if not isinstance(it, int)}  # files, or in a table
        self.images += len(stored - self._seen) + len(images - stored)
        self._seen |= stored
        return question

    def require_some(self, what: str) -> None:
        """Refuse a part without questions; the first one is read.

        Args:
            what: name of the part in the message, such as "test questions".

        Raises:
            InputError: the part has no question.
        """
        first = next(self._questions, None)
        if first is None:
            rest = (
                f": {counted(self.others, 'question')}, all in the other part "
                f"(fraction {self.fraction:g})"
            )
            raise InputError(f"{self.name} has no {what}{rest if self.others else ''}")
        self._questions = chain([first], self._questions)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Rows of a table that cannot be used."""
        return () if self.table is None else self.table.failures

    def lines(self) -> list[str]:
        """What was read, and what was left out and why, for the user."""
        lines, left_out = [], []
        if self.table is not None:
            images = {image for it in self.table.questions for image, _ in it.candidates}
            lines.append(
                f"{counted(self.table.rows, 'row')}, "
                f"{counted(len(self.table.questions), 'question')} about "
                f"{counted(len(images), 'image')}"
            )
            if drawn := sum(it.drawn for it in self.table.questions):
                lines[0] += f"; {counted(drawn, 'question')} with other rows' texts as negatives"
            if self.table.repeated:
                lines[0] += f"; {_that_repeat(self.table.repeated)}"
            if self.table.unread:
                from dsd_trt.tables.labelled import renaming

                lines.append(f"the negatives are drawn{renaming(self.table.unread)}")
            left_out += [f"{counted(n, 'row')} {why}" for why, n in self.table.unused.items()]
        if self.failures:
            left_out.append(f"{counted(len(self.failures), 'row')} that cannot be used")
        if self.alone:
            left_out.append(f"{counted(self.alone, 'row')} with no other row's text to reject")
        if self.others:
            left_out.append(
                f"{counted(self.others, 'question')} in the other part (fraction {self.fraction:g})"
            )
        if self.beyond:
            left_out.append(f"{counted(self.beyond, 'question')} beyond --limit")
        if left_out:
            lines.append(f"left out: {', '.join(left_out)}")
        return [f"{self.name}: {line}" for line in lines]


def _that_repeat(rows: int) -> str:
    return f"{counted(rows, 'row')} {'repeats' if rows == 1 else 'repeat'} another"


def table_path(name: str, root: Path) -> Path:
    """Path of a table; "-" is standard input, whose images are relative to the current folder.

    Args:
        name: path of a table as the user gave it.
        root: folder that the path is relative to.
    """
    return Path(name) if name == "-" else root / name


def open_dataset(
    name: str,
    root: Path,
    part: str,
    seed: int,
    limit: int | None = None,
    fraction: float | None = None,
    columns: ColumnNames | None = None,
    images: Path | None = None,
) -> Part:
    """The questions of one part of a data set.

    The parts "train" and "test" share no source, for the same fraction.

    Args:
        name: name of the data set, one of `NAMES`; the path of a CSV, JSONL or Parquet table; or
            "-" for one on standard input.
        root: folder of the data set's files, to which a table's path is relative; unused for
            shapes.
        part: part of the data set: "train" for few-shot examples, "test" for test questions. In
            a data set with splits, "test" is its "val" split, the last with public answers.
        seed: random seed of the few-shot sources and of the reader. Shapes use 2 * seed for
            "train" and 2 * seed + 1 for "test".
        limit: maximum number of questions; None means no limit, and `SCENES` for shapes.
        fraction: share of the sources used as few-shot examples, in [0, 1]; unused for shapes.
            None is `FEW_SHOT`; of a table it is all for "train", and nothing for "test".
        columns: names of a table's columns; None is the roles' own names.
        images: folder that a table's image paths are relative to; None is the table's own.

    Raises:
        InputError: the data set or part does not exist, or a file is missing or malformed. Some
            files are checked only when the questions are iterated.
    """
    if part not in ("train", "test"):
        raise InputError(f"no part {part!r} of a data set; it is train or test")
    if name in NAMES and columns is not None and columns != ColumnNames():
        raise InputError(f"{name} is no table: omit --image-column and the others")
    if name in NAMES and images is not None:
        raise InputError(f"{name} is no table: omit --images. --root says where its files are")
    if name in _GENERATORS:
        count = SCENES if limit is None else limit
        drawn = _GENERATORS[name](count, 2 * seed + (part == "test"))
        found = Part(name, drawn, FEW_SHOT if fraction is None else fraction)
        found.total = count
        return found
    if name not in _READERS:
        return _open_table(name, root, part, seed, limit, fraction, columns, images)
    fraction = FEW_SHOT if fraction is None else fraction
    parts = _READERS[name]
    test = parts.test or parts.train
    if part == "test" and parts.apart:
        found = Part(name, islice(test(root, seed), limit), fraction)
        found.total = limit
        return found
    every = (parts.train if part == "train" else test)(root, seed)
    # Read twice instead of kept in memory: a question of VQAv2 has thousands of candidates.
    chosen = _few_shot_sources(parts.train(root, seed), fraction, seed)
    found = Part(name, (), fraction)
    found.total = limit

    def mine() -> Iterator[Question]:
        for question in every:
            if (question.source in chosen) == (part == "train"):
                yield question
            else:
                found.others += 1

    found._questions = islice(mine(), limit)
    return found


def require_files(name: str, root: Path) -> None:
    """Refuse a named data set without one of the files that either part is read from.

    Args:
        name: name of the data set, one of `NAMES`.
        root: folder of the data set's files; unused for shapes.

    Raises:
        InputError: a file is missing; images are not looked for.
    """
    if name in _READERS:
        parts = _READERS[name]
        for read in (parts.train, parts.test or parts.train):
            read(root, 0)


def require_columns(name: str, root: Path, columns: ColumnNames) -> None:
    """Refuse names of columns that a table lacks; other data sets and mistakes are left alone.

    Args:
        name: name of the data set, or path of a table, as for `open_dataset`.
        root: folder that a table's path is relative to.
        columns: names of the table's columns.

    Raises:
        InputError: a column is missing.
    """
    from dsd_trt.tables.table import Table

    path = table_path(name, root)
    if name in NAMES or (name != "-" and not path.is_file()):
        return
    table = Table.open(path)
    columns.required(table, "image")
    columns.required(table, "text")
    for role in ("label", "id"):
        columns.optional(table, role)


def _open_table(
    name: str,
    root: Path,
    part: str,
    seed: int,
    limit: int | None,
    fraction: float | None,
    columns: ColumnNames | None,
    images: Path | None,
) -> Part:
    """Questions of a table; negatives are drawn from the same part alone."""
    path = table_path(name, root)
    if name != "-" and not path.exists() and not path.suffix:
        known = ", ".join(NAMES)
        raise InputError(
            f"no data set {name!r}; there are {known}, or a table: a CSV, JSONL or Parquet file"
        )
    from dsd_trt.tables.content import STANDARD_INPUT
    from dsd_trt.train.data.negatives import draw_negatives
    from dsd_trt.train.data.table import read_table
    from dsd_trt.train.question import split

    table = read_table(path, seed, columns, images)
    if fraction is None:
        fraction = 1.0 if part == "train" else 0.0
    few, rest = split(table.questions, fraction, seed)
    mine, others = (few, rest) if part == "train" else (rest, few)
    drawn = draw_negatives(mine, seed)
    found = Part(STANDARD_INPUT if name == "-" else name, islice(drawn, limit), fraction)
    found.table, found.others, found.alone = table, len(others), len(mine) - len(drawn)
    found.total = len(drawn) if limit is None else min(limit, len(drawn))
    found.beyond = len(drawn) - found.total
    return found


def _few_shot_sources(questions: Iterator[Question], fraction: float, seed: int) -> set[str]:
    from dsd_trt.train.question import split

    light = (replace(question, candidates=()) for question in questions)
    return {question.source for question in split(light, fraction, seed)[0]}
