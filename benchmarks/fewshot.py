"""Measure few-shot training by number of examples, on tasks the demonstration has never seen.

python benchmarks/fewshot.py --work DIR [--tasks T,T] [--examples N,N] [--seeds N]
    [--methods M,M] [--set NAME=VALUE ...] [--clip FOLDER] [--known N] [--table FILE]

Every run is kept in DIR as one JSON file, and a repeated call makes those that are missing; other
settings need another DIR. Two tables have, for each task and number of examples, the mean over the
seeds with its standard error: of the accuracy, and of the ROC AUC of all pairs. Each seed has
examples and 150 test questions of its own, the same for all methods. Methods: "adapter"
(`dsd-trt train` from the adapter that ships), "paper" (the same with --paper), "zero-shot" and
"shipped" (nothing learned), "fine-tuning" and "prompt-learning" (the baselines of
`dsd-trt baseline`, which take the folder of a CLIP).

--known N adds N questions of shapes-comvg, which the demonstration can answer, to the examples, and
a third table has the accuracy on 150 others of them: what training costs old skill.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsd_trt.files.whole import write_whole
from dsd_trt.metrics import roc_auc
from dsd_trt.train.data.catalogue import UNSEEN_TASKS, open_dataset
from dsd_trt.train.fewshot.settings import RECIPE, FewShotSettings, continued
from dsd_trt.train.question import Question
from dsd_trt.train.run.libraries import hush_libraries
from dsd_trt.train.scoring.adapter_file import AdapterFile
from dsd_trt.train.shapes.unseen import unseen_questions

TESTED = 150  # questions per task and seed
METHODS = ("zero-shot", "shipped", "adapter", "paper", "fine-tuning", "prompt-learning")
CHOSEN_ON = ("colours", "shapes", "counting", "touching", "sentences")
"""Tasks that the defaults of training were chosen on; the others were only measured."""

KNOWN = "shapes-comvg"  # questions of the kind that the demonstration was trained on

Questions = list[Question]
Runs = dict[tuple[str, str, int], list[float]]
"""Accuracy of each seed, by method, task and number of examples."""


def main() -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", type=_words, default=UNSEEN_TASKS)
    parser.add_argument("--examples", type=_words, default=("20", "40", "100", "400"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", type=_words, default=("shipped", "adapter"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--validation", type=float, default=0.15)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--known", type=int, metavar="N")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    hush_libraries()
    keep = options.validation
    changes = {name: json.loads(value) for name, value in (it.split("=") for it in options.set)}
    recipe = json.loads(json.dumps(RECIPE))
    asked = {"recipe": recipe, "set": changes, "validation": keep}
    options.work.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Runs] = {"accuracy": {}, "auc": {}, "known": {}}
    for seed in range(options.seeds):
        for method in options.methods:
            sizes = [0] if method in ("zero-shot", "shipped") else map(int, options.examples)
            for size in sizes:
                for task in options.tasks:
                    added = "" if options.known is None else f"-known{options.known}"
                    path = options.work / f"{method}-{task}-{size}-{seed}{added}.json"
                    run = partial(
                        _run, method, task, size, seed, changes, keep, options.clip, options.known
                    )
                    found = _kept(path, asked, run)
                    for figure in runs.keys() & found.keys():
                        runs[figure].setdefault((method, task, size), []).append(found[figure])
    table = _table(runs["accuracy"], options.tasks)
    table += f"\nROC AUC of all pairs:\n\n{_table(runs['auc'], options.tasks)}"
    if known := runs["known"]:
        table += f"\nQuestions of {KNOWN}:\n\n{_table(known, options.tasks)}"
    print(table)
    if options.table:
        write_whole(options.table, table)


def _kept(
    path: Path, asked: Mapping[str, Any], run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What a run found: read from its file, or made and written there."""
    if not path.exists():
        began = time.monotonic()
        made = {"asked": asked, **run(), "seconds": round(time.monotonic() - began, 1)}
        write_whole(path, json.dumps(made, indent=2) + "\n")
        print(path.stem, made, flush=True)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if found.get("asked") != asked:
        raise SystemExit(f"{path} was not made with {asked}: give another --work")
    return found


def _run(
    method: str,
    task: str,
    size: int,
    seed: int,
    changes: Mapping[str, Any],
    validation: float,
    clip: Path | None,
    known: int | None,
) -> dict[str, Any]:
    """Learn from `size` questions of a task, and answer its test questions."""
    # Of 100 examples, 40 are those of the run with 40 examples.
    learning = list(unseen_questions(size, task, 2 * seed))
    testing = list(unseen_questions(TESTED, task, 2 * seed + 1))
    if method in ("fine-tuning", "prompt-learning"):
        if clip is None:
            raise SystemExit(f"{method} takes the folder of a CLIP: --clip FOLDER")
        return _baseline(method, learning, testing, seed, validation, clip)
    others: Questions = []
    if known is not None:
        if learning:
            learning += open_dataset(KNOWN, Path(), "train", seed, known)
        others = list(open_dataset(KNOWN, Path(), "test", seed, TESTED))
    return _adapter(method, learning, testing, others, seed, validation, changes)


