"""Reproduction of the paper: every method on every data set, then the ablations."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsd_trt.bundle.folder import file_entry
from dsd_trt.cores import usable_cores
from dsd_trt.errors import InputError, counted
from dsd_trt.files.schema import from_plain, read_json
from dsd_trt.files.whole import write_whole
from dsd_trt.results import Failure
from dsd_trt.train.baselines.clip import load_clip
from dsd_trt.train.baselines.fit import LEARNING_RATES, build_matcher, train_baseline
from dsd_trt.train.baselines.matcher import by_matcher
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.evaluation.ablation import LEVELS, ablate, collect
from dsd_trt.train.evaluation.ablation import as_text as ablation_text
from dsd_trt.train.evaluation.ablation import plot as plot_ablations
from dsd_trt.train.evaluation.answers import ask
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.evaluation.figures import Figure, count_left_out, figures, write
from dsd_trt.train.evaluation.study import ABLATION, LIBRARIES, Study
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question, Score
from dsd_trt.train.run.device import best_device
from dsd_trt.train.run_key import claim, model_identity, questions_hash
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS

_ABLATED = 300  # most questions of the first data set that ablations are measured on


@dataclass(frozen=True)
class Reproduction:
    """The result of a reproduction.

    Attributes:
        report: report with tables and ablations, in Markdown.
        left_out: questions that any method left out, with their failures.
    """

    report: str
    left_out: LeftOut


Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Progress callback `(stage, done, total, figures)`; `total` is None if it is not known, and
`figures` are metrics by name."""


def reproduce(study: Study, out: Path, progress: Progress) -> Reproduction:
    """Train and measure every method, or resume an interrupted call.

    Args:
        study: methods, data sets and sizes.
        out: output folder, with one subfolder per data set and method.
        progress: callback `(stage, done, total, figures)`.

    Raises:
        InputError: no question of a data set can be used, or `out` holds another reproduction.
    """
    began = time.monotonic()
    claim(out, _key(study, progress), study.kept)
    tables: dict[str, dict[str, list[Figure]]] = {}
    kept, left_out = 0, LeftOut()
    for data in study.data:
        most = 0  # maximum, not sum: all methods leave out the same questions
        for name, make in _methods(study, data, out, progress).items():
            folder = out / data / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            done = _measured(folder)
            kept += done is not None
            if done is None:
                done = _measure(study, data, make, folder, name, progress)
            tables.setdefault(name, {})[data] = done.rows
            most = max(most, done.left_out.questions)
            left_out.merge(0, done.left_out.failures)
        left_out.merge(most, ())
    adapter = out / study.data[0] / "DSD-few-shot" / "adapter"
    ablations = _ablate(study, adapter, out / ABLATION, progress)
    minutes = (time.monotonic() - began) / 60
    return Reproduction(_report(study, tables, ablations, minutes, kept, left_out), left_out)


def _key(study: Study, progress: Progress) -> dict[str, Any]:
    """Everything the results depend on: results of an earlier call are reused unchecked."""
    progress("reading the model", 0, None, {})
    checkpoint = read_checkpoint(study.model)
    return {
        "model": model_identity(checkpoint),
        "clip": study.clip
        and {
            path.relative_to(study.clip).as_posix(): file_entry(path).sha256
            for path in sorted(study.clip.rglob("*"))
            if path.is_file()
        },
        **_contents(study, progress),
        **study.key(),
    }


def _contents(study: Study, progress: Progress) -> dict[str, str]:
    """Hash of each data set's questions and images; none for shapes, which the seed determines."""
    if study.root is None:
        return {}

    def read(data: str, part: str) -> Iterator[Question]:
        for number, question in enumerate(study.open(data, part), 1):
            yield question
            progress(f"reading {data}", number, None, {})

    return {
        f"questions of {data} to {part} on": questions_hash(read(data, part))
        for data in study.data
        for part in ("train", "test")
    }


