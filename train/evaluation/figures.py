"""From answers to metrics: accuracy per kind of question, with bootstrap confidence intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dsd_trt.commands.figures import finite, summary_text
from dsd_trt.files.schema import to_plain
from dsd_trt.files.whole import whole, write_whole
from dsd_trt.metrics import Summary, bootstrap
from dsd_trt.train.evaluation.answers import Answer
from dsd_trt.train.evaluation.confusions import LISTED, Confusion, confusion_table
from dsd_trt.train.left_out import LeftOut

_FIVE = 5


@dataclass(frozen=True)
class Figure:
    """One row of a table of metrics.

    Attributes:
        name: kind of question, group of kinds, or item score.
        questions: number of questions, or of items for an item score.
        chance: expected top-1 accuracy of random guessing, in percent.
        top1: top-1 accuracy, in percent.
        low: lower bound of the 95 % confidence interval of `top1`, in percent.
        high: upper bound of the 95 % confidence interval of `top1`, in percent.
        top5: top-5 accuracy, in percent; None if a question has five candidates or fewer.
    """

    name: str
    questions: int
    chance: float
    top1: float
    low: float
    high: float
    top5: float | None


def figures(answers: Sequence[Answer], seed: int = 0) -> list[Figure]:
    """Metrics per kind, per group of kinds and overall; by items for kinds "text" and "image".

    `Question` describes the meaning of kinds.

    Args:
        answers: answers to all questions. Questions left out are ignored, and with item scores
            so is the whole item.
        seed: random seed of the bootstrap, which resamples sources because questions of one
            source are not independent.
    """
    answered = [answer for answer in answers if answer.rank is not None]
    if sorted({answer.kind for answer in answers}) == ["image", "text"]:
        broken = {answer.source for answer in answers if answer.rank is None}
        whole = [answer for answer in answered if answer.source not in broken]
        return _item_scores(whole, seed) if whole else []
    answers, kinds = answered, list(dict.fromkeys(answer.kind for answer in answered))
    groups: dict[str, Callable[[str], bool]] = {}
    for kind in kinds:
        head = kind.partition(": ")[0]
        if head != kind and head not in groups:
            groups[head] = lambda k, head=head: k.partition(": ")[0] == head  # type: ignore[misc]
        groups[kind] = lambda k, kind=kind: k == kind  # type: ignore[misc]
    if len(kinds) > 1:
        groups["all"] = lambda k: True
    return [
        _figure(name, [answer for answer in answers if belongs(answer.kind)], seed)
        for name, belongs in groups.items()
    ]


def _figure(name: str, answers: Sequence[Answer], seed: int) -> Figure:
    low, high = _interval(((a.source, a.rank == 1) for a in answers), seed)
    many = min(answer.candidates for answer in answers) > _FIVE
    return Figure(
        name=name,
        questions=len(answers),
        chance=100 * float(np.mean([1 / answer.candidates for answer in answers])),
        top1=100 * float(np.mean([answer.rank == 1 for answer in answers])),
        low=low,
        high=high,
        top5=100 * float(np.mean([_rank(answer) <= _FIVE for answer in answers])) if many else None,
    )


def _rank(answer: Answer) -> int:
    assert answer.rank is not None  # answers without a rank were filtered out before
    return answer.rank


def _item_scores(answers: Sequence[Answer], seed: int) -> list[Figure]:
    rows = []
    for name, kinds in (
        ("text score", ("text",)),
        ("image score", ("image",)),
        ("group score", ("text", "image")),
    ):
        items: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            if answer.kind in kinds:
                items[answer.source].append(answer)
        right = {source: all(a.rank == 1 for a in item) for source, item in items.items()}
        guess = [float(np.prod([1 / a.candidates for a in item])) for item in items.values()]
        low, high = _interval(right.items(), seed)
        rows.append(
            Figure(
                name=name,
                questions=len(items),
                chance=100 * float(np.mean(guess)),
                top1=100 * float(np.mean(list(right.values()))),
                low=low,
                high=high,
                top5=None,
            )
        )
    return rows


def _interval(hits: Iterable[tuple[str, bool]], seed: int) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the accuracy over resampled sources, in percent."""
    sources, right = zip(*hits, strict=True)
    hit = np.array(right, np.float64)
    ((low, high),) = bootstrap(lambda drawn: [drawn @ hit / drawn.sum()], sources, seed)
    return 100 * low, 100 * high


