"""PyTorch on a GPU, beside an engine: the same model, inputs, batch sizes and precision."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engines.gpu_check.feeds import MATRIX_SIZES, draw_feeds
from dsd_trt.engines.gpu_check.figures import MATRIX, PAIR, REPEATS, CountMacs, Timing
from dsd_trt.engines.gpu_check.recorder import Recorder
from dsd_trt.errors import InputError, one_line
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.checkpoint import encode_texts
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

EAGER, SDPA = "eager, attention as plain math", "eager, SDPA"
GRAPH, COMPILED = "CUDA graph of SDPA", "torch.compile"
MATRIX_EAGER = "matrix mode, eager, SDPA"

_WARM_UP = 3

Run = Callable[[], Any]
Scorer = TypeVar("Scorer", ScoringUNet, MatrixScorer)


def read_recipe(bundle: Bundle, model: str, adapter: Path | None) -> Recipe:
    """The recipe of a bundle's export; only configurations are read.

    Args:
        bundle: the verified bundle, whose graphs have the sizes.
        model: checkpoint the bundle was exported from, as `find_model` takes it.
        adapter: folder of the bundle's adapter; None for none.

    Raises:
        ModelError: checkpoint or adapter cannot be read, or do not belong together.
        InputError: the bundle was not exported from such a checkpoint.
    """
    manifest = bundle.manifest
    method, matrix = manifest.method, manifest.matrix
    recipe = Recipe.read(
        ExportSettings(
            model=model,
            adapter=adapter,
            precision=manifest.precision,
            score_layers="all" if method.score == "released" else method.score_layers,
            levels=method.noise_levels.fractions,
            noise_seed=method.noise_levels.seed,
            token_mask=method.token_mask,
            score=method.score,
            matrix=matrix is not None,
            query_pool=1 if matrix is None else matrix.query_pool,
        )
    )
    wanted, found = _inputs(manifest), _inputs(recipe.manifest)
    if wanted != found:
        name = next(it for it in wanted if wanted[it] != found.get(it))
        raise InputError(
            f"--model {model}: its {name} takes {found.get(name)}, the bundle's {wanted[name]}. "
            "Name the checkpoint that the bundle was exported from"
        )
    return recipe


def _inputs(manifest: Manifest) -> dict[str, str]:
    """Inputs of each graph besides an adapter, as text."""
    return {
        name: ", ".join(str(spec) for spec in graph.inputs if spec.name != "adapter")
        for name, graph in manifest.graphs.items()
    }


def measure_peers(
    steps: Recorder,
    bundle: Bundle,
    recipe: Recipe,
    device: torch.device,
    batches: Sequence[int],
    *,
    macs: CountMacs | None = None,
    matrix_sizes: Mapping[str, int] = MATRIX_SIZES,
    repeats: int = REPEATS,
    side: int = 8192,
) -> None:
    """Time PyTorch as an engine was timed, and note all figures.

    A contender that fails becomes a line of the report; the others are still measured. What takes
    longest comes last: compiling, the largest batch first.

    Args:
        steps: where figures go; its report has the engine's scores of the best batch.
        bundle: the verified bundle, whose graphs have the sizes.
        recipe: recipe of its export, from `read_recipe`.
        device: device to compute on.
        batches: batch sizes of the pair scorer; the engine's own where it was timed.
        macs: counts the arithmetic of a pass; None leaves it out.
        matrix_sizes: sizes of the matrix scorer's pass.
        repeats: number of timed passes.
        side: side of the square matrices whose FP16 product is timed as the GPU's peak.
    """
    peers = _Peers(steps, bundle, device, macs, repeats)
    timed = [it.rows for it in steps.report.run.timings if it.graph == PAIR]
    batches = sorted({*(timed or batches)})
    with torch.no_grad(), _on(device), peers.attempt("PyTorch"):
        with peers.attempt("large product"):
            peers.product(side)
        steps.stage("Reading the checkpoint for PyTorch")
        scoring = _scoring(recipe, device)
        peers.pairs(scoring, batches)
        _release(device)
        if bundle.manifest.matrix is not None:
            with peers.attempt(MATRIX_EAGER):
                peers.eager(MATRIX_EAGER, MATRIX, _matrix(recipe, device), matrix_sizes)
            _release(device)
        peers.compiled(scoring, batches)
        if device.type == "cuda":
            steps.note(peer_memory_bytes=torch.cuda.max_memory_reserved(device))


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Choose the GPU. FP32 is FP32, as on the engines: convolutions do not round to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _scoring(recipe: Recipe, device: torch.device) -> ScoringUNet:
    """The scoring U-Net in the bundle's precision, with static prompts folded in."""
    half = recipe.settings.precision == "fp16"
    unet = recipe.checkpoint.read_unet(torch.float16 if half else torch.float32)
    return _placed(recipe.build_scoring(unet), device, half)


def _matrix(recipe: Recipe, device: torch.device) -> MatrixScorer:
    """The matrix scorer in the bundle's precision, with static prompts folded in."""
    half = recipe.settings.precision == "fp16"
    dtype = torch.float16 if half else torch.float32
    unconditional = encode_texts(recipe.checkpoint, [""])[0].to(dtype)
    recipe.checkpoint.forget()
    scoring = recipe.build_scoring(recipe.checkpoint.read_unet(dtype))
    return _placed(recipe.build_matrix(scoring, unconditional), device, half)


def _placed(scorer: Scorer, device: torch.device, half: bool) -> Scorer:
    scorer.fold_static_prompts()
    scoring = scorer.scoring if isinstance(scorer, MatrixScorer) else scorer
    if half and scoring.prompts is not None:
        scoring.prompts.half()
    return scorer.to(device).eval().requires_grad_(False)