@dataclass(frozen=True)
class _Measured:
    """Metrics of a method on a data set, and questions left out in training or testing."""

    rows: list[Figure]
    left_out: LeftOut


# Makes a scorer in a folder; questions that its training leaves out are added to the argument.
_Make = Callable[[Path, LeftOut], Score]


def _methods(study: Study, data: str, out: Path, progress: Progress) -> dict[str, _Make]:
    """The compared methods by name; each is trained when it is called."""

    def few_shot(settings: FewShotSettings) -> _Make:
        def make(folder: Path, left_out: LeftOut) -> Score:
            questions = list(study.open(data, "train"))
            source = {"data": data, "fraction": study.fraction, "examples": study.examples}
            report = train_adapter(
                study.model,
                questions,
                settings,
                folder / "adapter",
                source,
                progress=progress,
                allow_worse=True,  # what comes of training is what is measured
            )
            left_out.merge(report.left_out.questions, report.left_out.failures)
            return by_model(study.model, folder / "adapter")

        return make

    def clip(method: str) -> _Make:
        def make(folder: Path, left_out: LeftOut) -> Score:
            assert study.clip is not None
            opened = load_clip(study.clip)
            if method == "zero-shot":
                return by_matcher(build_matcher(opened, method))
            settings = replace(study.settings, learning_rate=LEARNING_RATES[method])
            matcher, _ = train_baseline(
                opened,
                method,
                list(study.open(data, "train")),
                settings,
                report=lambda step, loss, validation: progress(
                    f"CLIP {method}", step, settings.steps, {"loss": loss}
                ),
                left_out=left_out,
            )
            return by_matcher(matcher)

        return make

    methods: dict[str, _Make] = {}
    if study.clip is not None:
        for method in ("zero-shot", "fine-tuning", "prompt-learning"):
            methods[f"CLIP {method}"] = clip(method)

    def zero_shot(levels: tuple[float, ...]) -> _Make:
        return lambda folder, left_out: by_model(
            study.model, None, levels=levels, resize=study.settings.resize
        )

    methods["DSD zero-shot"] = zero_shot(DEFAULT_LEVELS)
    if study.settings.levels != DEFAULT_LEVELS:  # separates the gain of levels from training's
        methods["DSD zero-shot at the few-shot levels"] = zero_shot(study.settings.levels)
    if (own := study.own_adapter) is not None:
        methods["DSD as shipped"] = lambda folder, left_out: by_model(
            study.model, own, resize=study.settings.resize
        )
    methods["DSD few-shot"] = few_shot(study.settings)
    both = replace(study.settings, score="attention+denoising")
    methods["DSD few-shot with denoising term"] = few_shot(both)
    return methods


def _measure(
    study: Study, data: str, make: _Make, folder: Path, name: str, progress: Progress
) -> _Measured:
    learning = LeftOut()
    score = make(folder, learning)

    def told(answered: int) -> None:
        progress(f"{name} on {data}", answered, study.questions, {})

    answers = list(ask(study.open(data, "test"), score, folder / "answers.jsonl", told))
    rows, left_out = figures(answers, study.seed), count_left_out(answers)
    left_out.require_some(len(rows), f"test questions of {data}")
    left_out.merge(learning.questions, learning.failures)
    about = {"method": name, "data": data, "seed": study.seed}
    write(folder, rows, about, f"{name} on {data}", left_out)
    return _Measured(rows, left_out)


def _measured(folder: Path) -> _Measured | None:
    """Metrics that an earlier call wrote for a part; None if there are none."""
    path = folder / "figures.json"
    if not path.exists():
        return None
    left_out = LeftOut()
    try:
        plain = read_json(path)
        failures = [from_plain(Failure, failure) for failure in plain.get("errors", ())]
        left_out.merge(int(plain.get("left_out", 0)), failures)
        return _Measured([from_plain(Figure, row) for row in plain["figures"]], left_out)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}. Delete it to measure again") from None


