"""`dsd-trt export`: write a bundle from a checkpoint and an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from dsd_trt.bundle.method import ScoreKind
from dsd_trt.commands.log import note
from dsd_trt.commands.options import fair_resolution_option, model_option, parse_levels
from dsd_trt.errors import counted
from dsd_trt.train.commands.adapters import (
    adapter_option,
    chosen_adapter,
    require_base,
    require_layers,
    sentence,
)

# torch and other heavy libraries are imported where they are used, so that --help is fast.
if TYPE_CHECKING:
    from dsd_trt.bundle.contract import Precision
    from dsd_trt.bundle.manifest import Resize
    from dsd_trt.bundle.method import TokenMask
    from dsd_trt.export.parity import ParityReport
    from dsd_trt.export.settings import CudaForm, Verify

EXAMPLES = """\b
Examples:
  dsd-trt export --out my-scorer
  dsd-trt export --model stable-diffusion-2-1/ --precision fp16 --out my-scorer
  dsd-trt export --score-layers last:2 --levels 0.4 --out fast-scorer
"""


@click.command(epilog=EXAMPLES)
@model_option
@adapter_option("Few-shot adapter trained for the checkpoint")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Folder of the bundle to write.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of weights and activations; fp16 keeps attention logits and scores in FP32.",
)
@click.option(
    "--score-layers",
    default="all",
    show_default=True,
    metavar="LAYERS",
    help="Scored cross-attention layers: all, last:N, or a list such as 0,3,5.",
)
@click.option(
    "--levels",
    metavar="S,S...",
    callback=parse_levels,
    help="Noise levels, each between 0 and 1.  [default: the adapter's, else 0.2,0.4,0.6,0.8]",
)
@click.option(
    "--token-mask",
    type=click.Choice(["words_eos", "words", "all"]),
    default="words_eos",
    show_default=True,
    help="Tokens the score averages over: words and end token, words alone, or all 77.",
)
@fair_resolution_option
@click.option(
    "--score",
    type=click.Choice(get_args(ScoreKind)),
    help="Attention score, denoising term, or both.  [default: the adapter's, else attention]",
)
@click.option(
    "--matrix/--no-matrix",
    default=None,
    help="Export the matrix scorer too.  [default: if the adapter was trained for it]",
)
@click.option(
    "--query-pool",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Side of the squares of image tokens over which the matrix scorer averages the finest "
    "layers' queries; above 1 matching is faster and less accurate.",
)
@click.option(
    "--adapter-input",
    is_flag=True,
    help="Make the adapter an input of the pair scorer, so that `dsd-trt adapt` can replace it.",
)
@click.option(
    "--cuda-form",
    type=click.Choice(["attention", "attention+group-norm"]),
    is_flag=False,
    flag_value="attention",
    help="Write forms of the graphs for ONNX Runtime on CUDA too, with fused self-attention, and "
    "with fused group normalisation if asked for.  [default: none; the option alone: attention]",
)
@click.option(
    "--maps/--no-maps",
    default=False,
    help="Write the graph of the attention maps too, for `dsd-trt explain`; it has the pair "
    "scorer's weights.  [default: --no-maps]",
)
@click.option(
    "--verify",
    type=click.Choice(["quick", "full"]),
    help="Compare with PyTorch on 256 pairs at every level (full) or on 4 pairs at one (quick).  "
    "[default: full for small U-Nets; quick for Stable Diffusion, where full takes hours]",
)
@click.option(
    "--bf16/--no-bf16",
    default=None,
    help="Measure with what probability BF16 changes the winner, where OpenVINO and the processor "
    "compute in BF16; minutes for Stable Diffusion.  [default: --bf16 for small U-Nets alone]",
)
@click.option("--force", is_flag=True, help="Replace BUNDLE if it is not empty.")
def export(
    model: str,
    adapter: str,
    out: Path,
    precision: str,
    score_layers: str,
    levels: tuple[float, ...] | None,
    token_mask: str,
    resize: Resize | None,
    score: str | None,
    matrix: bool | None,
    query_pool: int,
    adapter_input: bool,
    cuda_form: str | None,
    maps: bool,
    verify: str | None,
    bf16: bool | None,
    force: bool,
) -> None:
    """Export a checkpoint as a bundle of ONNX graphs and compare them with PyTorch."""
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers", "onnx")
    from dsd_trt.export.folder import check_replaceable
    from dsd_trt.export.settings import ExportSettings, require_consistent
    from dsd_trt.train.diffusion.place import find_place, require_model

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    settings = ExportSettings(
        model=model,
        precision=cast("Precision", precision),
        score_layers=score_layers,
        levels=levels,
        resize=resize,
        token_mask=cast("TokenMask", token_mask),
        score=cast("ScoreKind | None", score),
        verify=cast("Verify | None", verify),
        adapter_input=adapter_input,
        matrix=matrix,
        query_pool=query_pool,
        cuda_form=cast("CudaForm | None", cuda_form),
        bf16=bf16,
        maps=maps,
    )
    check_replaceable(out, force)
    file = chosen_adapter(adapter, model)
    require_consistent(settings, file)
    require_model(place := find_place(model))
    require_layers(score_layers, place)
    require_base(file, place)
    settings = replace(settings, adapter=None if file is None else file.folder)

    from dsd_trt.bundle.bfloat16 import in_words
    from dsd_trt.export.exporter import export_bundle
    from dsd_trt.train.run.libraries import hush_libraries
    from dsd_trt.train.run.memory import return_freed_memory

    hush_libraries()
    return_freed_memory()
    note(sentence(file, adapter))
    with _stages() as (stage, progress):
        bundle, parity = export_bundle(
            settings,
            out,
            force=force,
            stage=stage,
            progress=progress,
            expect=lambda estimate: note(f"this takes {estimate}"),
        )
    _print_parity(parity)
    for mode, measured in (bundle.manifest.bfloat16 or {}).items():
        note(f"BF16, {mode} mode: {in_words(measured)}")
    note(f"wrote {out}; try it: dsd-trt score IMAGES TEXTS --bundle {out}")


@contextmanager
def _stages() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """One line per stage, with a progress bar and times for the current one on a terminal."""
    from dsd_trt.commands.console import progress_bars, stage_lines

    if (begin := stage_lines()) is not None:
        yield begin, lambda done, total: None
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    description = TextColumn("{task.description}")
    columns = (SpinnerColumn(finished_text=" "), description, BarColumn(20), Elapsed(), Remaining())
    with progress_bars(*columns) as bars:

        def finish() -> None:
            for task in bars.tasks:
                if not task.finished:
                    bars.update(task.id, total=1, completed=1)

        def stage(name: str) -> None:
            finish()
            bars.add_task(name, total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bars.tasks[-1].id, total=total, completed=done)

        yield stage, progress
        finish()


def _print_parity(parity: ParityReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Parity with {parity.reference}, over {counted(parity.pairs, 'pair')}")
    table.add_column("graphs on")
    for name in ("max score difference", "Spearman", "top-1 agreement"):
        table.add_column(name, justify="right")
    for run in parity.runs:
        for name, score in ((run.engine, run.score), (f"{run.engine}, matrix mode", run.matrix)):
            if score is not None:
                difference = f"{score.max_difference:.2g}"
                table.add_row(name, difference, f"{score.spearman:.6f}", f"{score.top1:.1%}")
    Console().print(table)
