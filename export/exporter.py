"""From a diffusion model and an adapter to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from dsd_trt.bundle.folder import Bundle, file_entry, write_bundle, write_manifest
from dsd_trt.bundle.manifest import check_manifest
from dsd_trt.errors import InputError
from dsd_trt.export.adapter_input import write_adapter_input
from dsd_trt.export.describe import TOKENIZER_NAME, describe
from dsd_trt.export.folder import check_replaceable, check_room, staged
from dsd_trt.export.model_card import CARD_NAME, write_card
from dsd_trt.export.modules import drop_weights, traceable
from dsd_trt.export.onnx_file import save_graph, stamp
from dsd_trt.export.parity import ParityReport, check_parity, measured_tolerance
from dsd_trt.export.probe import draw_probe
from dsd_trt.export.reference import Reference
from dsd_trt.export.self_check import write_self_check
from dsd_trt.export.settings import Settings
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.run.memory import release_freed_memory
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

_LARGE = 100_000_000  # weights of a U-Net; the embedded one has 4 M, Stable Diffusion's 860 M


def export_bundle(
    settings: Settings,
    out: Path,
    *,
    force: bool = False,
    stage: Callable[[str], None] = lambda name: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Bundle, ParityReport]:
    """Export, compare with the reference, and only then put the bundle where it was asked for.

    Args:
        settings: what to export.
        out: the bundle's folder.
        force: replace a folder that is not empty; what it holds is lost once the export is done.
        stage: told what begins.
        progress: told (done, total) while the reference scores.

    Raises:
        InputError: `out` cannot be used, its disk is full, or layers or levels do not exist.
        ModelError: model or adapter cannot be read, or do not belong together.
        ParityError: the graphs do not compute what the PyTorch model computes, or so much less
            exactly that no self-check could tell it from damage.
    """
    check_replaceable(out, force)
    stage("Reading the model")
    checkpoint = read_checkpoint(settings.model)
    adapter = None if settings.adapter is None else Adapter.load(settings.adapter)
    build = partial(
        build_scoring_unet,
        checkpoint,
        adapter,
        score_layers=settings.score_layers,
        levels=settings.levels,
        noise_seed=settings.noise_seed,
        score=settings.score,
    )
    try:
        scoring = build(unet=checkpoint.empty_unet())
    except ValueError as error:
        raise InputError(str(error)) from error
    manifest = describe(settings, checkpoint, adapter, scoring)
    module_of = partial(
        traceable,
        checkpoint=checkpoint,
        build=build,
        fed=manifest.adapter,
        query_pool=settings.query_pool,
    )
    check_manifest(manifest)  # now, rather than after minutes of work
    parts = checkpoint.source.parts
    check_room(out, sum(path.stat().st_size for path in checkpoint.weight_files.values()))
    with staged(out, force=force) as (folder, scratch):
        with WeightFile(folder) as weights:
            for name, graph in manifest.graphs.items():
                stage(f"Tracing {name}")
                module = module_of(name, precision=settings.precision)
                model = trace(module, graph, weights)
                stamp(model, name, manifest)
                save_graph(model, folder / graph.file)
                drop_weights(module)
                del module
                release_freed_memory()
        if manifest.adapter is not None and adapter is not None:
            path = folder / manifest.adapter.file
            write_adapter_input(path, adapter, scoring.score_layers, scoring.heads)
        write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_NAME)

        stage("Scoring with the reference")
        quick = _quick(settings, scoring)
        probe = draw_probe(checkpoint.resolution, len(scoring.levels), quick=quick)
        reference = Reference(checkpoint, build, manifest.method, matrix=manifest.matrix)
        expected = reference.expect(probe, progress)
        self_check = write_self_check(folder, manifest, reference, expected, single=quick)
        del reference
        checkpoint.forget()
        bundle = write_bundle(folder, replace(manifest, self_check=self_check))
        parity = check_parity(
            bundle,
            expected,
            partial(module_of, precision="fp32"),
            scratch,
            stage,
        )
        tolerance = measured_tolerance(manifest, [run.self_check for run in parity.runs])
        manifest = replace(
            bundle.manifest,
            parity=parity.to_plain(),
            self_check=replace(self_check, tolerance=tolerance),
        )
        write_card(folder / CARD_NAME, manifest, parity, parts.path)
        files = {**manifest.files, CARD_NAME: file_entry(folder / CARD_NAME)}
        bundle = write_manifest(folder, replace(manifest, files=dict(sorted(files.items()))))
    return replace(bundle, folder=out), parity


def _quick(settings: Settings, scoring: ScoringUNet) -> bool:
    """Whether to verify on little, because one pass of the U-Net takes seconds."""
    if settings.verify is not None:
        return settings.verify == "quick"
    return sum(weight.numel() for weight in scoring.unet.parameters()) > _LARGE


def write_tokenizer(tokenizer: CLIPTokenizer, path: Path) -> None:
    """Write the `tokenizers` library's file, without padding or truncation: the runtime's job."""
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    bare.save(str(path))