def _ablate(study: Study, adapter: Path, folder: Path, progress: Progress) -> str:
    path = folder / "ablation.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    checkpoint = read_checkpoint(study.model, best_device())
    scoring = build_scoring_unet(checkpoint, Adapter.load(adapter), levels=LEVELS)
    data = study.data[0]
    few = replace(study, questions=min(study.questions or _ABLATED, _ABLATED))
    left_out = LeftOut()  # not reported: the methods have reported the same questions
    examples = encode_questions(
        checkpoint,
        list(few.open(data, "test")),
        resize=study.settings.resize,
        left_out=left_out.add,
    )
    left_out.require_some(len(examples), f"test questions of {data}")
    maps = collect(scoring, examples, lambda done, total: progress("ablations", done, total, {}))
    ablations = ablate(maps, scoring.head_weights.cpu().double().numpy(), examples, study.seed)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{counted(len(examples), 'question')} of {data}"
    plot_ablations(ablations, folder / "ablation.png", title)
    write_whole(path, ablation_text(ablations))
    return path.read_text(encoding="utf-8")


def _report(
    study: Study,
    tables: Mapping[str, Mapping[str, Sequence[Figure]]],
    ablations: str,
    minutes: float,
    kept: int,
    left_out: LeftOut,
) -> str:
    # The columns of all methods: one that left out every question of a kind has no row of it.
    shown = {
        (data, row.name, kind): row.chance
        for data in study.data
        for by_data in tables.values()
        for row in by_data[data]
        for kind in (["top1", "top5"] if row.top5 is not None else ["top1"])
    }
    columns = list(shown)
    head = " | ".join(
        f"{data}: {name}" + (" (top-5)" if kind == "top5" else "") for data, name, kind in columns
    )
    lines = [f"| method | {head} |", "|---|" + "---:|" * len(columns)]
    for method, by_data in tables.items():
        cells = []
        for data, name, kind in columns:
            found = [getattr(row, kind) for row in by_data[data] if row.name == name]
            cells.append("-" if not found or found[0] is None else f"{found[0]:.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    guess = [
        f"{min(5 * chance, 100) if kind == 'top5' else chance:.1f}"
        for (_, _, kind), chance in shown.items()
    ]
    lines.append(f"| chance | {' | '.join(guess)} |")
    about = {**asdict(study), "settings": asdict(study.settings)}
    settings = "\n".join(f"- {name}: {value}" for name, value in about["settings"].items())
    return (
        "# Reproduction\n\n"
        f"Model {Path(study.model).name}, seed {study.seed}, per data set "
        f"{_at_most(study.questions, 'test question')} and "
        f"{_at_most(study.examples, 'few-shot example')}. {_machine()}; this run took "
        + counted(round(minutes), "minute")
        + (f", {counted(kept, 'part')} having been done by earlier ones.\n\n" if kept else ".\n\n")
        + "Accuracy in percent; a tie counts as a wrong answer.\n\n"
        + "".join(f"- {line.strip()}\n" for line in left_out.lines())
        + ("\n" if left_out.questions else "")
        + (
            "DSD as shipped has the model's own adapter, which may have learned from other "
            "examples than these; DSD few-shot starts from the model without it.\n\n"
            if study.own_adapter
            else ""
        )
        + "## Tables 1 and 2\n\n"
        + "\n".join(lines)
        + "\n\n"
        f"## Figures 3 to 6\n\nOn {study.data[0]}, with the few-shot adapter.\n\n"
        f"![Figures 3 to 6](ablation/ablation.png)\n\n{ablations}\n"
        f"## Settings of few-shot training\n\n{settings}\n"
    )


def _at_most(limit: int | None, what: str) -> str:
    return f"all {what}s" if limit is None else counted(limit, what)


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cores = counted(usable_cores(), "core")
    return f"{platform.machine()}, {cores}, {platform.system()}, {versions}"
