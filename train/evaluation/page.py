"""An evaluation as a page: its figures, confusions and answers."""

from __future__ import annotations

import base64
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsd_trt.commands.figures import estimate_cells, pairs_of_images, summary_rows
from dsd_trt.commands.provenance import run_facts
from dsd_trt.failure import Failure
from dsd_trt.html.explorer import Choice, Column, Explorer, Value
from dsd_trt.html.page import page
from dsd_trt.html.tables import Bar, Cell, failures, section, table
from dsd_trt.html.thumbnails import ThumbnailSize, thumbnail, thumbnails
from dsd_trt.image.files import printable
from dsd_trt.image.preprocess import ImageSource, image_identity
from dsd_trt.image.stored import StoredImage
from dsd_trt.metrics import Summary
from dsd_trt.train.evaluation.answers import Answer
from dsd_trt.train.evaluation.confusions import LISTED, confusions
from dsd_trt.train.evaluation.figures import Figure
from dsd_trt.train.left_out import name_image
from dsd_trt.train.question import Question

_HELD = ThumbnailSize(320, 40_000)  # of an image that is in no file


@dataclass(frozen=True)
class _Candidate:
    """What a page shows of a candidate.

    Attributes:
        image: name by which the image is shown.
        picture: the image, or a small picture of it; None if it cannot be read.
        text: text that is scored with the image.
    """

    image: str
    picture: ImageSource | None
    text: str


@dataclass(frozen=True)
class _Noted:
    """What a page shows of a question.

    Attributes:
        candidates: its candidates in their order.
        right: index of the right one.
        by_text: whether its candidates have several texts, not several images.
    """

    candidates: tuple[_Candidate, ...]
    right: int
    by_text: bool


