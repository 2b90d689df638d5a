"""`dsd-trt index`: encode images to an index of latents."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import bundle_option
from dsd_trt.commands.tracing import trace_option
from dsd_trt.errors import InputError, counted

EXAMPLES = """\b
Examples:
  dsd-trt index photos/ photos.index
  dsd-trt index 'shards/*.tar' shards.index --bundle my-scorer
  dsd-trt index photos/ photos.index --prune-missing
  dsd-trt score photos.index texts.txt
"""


@click.command(epilog=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="IMAGES... OUT")
@bundle_option("encode with")
@opening_options
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Images per file of latents; at most this many are encoded again after an interruption.",
)
@click.option(
    "--prune-missing",
    is_flag=True,
    help="Remove images of OUT that are not among IMAGES; their number is printed first.  "
    "[default: keep them]",
)
@trace_option
@click.option("--keep", is_flag=True, hidden=True)  # the default, which had to be asked for once
@click.pass_context
def index(
    ctx: click.Context,
    paths: tuple[str, ...],
    bundle: str | None,
    opening: Opening,
    shard_size: int,
    prune_missing: bool,
    keep: bool,
) -> None:
    """Encode images once, so that scoring needs neither the images nor the image encoder.

    IMAGES are files, directories (searched recursively) and globs, as for score, and WebDataset tar
    files, plain or gzipped. OUT is a folder. An existing index is updated: new and changed images
    are encoded. Images you no longer list are kept, unless you pass --prune-missing. After an
    interruption, run the same command again to continue.
    """
    from dsd_trt.commands.console import progress_bar
    from dsd_trt.files.folders import require_writable
    from dsd_trt.image.files import find_images
    from dsd_trt.index.files import require_extra
    from dsd_trt.index.tar_names import SUFFIXES
    from dsd_trt.index.writer import update_index

    if len(paths) < 2:
        raise InputError("give IMAGES and, last, the folder OUT; see: dsd-trt index --help")
    if keep and prune_missing:
        raise InputError("--keep and --prune-missing contradict each other: leave one out")
    require_extra()  # before a library is loaded
    opening.require_possible()  # before a folder is searched
    if not (out := Path(paths[-1])).is_file():  # which is refused by its name
        require_writable(out, "as the last argument")
    found = find_images(paths[:-1], others=SUFFIXES)

    started = time.perf_counter()
    with progress_bar("images") as progress:
        done = update_index(
            paths[-1],
            found.images,
            bundle,
            opening.engine,
            shard_size,
            not prune_missing
            or found.hides,  # an unreadable folder may still hold images of the index
            progress,
            opening.require_signature,
            opening.self_check,
            opening.device,
            opening.threads,
            opening.memory_budget,
            opening.cache_compiled,
        )
    seconds = time.perf_counter() - started
    if done.engine:
        note(f"engine: {done.engine}")
        if done.why_engine:
            note(f"passed over: {done.why_engine}")
    readable = done.images - len(done.errors)
    note(
        f"{paths[-1]} has {counted(readable, 'image')}: {done.encoded} encoded in {seconds:.1f} s, "
        f"{done.dropped} dropped"
    )
    if done.kept and not found.hides:
        note(f"kept though not named again: {done.kept} (--prune-missing drops them)")
    failures = found.unreadable + done.errors
    if failures:
        say(f"images that could not be read: {len(failures)}")
        for failure in failures:
            say(f"  {failure.image}: {failure.reason}")
        if found.hides and prune_missing:
            say("nothing was dropped: images may lie where it could not be searched")
        ctx.exit(3)