def _adapter(
    method: str,
    learning: Questions,
    testing: Questions,
    others: Questions,
    seed: int,
    validation: float,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    from dsd_trt.train.diffusion.place import find_place
    from dsd_trt.train.evaluation.by_model import by_model
    from dsd_trt.train.fewshot.comparison import WorseError
    from dsd_trt.train.fewshot.training import train_adapter

    shipped = find_place("shapes").path / "adapter"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        adapter: Path | None = None if method == "zero-shot" else shipped
        if learning:
            recipe = {} if method == "paper" else RECIPE
            settings = continued(AdapterFile.read(shipped), {"seed": seed, **changes}, recipe)
            began = time.monotonic()
            try:
                report = train_adapter(
                    "shapes", learning, settings, Path(scratch), {}, validation, start=shipped
                )
                adapter = Path(scratch)
                losses = report.refit_losses or report.losses
                found["steps"], found["learned from"] = len(losses), report.learned_from
                found["loss"] = statistics.fmean(losses[-20:])
            except WorseError as error:
                found["refused"] = str(error)
            found["training seconds"] = round(time.monotonic() - began, 1)
        score = by_model("shapes", adapter)
        found |= _figures(score(testing), testing)
        if others:
            found["known"] = _figures(score(others), others)["accuracy"]
    return found


def _baseline(
    method: str,
    learning: Questions,
    testing: Questions,
    seed: int,
    validation: float,
    clip: Path,
) -> dict[str, Any]:
    from dsd_trt.train.baselines.clip import load_clip
    from dsd_trt.train.baselines.fit import LEARNING_RATES, train_baseline
    from dsd_trt.train.baselines.matcher import by_matcher

    settings = FewShotSettings(steps=600, learning_rate=LEARNING_RATES[method], seed=seed)
    matcher, history = train_baseline(load_clip(clip), method, learning, settings, validation)
    return {"steps": len(history.losses), **_figures(by_matcher(matcher)(testing), testing)}


def _figures(scores: Iterable[list[float]], questions: Questions) -> dict[str, float]:
    """Share of questions whose right candidate alone has the highest score, and AUC of all pairs.

    The former compares texts of one image, the latter pairs of different images as well.
    """
    rows = list(scores)
    right = [
        all(row[question.right] > other for i, other in enumerate(row) if i != question.right)
        for row, question in zip(rows, questions, strict=True)
    ]
    labels = [
        i == question.right
        for row, question in zip(rows, questions, strict=True)
        for i in range(len(row))
    ]
    return {
        "accuracy": statistics.fmean(right),
        "auc": roc_auc([score for row in rows for score in row], labels),
    }


def _table(runs: Runs, tasks: Sequence[str]) -> str:
    """A figure and its standard error in percent: a row per task, a column per method and size."""
    columns = sorted(
        {(method, size) for method, _, size in runs},
        key=lambda column: (METHODS.index(column[0]), column[1]),
    )
    heads = [method if size == 0 else f"{method}, {size}" for method, size in columns]
    lines = [f"| task | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    parts: dict[str, tuple[str, ...]] = {task: (task,) for task in tasks}
    parts["**mean, chosen on**"] = tuple(task for task in tasks if task in CHOSEN_ON)
    parts["**mean, measured only**"] = tuple(task for task in tasks if task not in CHOSEN_ON)
    for name, of_row in parts.items():
        if of_row:
            cells = (
                _cell([runs[method, task, size] for task in of_row]) for method, size in columns
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(of_tasks: Sequence[Sequence[float]]) -> str:
    """Mean of a figure over tasks and seeds, and its standard error, in percent.

    The error is that of a share of the test questions or, if larger, that of the differences
    between seeds, whose examples differ as well.
    """
    mean = statistics.fmean(statistics.fmean(seeds) for seeds in of_tasks)
    variance = 0.0
    for seeds in of_tasks:
        share = statistics.fmean(seeds)
        of_questions = share * (1 - share) / (TESTED * len(seeds))
        of_seeds = statistics.variance(seeds) / len(seeds) if len(seeds) > 1 else 0.0
        variance += max(of_questions, of_seeds) / len(of_tasks) ** 2
    return f"{100 * mean:.0f} ± {100 * math.sqrt(variance):.0f}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
