"""`dsd-trt ablate`: the paper's ablations on any model and data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsd_trt.bundle.method import ScoreKind
from dsd_trt.commands.destination import Destination, destination_options
from dsd_trt.commands.log import note
from dsd_trt.commands.options import model_option, pytorch_threads_option, seed_option
from dsd_trt.errors import counted
from dsd_trt.files.lock import own_folder
from dsd_trt.files.whole import write_whole
from dsd_trt.train.commands.adapters import (
    adapter_option,
    chosen_adapter,
    require_base,
    sentence,
)
from dsd_trt.train.commands.data_options import data_options

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames
    from dsd_trt.train.evaluation.ablation import Point
    from dsd_trt.train.left_out import LeftOut

EXAMPLES = """\b
Examples:
  dsd-trt ablate --data shapes-comvg --limit 300 --out ablation/
  dsd-trt ablate --data shapes-comvg --limit 300 --out ablation/ -o ablation.html
  dsd-trt ablate --model sd-2-1/ --data comvg --root data/comvg --limit 500 --out ablation/
"""

_FIGURES = "ablation.json"


@click.command(epilog=EXAMPLES)
@model_option
@adapter_option("Few-shot adapter of the model")
@data_options
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Maximum number of test questions.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Output folder for ablation.md, ablation.json and ablation.png.",
)
@destination_options
@pytorch_threads_option
@seed_option("Random seed of the split and of the heads that are left out.")
@click.pass_context
def ablate(
    ctx: click.Context,
    model: str,
    adapter: str,
    data: str,
    root: Path,
    columns: ColumnNames,
    images_at: Path | None,
    limit: int,
    out: Path,
    destination: Destination,
    threads: int | None,
    seed: int,
) -> None:
    """Measure accuracy with fewer layers, heads and noise levels, and with other poolings.

    Reproduces Figures 3 to 6 of the paper on the test questions of a data set. `dsd-trt eval
    --help` describes the questions.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_run, require_writable
    from dsd_trt.train.data.catalogue import open_dataset
    from dsd_trt.train.diffusion.place import find_place, require_model

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    require_writable(out)
    destination.require_form()
    destination.require_possible()
    require_run(out, _FIGURES)
    part = open_dataset(data, root, "test", seed, limit, columns=columns, images=images_at)
    file = chosen_adapter(adapter, model)
    require_model(place := find_place(model))
    require_base(file, place)
    part.require_some("test questions")
    questions = list(part)
    for line in part.lines():
        note(line)
    note(f"measuring on {counted(len(questions), 'question')}")
    note(sentence(file, adapter))

    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    from dsd_trt.train.build import build_scoring_unet
    from dsd_trt.train.commands.left_out import report_left_out
    from dsd_trt.train.diffusion.checkpoint import read_checkpoint
    from dsd_trt.train.evaluation.ablation import LEVELS, collect
    from dsd_trt.train.evaluation.ablation import ablate as measure
    from dsd_trt.train.fewshot.encodings import encode_questions
    from dsd_trt.train.left_out import LeftOut
    from dsd_trt.train.run.device import best_device
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with
    from dsd_trt.train.scoring.adapter import Adapter, resize_of

    ctx.with_resource(computing_with(threads))
    learned = None if file is None else Adapter.load(file.folder)
    # The figures are of attention, which an imported adapter serves beside its own score.
    kind: ScoreKind | None = "attention" if learned and learned.score == "released" else None
    left_out = LeftOut()
    with StageProgress() as progress:
        progress.begin("reading the model")
        checkpoint = read_checkpoint(model, best_device())
        scoring = build_scoring_unet(checkpoint, learned, levels=LEVELS, score=kind)
        ctx.with_resource(own_folder(out))
        examples = encode_questions(
            checkpoint,
            questions,
            resize=resize_of(learned),
            progress=lambda done, total: progress.step("encoding", done, total),
            left_out=left_out.add,
        )
        left_out.require_some(len(examples), f"test questions of {data}")
        maps = collect(scoring, examples, lambda done, total: progress.step("scoring", done, total))
    ablations = measure(maps, scoring.head_weights.cpu().double().numpy(), examples, seed)
    about = {
        "model": model,
        "adapter": None if file is None else str(file.folder),
        "data": data,
        "questions": len(examples),
        "seed": seed,
    }
    _write(ablations, about, left_out, out, destination)
    report_left_out(ctx, left_out, part.failures)


def _write(
    ablations: Mapping[str, Sequence[Point]],
    about: Mapping[str, Any],
    left_out: LeftOut,
    out: Path,
    destination: Destination,
) -> None:
    """Write the figures to the output folder and to their destination.

    Args:
        ablations: points of each figure, by its title.
        about: what was measured, by name: model, adapter, data, questions, seed.
        left_out: questions left out, with their failures.
        out: folder for the JSON, the table and the plot.
        destination: where the figures go besides.
    """
    from dsd_trt.train.evaluation.ablation import as_page, as_text, plot

    table = as_text(ablations)
    if left_out.questions:
        table += f"\n{left_out.sentence()}\n"
    plain = {
        **about,
        **left_out.to_plain(),
        "figures": {name: [asdict(p) for p in points] for name, points in ablations.items()},
    }
    as_json = json.dumps(plain, indent=2) + "\n"
    write_whole(out / _FIGURES, as_json)  # first: it marks the folder
    write_whole(out / "ablation.md", table)
    title = f"{about['model']} on {about['data']}, {counted(about['questions'], 'question')}"
    plot(ablations, out / "ablation.png", title)
    facts = {name: str(it) for name, it in about.items()}
    destination.write(
        lambda: table,
        lambda: as_json,
        lambda: as_page(ablations, title, left_out, facts),
    )