class Asked:
    """Questions, of which a page's part is noted as they are asked."""

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def through(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions, each noted."""
        for question in questions:
            self._noted.append(_note(question))
            yield question

    def page(
        self,
        title: str,
        answers: Sequence[Answer],
        figures: Sequence[Figure],
        failed: Sequence[Failure],
        pairs: Summary | None,
        facts: Mapping[str, str],
    ) -> Iterator[str]:
        """The page in parts.

        Args:
            title: title of the page.
            answers: answers to the questions, in their order.
            figures: metrics of the answers.
            failed: what could not be scored or read.
            pairs: figures of a table's labelled pairs; None leaves them out.
            facts: provenance for the foot, by name.
        """
        summary = "Accuracy on test questions; a tie counts as a wrong answer."
        shown = _Answers(list(zip(self._noted, answers, strict=True)))

        def body() -> Iterator[str]:
            yield section("Figures", figure_table(figures))
            if pairs is not None:
                yield section("Labelled pairs", _summary_table(pairs))
            yield shown.confusions()
            yield from shown.body()
            rows = [(it.image or "", it.text or "", it.reason) for it in failed]
            yield failures(rows, len(rows))

        yield from page(title, summary, body(), lambda: {**facts, **run_facts()}, shown.tail())


class _Answers:
    """Answers as a table to explore.

    Args:
        answered: questions with their answers.
    """

    def __init__(self, answered: Sequence[tuple[_Noted, Answer]]) -> None:
        self._answered = answered
        self._images: dict[tuple[str, ImageSource | None], int] = {}
        self._texts: dict[str, int] = {}
        self._written = 0
        self._by_text = any(noted.by_text for noted, _ in answered)
        self._by_image = any(not noted.by_text for noted, _ in answered)
        columns = [Column("Image", "image"), Column("Text", "text"), Column("Kind", "words")]
        columns += [Column("Chosen text", "text")] * self._by_text
        columns += [Column("Chosen image", "image")] * self._by_image
        columns += [Column("Rank of the right one", "number"), Column("Candidates", "number")]
        said = len(columns)
        self._explorer = Explorer(
            "Answers",
            "answers",
            (*columns, Column("Answer", "words")),
            (
                Choice("wrong answers", said, "wrong"),
                Choice("right answers", said, "right"),
                Choice("questions left out", said, "left out"),
            ),
            least=said - 2,
        )

    def body(self) -> Iterator[str]:
        """The place of the table, and its rows."""
        yield "<section><h2>Answers</h2>\n" + self._explorer.element()
        for part in self._explorer.rows(itertools.starmap(self._row, self._answered)):
            self._written += len(part.encode())
            yield part
        yield "</section>\n"

    def tail(self) -> Iterator[str]:
        """Names, script and thumbnails."""
        names = [name for name, _ in self._images]
        made = functools.partial(thumbnails, [picture for _, picture in self._images])
        yield from self._explorer.tail(names, list(self._texts), made, self._written)

    def confusions(self) -> str:
        """The most frequent pairs of a right text and the one that was chosen instead."""
        asked = (([it.text for it in noted.candidates], noted.right) for noted, _ in self._answered)
        found = confusions(asked, [answer for _, answer in self._answered])
        if not found:
            return ""
        most = found[0].times
        rows: list[list[Cell]] = [
            [it.right, it.chosen, Bar(str(it.times), it.times / most)] for it in found[:LISTED]
        ]
        caption = f"Which wrong text won: {len(rows)} of {len(found)}, the most frequent first"
        return section("Confusions", table(caption, ["Right", "Chosen", "Times"], rows, words=2))

    def _row(self, noted: _Noted, answer: Answer) -> tuple[list[Value], dict[str, object]]:
        right = noted.candidates[noted.right]
        chosen = None if answer.chosen is None else noted.candidates[answer.chosen]
        values: list[Value] = [self._image(right), self._text(right), answer.kind]
        if self._by_text:
            values.append(self._text(chosen) if chosen and noted.by_text else None)
        if self._by_image:
            values.append(self._image(chosen) if chosen and not noted.by_text else None)
        said = "left out" if answer.rank is None else "right" if answer.rank == 1 else "wrong"
        values += [answer.rank, answer.candidates, said]
        labels = [it.text if noted.by_text else it.image for it in noted.candidates]
        more: dict[str, object] = {"Asked about": answer.source, "All candidates": labels}
        if answer.failures:
            more["Left out because"] = [str(it) for it in answer.failures]
        return values, more

    def _image(self, candidate: _Candidate) -> int:
        key = (candidate.image, candidate.picture)
        return self._images.setdefault(key, len(self._images))

    def _text(self, candidate: _Candidate) -> int:
        return self._texts.setdefault(candidate.text, len(self._texts))


def figure_table(figures: Sequence[Figure]) -> str:
    """Metrics of questions as a table, with bars, intervals and marks at chance."""
    five = any(it.top5 is not None for it in figures)
    head = ["Asked", "Questions", "Chance, %", "Top-1, %", "95 % interval"]
    rows: list[list[Cell]] = []
    for it in figures:
        interval, mark = (it.low / 100, it.high / 100), it.chance / 100
        row: list[Cell] = [it.name, str(it.questions), f"{it.chance:.1f}"]
        row += [Bar(f"{it.top1:.1f}", it.top1 / 100, interval, mark)]
        row += [f"{it.low:.1f} to {it.high:.1f}"]
        row += ["-" if it.top5 is None else f"{it.top5:.1f}"] if five else []
        rows.append(row)
    caption = "Accuracy. The line is the interval, the dashed mark is chance."
    return table(caption, [*head, *(["Top-5, %"] if five else [])], rows)


def _summary_table(summary: Summary) -> str:
    rows: list[list[Cell]] = []
    for name, estimate in summary_rows(summary):
        value, interval = estimate_cells(estimate)
        known = not any(map(math.isnan, (estimate.value, estimate.low, estimate.high)))
        ends = (estimate.low, estimate.high)
        rows.append([name, Bar(value, estimate.value, ends) if known else value, interval])
    caption = f"{pairs_of_images(summary)}, {summary.positives} of them positive"
    return table(caption, ["Figure", "Value", "95 % interval"], rows)


def _note(question: Question) -> _Noted:
    by_text = len({text for _, text in question.candidates}) > 1
    pictures: dict[object, tuple[str, ImageSource | None]] = {}
    candidates = []
    for image, text in question.candidates:
        identity = image_identity(image)
        if identity not in pictures:
            name = printable(name_image(image, question))
            in_file = isinstance(image, (str, os.PathLike, StoredImage))
            name = name if in_file or by_text else f"{name}, candidate {len(pictures) + 1}"
            pictures[identity] = name, _picture(image)
        candidates.append(_Candidate(*pictures[identity], text))
    return _Noted(tuple(candidates), question.right, by_text)


def _picture(image: ImageSource) -> ImageSource | None:
    """An image that is in a file; else a small picture, so that memory holds no large ones."""
    if isinstance(image, (str, os.PathLike, StoredImage)):
        return image
    small = thumbnail(image, _HELD)
    return None if small is None else base64.b64decode(small)
