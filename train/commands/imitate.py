"""`dsd-trt imitate`: teach matrix mode to estimate the scores of pair mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.log import note
from dsd_trt.commands.options import model_option, pytorch_threads_option, seed_option
from dsd_trt.errors import InputError, counted
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.adapters import adapter_option, chosen_adapter, require_base, sentence
from dsd_trt.train.commands.data_options import data_options, fraction_option

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames

EXAMPLES = """\b
Examples:
  dsd-trt imitate --data shapes-edits --out adapter
  dsd-trt imitate --data shapes-edits --measure-on shapes-refcocog --out measured
  dsd-trt imitate --model sd-2-1 --adapter mine --data captions.csv --out mine-and-lists
"""

LIMIT = 900  # questions; of their images 600 are learned from, or all with --measure-on
_LARGE = 100_000_000  # parameters of a U-Net from which more than one thread is faster


@click.command(epilog=EXAMPLES)
@model_option
@data_options
@click.option(
    "--measure-on",
    metavar="DATASET",
    help="Data set or table whose images and texts lists are measured on, read as --data is.  "
    "[default: a third of --data]",
)
@fraction_option("Share of the training set used.", "1, all", least=True)
@click.option(
    "--limit",
    type=click.IntRange(2),
    default=LIMIT,
    show_default=True,
    help="Maximum number of questions of each data set.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="ADAPTER",
    help="Output folder for the adapter with what is learned; a new or empty one.",
)
@adapter_option("Adapter whose pair mode is estimated, and which is copied")
@pytorch_threads_option
@seed_option("Random seed of the division, of drawn texts and of batches.")
@click.pass_context
def imitate(
    ctx: click.Context,
    model: str,
    data: str,
    root: Path,
    columns: ColumnNames,
    images_at: Path | None,
    measure_on: str | None,
    fraction: float | None,
    limit: int,
    out: Path,
    adapter: str,
    threads: int | None,
    seed: int,
) -> None:
    """Teach matrix mode to estimate the scores of pair mode.

    A search for the best then follows matrix mode's order, and scores in pair mode only as far as
    needed: export with --matrix, and search with --prune. Images and texts are enough: which text
    is right does not matter. Two thirds are learned from. On the others, or on --measure-on, it is
    measured how far down an order has to be followed. Relations, such as which of two is left, are
    learned from texts that an image rejects, and kept if they help clearly. Pair mode itself stays
    as it is.
    """
    from dsd_trt.train.data.catalogue import require_columns

    named = (data,) if measure_on is None else (data, measure_on)
    for it in named:
        require_columns(it, root, columns)  # before anything else is imported

    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers")
    from dsd_trt.files.folders import require_writable
    from dsd_trt.train.data.catalogue import open_dataset
    from dsd_trt.train.diffusion.place import find_place, require_model
    from dsd_trt.train.scoring.choices import require_matrix

    require_writable(out)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty: name a new folder")
    parts = [
        open_dataset(it, root, "train", seed, limit, fraction, columns, images_at) for it in named
    ]
    require_model(place := find_place(model))
    file = chosen_adapter(adapter, model)
    require_base(file, place)
    if file is not None:
        if file.config.mode == "matrix":
            raise InputError(
                f"{file.folder} was trained for matrix mode alone, and token heads estimate pair "
                "mode: name an adapter of pair mode or both, or none"
            )
        require_matrix(file.config.score, file.config.head_mode, "name another --adapter, or none")
    of_parts = [list(part) for part in parts]
    for line in (line for part in parts for line in part.lines()):
        note(line)
    for it, questions in zip(named, of_parts, strict=True):
        if not questions:
            raise InputError(f"{it} has nothing to learn from: a greater --fraction takes more")
    from dsd_trt.image.preprocess import image_identity
    from dsd_trt.train.imitation.enough import UNKNOWN, require_enough

    images, texts = set[object](), set[str]()
    for where, questions in zip(("", UNKNOWN), of_parts, strict=False):
        pairs = [pair for it in questions for pair in it.candidates]
        of_images = {image_identity(it) for it, _ in pairs} - images
        of_texts = {text for _, text in pairs} - texts
        require_enough(len(of_images), len(of_texts), where)
        images, texts = images | of_images, texts | of_texts
    note(sentence(file, adapter))

    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    from dsd_trt.train.commands.left_out import report_left_out
    from dsd_trt.train.diffusion.checkpoint import read_checkpoint
    from dsd_trt.train.imitation.imitation import imitate as learn
    from dsd_trt.train.run.device import best_device
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run.threads import computing_with
    from dsd_trt.train.scoring.adapter import Adapter

    ctx.with_resource(own_folder(out))
    with StageProgress() as progress:
        progress.begin("Reading the model")
        checkpoint = read_checkpoint(model, best_device())
        small = sum(it.numel() for it in checkpoint.unet.parameters()) < _LARGE
        ctx.with_resource(computing_with(1 if threads is None and small else threads))
        base = None if file is None else Adapter.load(file.folder)
        measured_on = [] if measure_on is None else of_parts[1]
        found = learn(checkpoint, base, of_parts[0], measured_on, seed, progress.step)
    found.adapter.save(out)
    note(found.related.line())
    note(f"before: {found.before.line()}")
    note(f"after: {found.after.line()}")
    note(
        f"measured on {counted(len(found.after.texts), 'list')}: the smallest --error at which a "
        f"search cuts a list is {found.smallest_error():g}"
    )
    note(f"adapter: {out}")
    note(f"to use it: dsd-trt export --model {model} --adapter {out} --matrix --out BUNDLE")
    report_left_out(ctx, found.left_out, [it for part in parts for it in part.failures])
