"""The export, step by step: build, trace, write, compare with the reference, sign off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from dsd_trt.bundle.folder import Bundle, file_entry, files_in, write_manifest
from dsd_trt.bundle.manifest import Bfloat16, check_manifest
from dsd_trt.bundle.maps import Maps
from dsd_trt.export.adapter_input import write_adapter_input
from dsd_trt.export.bfloat16 import measure_bfloat16, why_unmeasured
from dsd_trt.export.calibration import without_shifted
from dsd_trt.export.cuda_form import cuda_form, form_name
from dsd_trt.export.describe import TOKENIZER_NAME
from dsd_trt.export.estimate import Estimate, estimate, memory_of_bfloat16
from dsd_trt.export.folder import check_replaceable, check_room, staged
from dsd_trt.export.maps import require_same_score, write_maps
from dsd_trt.export.model_card import CARD_NAME, write_card
from dsd_trt.export.modules import drop_weights
from dsd_trt.export.onnx_file import save_graph, stamp
from dsd_trt.export.parity import NOT_COMPARED, ParityReport, check_parity, measured_tolerance
from dsd_trt.export.probe import IMAGES, draw_probe
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.reference import Reference
from dsd_trt.export.self_check import write_self_check
from dsd_trt.export.settings import ExportSettings
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WEIGHTS_NAME, WeightFile
from dsd_trt.log import get_logger
from dsd_trt.train.run.memory import release_freed_memory

logger = get_logger(__name__)


def export_bundle(
    settings: ExportSettings,
    out: Path,
    *,
    force: bool = False,
    stage: Callable[[str], None] = lambda name: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    expect: Callable[[Estimate], None] = lambda estimate: None,
) -> tuple[Bundle, ParityReport]:
    """Export a bundle and compare it with the reference; `out` is written only if they agree.

    Args:
        settings: checkpoint, adapter, precision and score to export.
        out: folder of the bundle to write.
        force: whether a folder that is not empty is replaced once the export has succeeded.
        stage: callback `(name)`, called when a stage of the export begins.
        progress: callback `(done, total)` in passes, called while the reference scores.
        expect: callback `(estimate)`, called before the work begins.

    Returns:
        The bundle in `out`, and its parity figures; without any with `verify` "none".

    Raises:
        InputError: `out` cannot be used, its disk is full, or layers or levels do not exist.
        ModelError: checkpoint or adapter cannot be read, or do not belong together.
        ParityError: the graphs compute something else than the PyTorch model. Or they differ so
            much that no self-check could tell the difference from damage.
    """
    check_replaceable(out, force)
    stage("Reading the checkpoint")
    recipe = Recipe.read(settings)
    manifest, checkpoint = recipe.manifest, recipe.checkpoint
    check_manifest(manifest)  # here, because tracing takes minutes
    model_folder = checkpoint.source.parts.path  # kept, because the checkpoint is forgotten
    check_room(out, sum(path.stat().st_size for path in checkpoint.weight_files.values()))
    expect(estimate(recipe))
    forms: dict[str, str] = {}
    maps: Maps | None = None
    with staged(out, force=force) as (folder, scratch):
        with WeightFile(folder) as weights:
            for name, graph in manifest.graphs.items():
                stage(f"Tracing {name}")
                module = recipe.module(name)
                model = trace(module, graph, weights)
                stamp(model, name, manifest)
                save_graph(model, folder / graph.file)
                fuse = settings.cuda_form
                if fuse and (form := cuda_form(model, name, fuse)) is not None:
                    forms[name] = form_name(graph.file)
                    save_graph(form, folder / forms[name])
                if settings.maps and name == "pair_scorer":
                    maps = write_maps(model, manifest, folder)
                drop_weights(module)
                del module
                release_freed_memory()
        if manifest.adapter is not None and recipe.adapter is not None:
            path, scoring = folder / manifest.adapter.file, recipe.outline
            write_adapter_input(path, recipe.adapter, scoring.score_layers, scoring.heads)
        write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_NAME)

        stage("Scoring with the reference")
        levels = len(manifest.method.noise_levels.fractions)
        compared = settings.verify != "none"
        # The self-check is of one image, and one text where the comparison is quick.
        count = IMAGES if compared else 1
        probe = draw_probe(checkpoint.resolution, levels, count=count, quick=recipe.quick)
        reference = Reference(recipe)
        expected = reference.expect(probe, progress)
        self_check = write_self_check(folder, manifest, reference, expected, single=recipe.quick)
        del reference
        checkpoint.forget()

        files = files_in(folder, known={WEIGHTS_NAME: weights.entry})
        manifest = replace(
            manifest, files=files, self_check=self_check, cuda_form=forms or None, maps=maps
        )
        # Written twice: the check opens the bundle as users do, and its figures are added below.
        bundle = write_manifest(folder, manifest)
        if maps is not None:
            require_same_score(bundle)
        parity = NOT_COMPARED
        if compared:
            parity = check_parity(bundle, expected, recipe, scratch, stage)
        tolerance = measured_tolerance(manifest, [run.self_check for run in parity.runs])
        manifest = replace(
            manifest, parity=parity.to_plain(), self_check=replace(self_check, tolerance=tolerance)
        )
        manifest = without_shifted(manifest)
        if compared and recipe.measures_bfloat16:
            manifest = replace(manifest, bfloat16=_bfloat16(bundle, recipe, stage))
        trained = recipe.adapter.training if recipe.adapter else None
        write_card(folder / CARD_NAME, manifest, parity, model_folder, trained)
        files[CARD_NAME] = file_entry(folder / CARD_NAME)
        bundle = write_manifest(folder, replace(manifest, files=dict(sorted(files.items()))))
    return replace(bundle, folder=out), parity


def _bfloat16(
    bundle: Bundle, recipe: Recipe, stage: Callable[[str], None]
) -> dict[str, Bfloat16] | None:
    """What BF16 does to the scores; None, and a logged reason, where it cannot be measured."""
    weights = sum(weight.numel() for weight in recipe.outline.unet.parameters())
    if (reason := why_unmeasured(memory_of_bfloat16(weights))) is not None:
        logger.info("BF16 is not compared with FP32: %s", reason)
        return None
    stage("Comparing BF16 with FP32")
    return measure_bfloat16(bundle)


def write_tokenizer(tokenizer: CLIPTokenizer, path: Path) -> None:
    """Write the `tokenizers` library's file without padding and truncation, which the runtime does.

    Args:
        tokenizer: CLIP tokenizer of the checkpoint, the fast variant.
        path: file to write, usually the bundle's `tokenizer.json`.
    """
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    bare.save(str(path))