def _release(device: torch.device) -> None:
    """Give memory of what is no longer used back to the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Peers:
    """Contenders that are timed one after another; arguments as for `measure_peers`."""

    def __init__(
        self,
        steps: Recorder,
        bundle: Bundle,
        device: torch.device,
        macs: CountMacs | None,
        repeats: int,
    ) -> None:
        self._steps, self._bundle, self._device = steps, bundle, device
        self._macs, self._repeats = macs, repeats

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A block whose error, of whatever library, becomes a line of the report."""
        try:
            yield
        except Exception as error:
            why = f"{type(error).__name__}: {one_line(error, 300)}"
            self._steps.note(peer_failures={**self._steps.report.peer_failures, name: why})
            _release(self._device)

    def product(self, side: int) -> None:
        """Time one large FP16 matrix product."""
        self._steps.stage("Timing a large product with PyTorch")
        a, b = (torch.randn(side, side, device=self._device).half() for _ in range(2))
        rate = 2 * side**3 / clock(lambda: a @ b, self._device, self._repeats) / 1e12
        self._steps.note(peak_tflops={**self._steps.report.peak_tflops, "torch": rate})

    def pairs(self, scoring: ScoringUNet, batches: Sequence[int]) -> None:
        """Time the eager contenders, and their recording."""
        for rows in batches:
            with sdpa_kernel(SDPBackend.MATH):
                self.eager(EAGER, PAIR, scoring, {"B": rows})
            self.eager(SDPA, PAIR, scoring, {"B": rows})
            with self._attempt_batch(GRAPH, rows):
                inputs = self._inputs(PAIR, {"B": rows})
                began = time.monotonic()
                replay, outputs = _record(partial(scoring, *inputs), self._device)
                self._prepared(GRAPH, began)

                def replayed(replay: Run = replay, outputs: Any = outputs) -> Any:
                    replay()
                    return outputs

                self._note(GRAPH, PAIR, {"B": rows}, replayed)

    def eager(self, name: str, graph: str, module: nn.Module, sizes: Mapping[str, int]) -> None:
        """Time a module as it is."""
        with self._attempt_batch(name, sizes.get("B")):
            self._note(name, graph, sizes, partial(module, *self._inputs(graph, sizes)))

    def compiled(self, scoring: ScoringUNet, batches: Sequence[int]) -> None:
        """Time the compiled module; each batch size is compiled for itself.

        The exported program is compiled, because `torch.compile` cannot trace the generator.
        """
        for rows in sorted(batches, reverse=True):
            with self._attempt_batch(COMPILED, rows):
                self._steps.stage(f"Compiling with PyTorch, batch {rows}")
                inputs = self._inputs(PAIR, {"B": rows})
                began = time.monotonic()
                program = torch.export.export(scoring, inputs).module()
                run: Callable[..., Any] = torch.compile(program)
                run(*inputs)
                self._prepared(COMPILED, began)
                self._note(COMPILED, PAIR, {"B": rows}, partial(run, *inputs))

    @contextmanager
    def _attempt_batch(self, name: str, rows: int | None) -> Iterator[None]:
        """As `attempt`, for one batch size of a contender."""
        with self.attempt(name if rows is None else f"{name}, batch {rows}"):
            yield

    def _inputs(self, graph: str, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """The inputs that the engine was timed with, in the module's order."""
        feeds = draw_feeds(self._bundle, graph, sizes)
        feeds.pop("adapter", None)  # it is folded in
        return tuple(torch.from_numpy(values).to(self._device) for values in feeds.values())

    def _note(self, name: str, graph: str, sizes: Mapping[str, int], run: Run) -> None:
        """Time a contender, compare its scores with the engine's, and note both."""
        self._steps.stage(f"Timing PyTorch, {name}")
        counted = None if self._macs is None else self._macs(graph, sizes)
        timing = Timing.of(graph, clock(run, self._device, self._repeats), sizes, counted)
        before = self._steps.report.peers.get(name)
        timings = (*(before.timings if before else ()), timing)
        self._steps.note_peer(name, timings=tuple(sorted(timings, key=lambda it: it.rows)))
        expected = self._steps.report.scores
        if graph == PAIR and sizes["B"] == len(expected):
            scores = run()[0].float().cpu().numpy()
            difference = float(np.abs(scores - np.array(expected)).max())
            if np.isfinite(difference):
                self._steps.note_peer(name, max_difference=difference)
            else:
                raise ValueError("a score is NaN or infinite")

    def _prepared(self, name: str, began: float) -> None:
        """Add the time that a contender took before its first timed pass."""
        before = self._steps.report.peers.get(name)
        seconds = time.monotonic() - began + (before.seconds_to_prepare if before else 0.0)
        self._steps.note_peer(name, seconds_to_prepare=seconds)


def _record(run: Run, device: torch.device) -> tuple[Run, Any]:
    """Record work as a CUDA graph: what replays it, and the outputs that it fills.

    Raises:
        ValueError: the device records none.
    """
    if device.type != "cuda":
        raise ValueError(f"a device of type {device.type} records no CUDA graphs")
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


def clock(run: Run, device: torch.device, repeats: int) -> float:
    """Median time of single runs in seconds, after a warm-up, by a GPU's own clock.

    Runs are queued ahead on a GPU, which suits PyTorch best: nothing waits for its interpreter
    unless it is the slower one.

    Args:
        run: function without arguments, which queues the work to time.
        device: device that it runs on.
        repeats: number of timed runs.
    """
    for _ in range(_WARM_UP):
        run()
    if device.type != "cuda":
        return statistics.median(_seconds(run) for _ in range(repeats))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(it.elapsed_time(after) for it, after in pairwise(marks)) / 1000


def _seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
