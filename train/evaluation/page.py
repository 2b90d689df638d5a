"""An evaluation as a page: its figures, confusions and answers."""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsd_trt.commands.figures import estimate_cells, pairs_of_images, summary_rows
from dsd_trt.commands.provenance import run_facts
from dsd_trt.html.explorer import Choice, Column, Explorer, Value
from dsd_trt.html.page import page
from dsd_trt.html.tables import Bar, Cell, failures, section, table
from dsd_trt.html.thumbnails import ThumbnailSize, thumbnail, thumbnails
from dsd_trt.image.files import printable
from dsd_trt.image.preprocess import ImageSource
from dsd_trt.image.stored import StoredImage
from dsd_trt.metrics import Summary
from dsd_trt.train.evaluation.answers import Answer
from dsd_trt.train.evaluation.figures import Figure
from dsd_trt.train.left_out import LeftOut, name_image
from dsd_trt.train.question import Question

_CONFUSIONS = 30  # most frequent ones that are shown
_HELD = ThumbnailSize(320, 40_000)  # of an image that is in no file

_EXPLORER = Explorer(
    "Answers",
    "answers",
    (
        Column("Image", "image"),
        Column("Kind", "words"),
        Column("Right", "text"),
        Column("Chosen", "text"),
        Column("Rank of the right one", "number"),
        Column("Candidates", "number"),
        Column("Answer", "words"),
    ),
    tuple(Choice(f"{it} answers", 6, it) for it in ("wrong", "right"))
    + (Choice("questions left out", 6, "left out"),),
    least=4,
)


@dataclass(frozen=True)
class _Noted:
    """What a page shows of a question.

    Attributes:
        image: name of the right candidate's image.
        picture: that image, or a small picture of it.
        labels: what tells the candidates apart: their texts, or names of their images.
        right: index of the right candidate.
        text: the text that all candidates have; None if they have several.
    """

    image: str
    picture: ImageSource | None
    labels: tuple[str, ...]
    right: int
    text: str | None


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
        left_out: LeftOut,
        pairs: Summary | None,
        facts: Mapping[str, str],
    ) -> Iterator[str]:
        """The page in parts.

        Args:
            title: title of the page.
            answers: answers to the questions, in their order.
            figures: metrics of the answers.
            left_out: questions left out, with their failures.
            pairs: figures of a table's labelled pairs; None leaves them out.
            facts: provenance, by name.
        """
        summary = "Accuracy on test questions; a tie counts as a wrong answer."
        rows = [self._row(*it) for it in zip(self._noted, answers, strict=True)]
        images, texts = dict[tuple[str, object], int](), dict[str, int]()
        pictures: list[ImageSource | None] = []
        written = list[str]()

        def numbered() -> Iterator[tuple[Sequence[Value], Mapping[str, object]]]:
            for noted, (values, more) in zip(self._noted, rows, strict=True):
                image = images.setdefault((noted.image, noted.picture), len(images))
                if image == len(pictures):
                    pictures.append(noted.picture)
                right, chosen = (
                    None if it is None else texts.setdefault(str(it), len(texts))
                    for it in values[2:4]
                )
                yield [image, values[1], right, chosen, *values[4:]], more

        def body() -> Iterator[str]:
            yield section("Figures", figure_table(figures))
            if pairs is not None:
                yield section("Labelled pairs", _summary_table(pairs))
            yield self._confusions(answers)
            yield "<section><h2>Answers</h2>\n" + _EXPLORER.element()
            for part in _EXPLORER.rows(numbered()):
                written.append(part)
                yield part
            yield "</section>\n"
            failed = [(it.image or "", it.text or "", it.reason) for it in left_out.failures]
            yield failures(failed, len(failed))

        def rest() -> Iterator[str]:
            so_far = sum(len(it.encode()) for it in written)
            yield from _EXPLORER.rest(
                [name for name, _ in images],
                list(texts),
                lambda size: thumbnails(pictures, size),
                so_far,
            )

        yield from page(title, summary, body(), {**facts, **run_facts()}, rest())

    def _row(self, noted: _Noted, answer: Answer) -> tuple[list[Value], dict[str, object]]:
        chosen = None if answer.chosen is None else noted.labels[answer.chosen]
        said = "left out" if answer.rank is None else "right" if answer.rank == 1 else "wrong"
        more: dict[str, object] = {"Asked about": answer.source, "Candidates' texts": noted.labels}
        if noted.text is not None:
            more = {"Text": noted.text, **more, "Candidates' images": noted.labels}
            del more["Candidates' texts"]
        if answer.failures:
            more["Left out because"] = [str(it) for it in answer.failures]
        right = noted.labels[noted.right]
        return [None, answer.kind, right, chosen, answer.rank, answer.candidates, said], more

    def _confusions(self, answers: Sequence[Answer]) -> str:
        """The most frequent pairs of a right text and the one that was chosen instead."""
        found = Counter(
            (noted.labels[noted.right], noted.labels[answer.chosen])
            for noted, answer in zip(self._noted, answers, strict=True)
            if answer.rank != 1 and answer.chosen is not None and noted.text is None
        )
        if not found:
            return ""
        most = max(found.values())
        rows: list[list[Cell]] = [
            [right, chosen, Bar(str(times), times / most)]
            for (right, chosen), times in found.most_common(_CONFUSIONS)
        ]
        caption = f"Which wrong text won: {len(rows)} most frequent of {len(found)}"
        return section("Confusions", table(caption, ["Right", "Chosen", "Times"], rows, words=2))


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
    image, text = question.candidates[question.right]
    texts = {text for _, text in question.candidates}
    labels = tuple(
        text if len(texts) > 1 else printable(name_image(image, question))
        for image, text in question.candidates
    )
    shared = None if len(texts) > 1 else text
    name = printable(name_image(image, question))
    return _Noted(name, _picture(image), labels, question.right, shared)


def _picture(image: ImageSource) -> ImageSource | None:
    """An image that is in a file; else a small picture, so that memory holds no large ones."""
    if isinstance(image, (str, os.PathLike, StoredImage)):
        return image
    small = thumbnail(image, _HELD)
    return None if small is None else base64.b64decode(small)
