"""The parity check that ends every export: do the graphs compute what PyTorch computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.agreement import Agreement, compare
from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle, file_entry, is_large, write_manifest
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engine.onnxruntime.cpu import CPU as ONNX_RUNTIME
from dsd_trt.engine.self_check import FILE_NAME, SelfCheck
from dsd_trt.errors import DsdError
from dsd_trt.export.cuda_form import in_cuda_form
from dsd_trt.export.emulation import emulate_half
from dsd_trt.export.fused_group_norm import write_out_group_norms
from dsd_trt.export.locate import layer_differences
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.reference import Expected
from dsd_trt.export.self_check import MeasuredCheck, least_tolerance, write_widened
from dsd_trt.export.weights import WEIGHTS_NAME
from dsd_trt.files.disk import clone_or_copy
from dsd_trt.files.schema import to_plain
from dsd_trt.pipeline import Pipeline
from dsd_trt.train.run.memory import release_freed_memory

SCORE_TOLERANCE = 1e-5  # FP32: absolute; relative to the largest score if that exceeds 1
MIN_SPEARMAN, MIN_TOP1 = 0.999, 0.99  # FP16
_LAYER_TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}  # relative; above ordinary rounding errors
_MARGIN = 4  # self-check's tolerance over the measured difference: engines round differently
_MOST_TOLERANCE = {"fp32": 1e-3, "fp16": 0.25}
_MEMORY_MB = 1024
_REPORT = "please report it with the model's config.json files"
_ADVICE = {
    "fp32": f"The model uses something this exporter gets wrong; {_REPORT}",
    "fp16": "Export in full precision: --precision fp32",
}
_FORM_ADVICE = f"Leave out --cuda-form; {_REPORT}"


class ParityError(DsdError):
    """An exported graph does not compute what the PyTorch model computes."""


@dataclass(frozen=True)
class Run:
    """Agreement of a bundle's graphs on one engine with the reference.

    Attributes:
        engine: name and version of the engine, and whether FP16 rounding is emulated.
        latent: largest absolute difference of the image encoder's output.
        text_states: largest absolute difference of the text encoder's output.
        score: agreement of the scores f(y, x), end to end.
        matrix: agreement of matrix mode's scores; None if the bundle has no matrix scorer.
        self_check: largest difference of any output, relative to that output's largest absolute
            value; None if the bundle has no self-check.
    """

    engine: str
    latent: float
    text_states: float
    score: Agreement
    matrix: Agreement | None
    self_check: float | None


@dataclass(frozen=True)
class ParityReport:
    """Parity figures of one export.

    Attributes:
        reference: name of the reference, such as "PyTorch FP32, batch 1", or "none".
        pairs: number of scored (image, text) pairs.
        levels: number of noise levels per pair.
        runs: figures on ONNX Runtime; for FP16 another entry with emulated FP16 rounding, and
            another one of the form for CUDA if there is one.
    """

    reference: str
    pairs: int
    levels: int
    runs: tuple[Run, ...]

    def to_plain(self) -> dict[str, Any]:
        """The figures as `bundle.json` holds them."""
        plain: dict[str, Any] = to_plain(self)
        return plain


NOT_COMPARED = ParityReport("none", pairs=0, levels=0, runs=())
"""Report of an export that left the comparison out."""


def check_parity(
    bundle: Bundle,
    expected: Expected,
    recipe: Recipe,
    scratch: Path,
    step: Callable[[str], None] = lambda stage: None,
) -> ParityReport:
    """Compare a bundle's graphs with the reference.

    Args:
        bundle: the bundle that was just written.
        expected: outputs of the reference on a probe.
        recipe: ingredients of the export, used to find the first layer that differs.
        scratch: empty folder on the bundle's disk, for the emulated graphs.
        step: callback `(stage)`, called when a comparison begins.

    Raises:
        ParityError: the scores differ by more than the precision allows. The message names the
            first layer that differs.
    """
    import onnxruntime

    precision = bundle.manifest.precision
    version = f"onnxruntime {onnxruntime.__version__}"
    advice = _ADVICE[precision]
    candidates = [(version, bundle, advice)]
    if precision == "fp16":
        step("Emulating FP16")
        emulated = emulated_bundle(bundle, scratch)
        candidates.append((f"{version}, FP16 rounding emulated", emulated, advice))
    if bundle.manifest.cuda_form is not None:
        # Of the last candidate, which rounds as the bundle's precision does.
        engine, candidate, _ = candidates[-1]
        if precision == "fp32" and recipe.settings.cuda_form == "attention+group-norm":
            step("Writing out group normalisations")  # of which the CPU has no kernel at all
            candidate = emulated_bundle(bundle, scratch)
        candidates.append((f"{engine}, form for CUDA", in_cuda_form(candidate), _FORM_ADVICE))
    runs = []
    for engine, candidate, advice in candidates:
        step(f"Comparing with the reference: {engine}")
        run = measure(engine, candidate, expected)
        largest = float(np.abs(expected.scores).max())
        complaint = _complaint(run.score, precision, SCORE_TOLERANCE * max(1.0, largest))
        if complaint is None and run.matrix is not None:
            complaint = _complaint(run.matrix, precision, SCORE_TOLERANCE)
        if complaint:
            layer = _first_difference(candidate, expected, recipe, _LAYER_TOLERANCE[precision])
            raise ParityError(f"the {precision} graphs on {engine}: {complaint}. {layer}. {advice}")
        runs.append(run)
    probe = expected.probe
    return ParityReport(
        "PyTorch FP32, batch 1", expected.scores.size, len(probe.levels), tuple(runs)
    )


def measure(engine: str, bundle: Bundle, expected: Expected) -> Run:
    """Run a bundle's graphs end to end on ONNX Runtime and compare every output.

    Args:
        engine: name of the engine for the report.
        bundle: bundle to run, FP32 or FP16.
        expected: outputs of the reference on a probe.
    """
    backend = replace(ONNX_RUNTIME, frugal=is_large(bundle.folder))
    check = MeasuredCheck.read(bundle)

    def pipeline() -> Pipeline:
        """A new pipeline per step, so that a large model's graphs are in memory one at a time."""
        release_freed_memory()
        return Pipeline(bundle, backend, _MEMORY_MB, self_check=check or False)

    probe = expected.probe
    latent = pipeline().encode_images(list(probe.pixels))
    texts = pipeline().encode_texts(probe.texts)
    image, text = (places.ravel() for places in np.indices(expected.scores.shape))
    levels = np.array(probe.levels, np.int32)
    scores = pipeline().score(latent, texts, image, text, levels)  # (images * texts,)
    matrix = None
    if expected.matrix is not None:
        matrix = compare(pipeline().score_matrix(latent, texts, levels), expected.matrix)
    return Run(
        engine=engine,
        latent=_difference(latent, expected.latent),
        text_states=_difference(texts.states, expected.text_states),
        score=compare(scores.reshape(expected.scores.shape), expected.scores),
        matrix=matrix,
        self_check=check.largest if check else None,
    )