def count_left_out(answers: Iterable[Answer]) -> LeftOut:
    """Questions without an answer, with their failures."""
    left_out = LeftOut()
    for answer in answers:
        if answer.rank is None:
            left_out.merge(1, answer.failures)
    return left_out


def as_text(
    rows: Sequence[Figure],
    left_out: LeftOut,
    engine: str = "",
    pairs: Summary | None = None,
    confusions: Sequence[Confusion] | None = None,
) -> str:
    """The metrics as Markdown tables, with the number of questions left out and the engine.

    Args:
        rows: metrics of questions, one row each.
        left_out: questions left out, with their failures.
        engine: engine that computed the scores; "" leaves it out.
        pairs: figures of a table's labelled pairs, the second table; None leaves it out.
        confusions: wrong texts that were chosen, the most frequent first; the last
            table. None or none leave it out.
    """
    five = any(row.top5 is not None for row in rows)
    head = ["asked", "questions", "chance", "top-1", "95 % interval", *(["top-5"] if five else [])]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    for row in rows:
        cells = [
            row.name,
            str(row.questions),
            f"{row.chance:.1f}",
            f"{row.top1:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
        ]
        cells += ["-" if row.top5 is None else f"{row.top5:.1f}"] if five else []
        lines.append(" | ".join(cells))
    table = "".join(f"| {line} |\n" for line in lines)
    notes = [left_out.sentence()] if left_out.questions else []
    notes += [f"Engine: {engine}."] if engine else []
    parts = [table] if pairs is None else [table, summary_text(pairs)]
    parts += [confusion_table(confusions)] if confusions else []
    return "\n".join([*parts, *(f"{note}\n" for note in notes)])


def to_json(
    rows: Sequence[Figure],
    about: Mapping[str, Any],
    left_out: LeftOut,
    pairs: Summary | None = None,
    confusions: Sequence[Confusion] | None = None,
) -> str:
    """The metrics as JSON, with what was measured and which questions were left out.

    Args:
        rows: metrics of questions, one row each.
        about: description of what was measured, as JSON takes it.
        left_out: questions left out, with their failures.
        pairs: figures of a table's labelled pairs, the field `pairs`; None leaves it out.
        confusions: wrong texts that were chosen, the most frequent first; as many as `LISTED` of
            them are the field `confusions`; None leaves it out.
    """
    plain = {**about, "figures": [asdict(row) for row in rows], **left_out.to_plain()}
    if pairs is not None:
        plain["pairs"] = finite(to_plain(pairs))
    if confusions is not None:
        plain["confusions"] = [asdict(it) for it in confusions[:LISTED]]
    return json.dumps(plain, indent=2) + "\n"


def write(
    folder: Path,
    rows: Sequence[Figure],
    about: Mapping[str, Any],
    title: str,
    left_out: LeftOut,
    pairs: Summary | None = None,
    confusions: Sequence[Confusion] | None = None,
) -> None:
    """Write `table.md`, `figures.json` and, where matplotlib is installed, `figures.png`.

    Args:
        folder: output folder; created if missing.
        rows: metrics, one row each.
        about: description of what was measured, as JSON takes it.
        title: title of the plot.
        left_out: questions left out, with their failures.
        pairs: figures of a table's labelled pairs; None for other data.
        confusions: wrong texts that were chosen, the most frequent first; None
            leaves them out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = as_text(rows, left_out, about.get("engine", ""), pairs, confusions)
    write_whole(folder / "table.md", text)
    write_whole(folder / "figures.json", to_json(rows, about, left_out, pairs, confusions))
    if find_spec("matplotlib"):
        plot(rows, folder / "figures.png", title)


def plot(rows: Sequence[Figure], path: Path, title: str) -> None:
    """Plot one bar per row with its confidence interval, and a mark at chance."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.32 * len(rows)))
    places = range(len(rows))[::-1]
    values = [row.top1 for row in rows]
    errors = [[row.top1 - row.low for row in rows], [row.high - row.top1 for row in rows]]
    axis.barh(places, values, xerr=errors, color="#4878a8", height=0.62)
    axis.plot([row.chance for row in rows], places, "k|", markersize=12, label="chance")
    axis.set_yticks(places, [row.name for row in rows])
    axis.set(xlim=(0, 100), xlabel="top-1 accuracy, %", title=title)
    axis.legend(loc="lower right")
    figure.tight_layout()
    with whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)
