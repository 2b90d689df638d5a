"""`dsd-trt gpu-check`: check and measure a bundle on this machine's GPU, beside PyTorch.

It runs without PyTorch and onnx, too: what they would add is imported where it is asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsd_trt.commands.environment import setting
from dsd_trt.commands.log import note
from dsd_trt.commands.options import device_option, signature_option
from dsd_trt.engine import ON_GPU
from dsd_trt.engine.tensorrt.plan import parse_profile
from dsd_trt.installation import install_command
from dsd_trt.train.commands.adapters import (
    OWN,
    adapter_option,
    chosen_adapter,
    require_base,
)

if TYPE_CHECKING:
    from dsd_trt.bundle.folder import Bundle
    from dsd_trt.engines.gpu_check.figures import CountMacs
    from dsd_trt.engines.gpu_check.report import GpuReport
    from dsd_trt.export.recipe import Recipe

EXAMPLES = """\b
Examples:
  dsd-trt gpu-check my-scorer
  dsd-trt gpu-check my-scorer --model sd-2-1/ --adapter adapter/ --out h100
  dsd-trt gpu-check my-scorer --engine tensorrt --device 1
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@signature_option
@click.option(
    "--engine",
    type=click.Choice(ON_GPU),
    default=ON_GPU[0],
    show_default=True,
    help="Engine to check. Those of TensorRT need plans; missing ones are built.",
)
@device_option
@click.option(
    "--batch",
    **setting("BATCH"),
    default="1,8,32",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Batch sizes to time: least, best and greatest, also those of plans that are missing.",
)
@click.option(
    "--model",
    metavar="DIR|FILE|HUB_ID",
    help="Checkpoint the bundle was exported from, to measure PyTorch beside the engine; named as "
    "for export.  [default: without PyTorch]",
)
@adapter_option("Few-shot adapter the bundle was exported with")
@click.option(
    "--out",
    default="gpu-check",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Path of the report without its suffix: OUT.json and OUT.md are written.",
)
def gpu_check(
    bundle: str,
    require_signature: Path | None,
    engine: str,
    device: int,
    batch: str,
    model: str | None,
    adapter: str,
    out: Path,
) -> None:
    """Check BUNDLE on this machine's GPU: compare with FP32 on the CPU, and measure.

    Scores are compared in both modes. Single passes are timed with random inputs, of the bundle's
    form for CUDA beside the plain graphs. With --model, PyTorch is timed on the same inputs: eager,
    with fused attention, as a CUDA graph, and compiled. The report is written after every step.

    No plan of TensorRT has run on a GPU yet, so please send us your report.
    """
    from dsd_trt.bundle.place import bundle_folder, own_bundle_folder
    from dsd_trt.commands.console import stages
    from dsd_trt.engine.choice import named_backend
    from dsd_trt.signature import open_bundle
    from dsd_trt.train.diffusion.place import find_place, require_model

    profile = parse_profile(batch)
    if adapter != OWN and model is None:
        raise click.UsageError("--adapter needs --model")
    backend = named_backend(engine, device)
    chosen: Path | None = None
    if model is not None:  # before gigabytes are hashed
        require_model(place := find_place(model))
        file = chosen_adapter(adapter, model)
        require_base(file, place)
        chosen = None if file is None else file.folder
    folder = bundle_folder(bundle) if backend.reads_graphs else own_bundle_folder(bundle, "plans")
    from dsd_trt.engines.gpu_check.check import check_gpu
    from dsd_trt.engines.gpu_check.recorder import Recorder
    from dsd_trt.engines.gpu_check.tables import to_markdown, write_report
    from dsd_trt.errors import EngineError

    def save(report: GpuReport) -> None:
        write_report(report, out)

    options = {
        "--engine": engine,
        "--device": str(device) if device else None,
        "--batch": batch,
        "--model": model,
        "--adapter": None if adapter == OWN else adapter,
    }
    command = ["dsd-trt", "gpu-check", bundle]
    command += [it for name, value in options.items() if value is not None for it in (name, value)]
    with stages() as stage:
        stage("Verifying the bundle")
        opened = open_bundle(folder, require_signature)
        recipe = None if model is None else _read_recipe(opened, model, chosen)
        macs = _count_macs(opened)
        report = check_gpu(
            opened,
            backend,
            profile,
            macs=macs,
            command=shlex.join(command),
            stage=stage,
            save=save,
        )
        steps = Recorder(report, stage, save)
        if isinstance(recipe, str):
            steps.note(peer_failures={"PyTorch": recipe})
        elif recipe is not None:
            import torch

            from dsd_trt.export.benchmark.gpu_peers import measure_peers

            batches = (profile.min, profile.opt, profile.max)
            measure_peers(steps, opened, recipe, torch.device("cuda", device), batches, macs=macs)
        steps.note(complete=True)
    click.echo(to_markdown(steps.report))
    note(f"wrote {out}.json and {out}.md")
    if wrong := steps.report.complaints:
        raise EngineError(f"{engine} on GPU {device}: {'; '.join(wrong)}")


def _read_recipe(bundle: Bundle, model: str, adapter: Path | None) -> Recipe | str:
    """The recipe of the bundle's export, or what is missing for PyTorch."""
    absent = [it for it in ("torch", "diffusers", "transformers", "onnx") if find_spec(it) is None]
    if absent:
        return f"not installed: {', '.join(absent)}. Install with: {install_command('export')}"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU. Install PyTorch for CUDA"
    from dsd_trt.export.benchmark.gpu_peers import read_recipe
    from dsd_trt.train.run.libraries import hush_libraries

    hush_libraries()
    return read_recipe(bundle, model, adapter)


def _count_macs(bundle: Bundle) -> CountMacs | None:
    """Count the arithmetic of a pass by the ONNX graphs; None where onnx is not installed."""
    if find_spec("onnx") is None:
        return None
    from dsd_trt.export.benchmark.macs import count_macs

    @cache
    def counted(name: str, sizes: tuple[tuple[str, int], ...]) -> int | None:
        graph = bundle.manifest.graphs[name]
        try:
            return count_macs(bundle.path(graph.file), graph, **dict(sizes))
        except ValueError:  # a size is computed in a way that shape inference does not follow
            return None

    def count(name: str, sizes: Mapping[str, int]) -> int | None:
        if not bundle.manifest.graphs[name].batched:
            return counted(name, tuple(sorted(sizes.items())))
        (rows,), row = set(sizes.values()), counted(name, ())  # every row costs the same
        return None if row is None else rows * row

    return count