def emulated_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Write a bundle that ONNX Runtime computes on the CPU as a GPU would compute the given one.

    FP32 graphs round as FP16 graphs would, see `emulate_half`. Forms for CUDA have no operator
    without a kernel on the CPU, see `write_out_group_norms`.

    Args:
        bundle: bundle to emulate, FP16 or with forms for CUDA.
        folder: empty folder to write to; weights are cloned or copied.
    """
    manifest = bundle.manifest
    graphs = manifest.contract("fp32")
    written = [*(graph.file for graph in graphs.values()), *(manifest.cuda_form or {}).values()]
    for file in written:
        model = load_graph(bundle.path(file))
        if manifest.precision == "fp16":
            emulate_half(model)
        write_out_group_norms(model)
        save_graph(model, folder / file)
    if (check := SelfCheck.read(bundle)) is not None:
        write_widened(check.tensors, folder / FILE_NAME)
    adapter = [manifest.adapter.file] if manifest.adapter else []
    shared = (manifest.tokenizer.file, WEIGHTS_NAME, *adapter)
    for file in shared:
        clone_or_copy(bundle.path(file), folder / file)
    files = {file: manifest.files[file] for file in shared}
    files |= {
        file: file_entry(folder / file) for file in (*written, *([FILE_NAME] if check else []))
    }
    return write_manifest(
        folder, replace(manifest, precision="fp32", graphs=graphs, files=files, maps=None)
    )


def measured_tolerance(manifest: Manifest, measured: Iterable[float | None]) -> float:
    """The self-check's tolerance: the measured difference with a margin, at least the least.

    Args:
        manifest: manifest of the bundle, for its precision.
        measured: relative differences per engine, see `MeasuredCheck`; None entries are skipped.

    Returns:
        The tolerance, relative to an output's largest absolute value, with two digits.

    Raises:
        ParityError: the tolerance would be too wide to detect damage.
    """
    wanted = [least_tolerance(manifest), *(_MARGIN * it for it in measured if it is not None)]
    tolerance, most = float(np.max(wanted)), _MOST_TOLERANCE[manifest.precision]  # NaN if one is
    if not tolerance <= most:
        raise ParityError(
            f"the {manifest.precision} graphs differ from PyTorch by {tolerance / _MARGIN:.2g} of "
            f"an output's largest number, more than the allowed {most / _MARGIN:.2g}: no "
            "self-check could tell that from damage. Please report it with the model's "
            "config.json files"
        )
    return float(f"{tolerance:.2g}")


def _complaint(score: Agreement, precision: str, tolerance: float) -> str | None:
    """Reason why an agreement is not accepted; None if it is. NaN is never accepted."""
    if precision == "fp32":
        if score.max_difference <= tolerance:
            return None
        return f"scores differ by {score.max_difference:.2g}, more than the allowed {tolerance:.2g}"
    if score.spearman >= MIN_SPEARMAN and score.top1 >= MIN_TOP1:
        return None
    return (
        f"Spearman correlation {score.spearman:.5f} and top-1 agreement {score.top1:.1%}; at least "
        f"{MIN_SPEARMAN} and {MIN_TOP1:.0%} are required"
    )


def _first_difference(bundle: Bundle, expected: Expected, recipe: Recipe, tolerance: float) -> str:
    """A sentence that names the first layer to differ, or the one that differs most."""
    for name, feeds in expected.feeds().items():
        graph = bundle.manifest.graphs[name]
        if name == "pair_scorer":
            feeds |= adapter_feed(bundle)
        path = bundle.path(graph.file)
        # Not kept in a variable: one U-Net at a time is in memory.
        differences = layer_differences(recipe.module(name, "fp32"), feeds, path, graph)
        for difference in differences:
            if difference.relative > tolerance:
                return (
                    f"The first layer to differ is {difference.layer} of the {name} "
                    f"(relative difference {difference.relative:.2g})"
                )
    worst = max(differences, key=lambda difference: difference.relative)
    return (
        f"No layer differs by more than {tolerance:g} of its largest value; {worst.layer} of the "
        f"{name} differs most (relative difference {worst.relative:.2g})"
    )


def _difference(got: NDArray[Any], expected: NDArray[np.float32]) -> float:
    return float(np.abs(got.astype(np.float32) - expected).max())
