"""`dsd-trt build`: compile a bundle's graphs to TensorRT plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsd_trt.commands.environment import setting
from dsd_trt.commands.log import note
from dsd_trt.commands.options import signature_option
from dsd_trt.engine.tensorrt.plan import PLAN_LIBRARIES, Profile, parse_profile
from dsd_trt.errors import InputError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from dsd_trt.engine.tensorrt.plan import PlanLibrary
    from dsd_trt.engines.layers import LayerTable


def _parse_profiles(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Profile, ...]:
    try:
        return tuple(parse_profile(value) for value in values)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def _split(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if value else ()


def _parse_capabilities(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Compute capabilities as "8.6"; "86" is accepted as well."""
    return tuple(
        part if "." in part else f"{part[:-1]}.{part[-1:]}"
        for part in _split(ctx, parameter, value)
    )


@click.command()
@click.argument("bundle")
@signature_option
@click.option(
    "--engine",
    type=click.Choice(PLAN_LIBRARIES),
    default="tensorrt",
    show_default=True,
    help="Library the plans are built with, and later run by.",
)
@click.option(
    "--graphs",
    metavar="NAME,NAME...",
    callback=_split,
    help="Graphs to build, such as pair_scorer; matrix_scorer has two plans.  [default: all]",
)
@click.option(
    "--batch",
    "profiles",
    **setting("BATCH"),
    metavar="MIN,OPT,MAX",
    multiple=True,
    default=("1,8,32",),
    show_default=True,
    callback=_parse_profiles,
    help="Least, best and greatest batch size of a profile, of the matrix scorer walks; repeat for "
    "further profiles.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="CC,CC...",
    callback=_parse_capabilities,
    help="Compute capabilities to build for, such as 86,89.  [default: 80,86,89,120 with "
    "tensorrt-rtx; this machine's GPU with tensorrt, which builds for no other]",
)
@click.option(
    "--workspace",
    **setting("WORKSPACE"),
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Limit of GPU memory for a layer's intermediate results.  [default: no limit]",
)
@click.option(
    "--timing-cache",
    **setting("TIMING_CACHE"),
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that keeps measured kernel times for the next build; with tensorrt only.",
)
@click.option(
    "--report", is_flag=True, help="Print logits' precision and fusability of every attention."
)
def build(
    bundle: str,
    require_signature: Path | None,
    engine: str,
    graphs: tuple[str, ...],
    profiles: tuple[Profile, ...],
    capabilities: tuple[str, ...],
    workspace: float | None,
    timing_cache: Path | None,
    report: bool,
) -> None:
    """Compile BUNDLE's graphs to TensorRT plans and add them to BUNDLE.

    A matrix scorer becomes two plans: the walk, and the match of its results with texts.

    BUNDLE is a folder of yours; download a bundle from the Hugging Face Hub into one first.

    TensorRT needs the GPU that the plans are for. TensorRT-RTX needs none.
    """
    from rich.console import Console

    from dsd_trt.bundle.place import own_bundle_folder
    from dsd_trt.engine.tensorrt.runner import load_library, require
    from dsd_trt.engines.build import build_plans, require_settings
    from dsd_trt.engines.compile import CompileSettings
    from dsd_trt.signature import open_bundle

    settings = CompileSettings(
        profiles, capabilities, None if workspace is None else int(workspace * 2**30), timing_cache
    )
    require_settings(cast("PlanLibrary", engine), settings)
    folder = own_bundle_folder(bundle, "plans")
    # Before gigabytes are hashed: TensorRT needs a GPU, TensorRT-RTX the library alone.
    (require if engine == "tensorrt" else load_library)(cast("PlanLibrary", engine))
    opened = open_bundle(folder, require_signature)
    out = Console()
    began = time.monotonic()
    with _bars() as (stage, step):
        for plan, table in build_plans(
            opened, cast("PlanLibrary", engine), settings, graphs, stage=stage, step=step
        ):
            _print_layers(out, plan.sidecar.title, table)
            if report:
                _print_attentions(out, plan.sidecar.title, table)
            note(f"wrote {plan.path}, {plan.sidecar.size / 1e6:,.0f} MB")
    note(
        f"built in {time.monotonic() - began:.0f} s; on a GPU it serves: "
        f"dsd-trt score IMAGES TEXTS --bundle {bundle} --engine {engine}"
    )


@contextmanager
def _bars() -> Iterator[tuple[Callable[[str], None], Callable[[float], None]]]:
    """One progress bar per graph, with elapsed and remaining time."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from dsd_trt.commands.console import progress_bars

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with progress_bars(*columns, TimeRemainingColumn()) as bars:

        def stage(name: str) -> None:
            bars.add_task(f"Building {name}", total=1.0)

        def step(share: float) -> None:
            bars.update(bars.task_ids[-1], completed=share)

        yield stage, step


def _print_layers(console: Console, graph: str, table: LayerTable) -> None:
    from rich.table import Table

    share = f"{table.half_share():.1%} of products in FP16, scored logits aside"
    shown = Table(title=f"{graph}: {counted(len(table.layers), 'layer')}, {share}")
    for column in ("type", "precision", "layers"):
        shown.add_column(column, justify="right" if column == "layers" else "left")
    numbers = {
        key: number
        for key, number in table.count().items()
        if key[1] in ("FLOAT", "HALF", "BF16") and key[0] not in ("CONSTANT", "SHUFFLE")
    }
    for (kind, dtype), number in sorted(numbers.items()):
        shown.add_row(kind, dtype, str(number))
    console.print(shown)


def _print_attentions(console: Console, graph: str, table: LayerTable) -> None:
    from rich.table import Table

    shown = Table(title=f"{graph}: attention")
    for column in ("logits", "precision", "softmax", "form"):
        shown.add_column(column)
    for it in table.attentions():
        form = (
            "scored: logits are exposed"
            if it.scored
            else "fusable"
            if it.fusable
            else "not fusable"
        )
        shown.add_row(table.place(it.logits), it.logits.dtype, it.softmax.dtype, form)
    console.print(shown)
