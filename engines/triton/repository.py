"""A model repository that Triton serves as it is, written from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsd_trt.batching import batch_sizes
from dsd_trt.bundle.folder import Bundle, file_entry
from dsd_trt.bundle.manifest import MANIFEST_NAME, Mode
from dsd_trt.engine.tensorrt.plan import Plan, plans
from dsd_trt.engines.triton import config
from dsd_trt.engines.triton.runtime import write_code
from dsd_trt.errors import BundleError, EngineError, InputError
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.files.folders import whole_folder
from dsd_trt.mode import choose_mode

ServedBy = Literal["onnxruntime", "tensorrt", "python"]

VERSION = "1"

_MATRIX_MEMORY_MB = 1024  # of the matrix scorer's activations, as `Scorer` allows them


@dataclass(frozen=True)
class Repository:
    """A model repository on disk.

    Attributes:
        folder: what `tritonserver --model-repository` is given.
        models: their names.
        mode: which score `dsd_score` gives.
        max_batch_size: of the models that serve graphs: what was asked for, or what the plans take.
        bytes_taken: of disk, by copied files; 0 where the file system clones.
    """

    folder: Path
    models: tuple[str, ...]
    mode: Mode
    max_batch_size: int
    bytes_taken: int


def write_repository(
    bundle: Bundle,
    out: Path,
    engine: ServedBy = "onnxruntime",
    max_batch_size: int = 32,
    limits: config.Limits | None = None,
    mode: Mode | Literal["auto"] = "auto",
    self_check: bool = True,
) -> Repository:
    """Write a repository, whole or not at all.

    Every model has graphs, weights and plans of its own, see `clone_or_copy`: neither the server's
    ONNX Runtime nor other programs take links.

    Args:
        bundle: a verified bundle.
        out: the repository's folder, which is not there yet, or empty.
        engine: what runs the graphs: Triton's ONNX Runtime or TensorRT backend, or the lean
            runtime inside its python backend.
        max_batch_size: most items of a graph's batch; fewer where a plan takes fewer.
        limits: of one request to `dsd_score`.
        mode: as for `Scorer`; "matrix" has no plans yet.
        self_check: whether the served graphs have to compute what the bundle knows of a few items.

    Raises:
        InputError: the folder holds something or cannot be written to, the bundle's adapter is an
            input that Triton's batcher cannot feed, bundle or engine lack the mode, or the disk is
            full.
        EngineError: a graph has no plan that Triton could load.
        BundleError: what was written is not what the bundle holds.
    """
    _require_empty(out)
    if bundle.manifest.adapter is not None and engine != "python":
        raise InputError(
            "the bundle's adapter is an input that is the same for a whole batch, which Triton's "
            "batcher cannot feed. Export again without --adapter-input, or: --engine python"
        )
    chosen = choose_mode(bundle.manifest, mode, None)
    if chosen == "matrix" and engine == "tensorrt":
        raise InputError(
            "matrix mode does not run on tensorrt yet: use --engine onnxruntime or python, or, for "
            "the other score, --mode pair"
        )
    graphs = config.GRAPHS[chosen]
    fitting = {name: _plans(bundle, name) for name in graphs} if engine == "tensorrt" else {}
    _check_together(bundle, fitting)
    # The first profile is the one Triton takes.
    takes = [it.sidecar.profiles[0].max for found in fitting.values() for it in found]
    size = min([max_batch_size, *takes])
    require_room(
        out,
        [it for name in graphs for it in _copies(bundle, name, fitting.get(name, [])).values()],
        "the repository",
        "Give a folder on another disk",
    )
    try:
        with whole_folder(out.resolve()) as unfinished:
            writer = _Writer(bundle, unfinished, engine, size, chosen, self_check)
            for name in graphs:
                writer.graph(name, fitting.get(name, []))
            writer.tokenizer()
            writer.score(limits or config.Limits())
            if chosen == "pair":
                writer.match()
            _require_copies(bundle, unfinished)
            _require_empty(out)  # still
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    rest = (config.TOKENIZER, config.SCORE, *([config.MATCH] if chosen == "pair" else []))
    models = (*map(config.model_of, graphs), *rest)
    return Repository(out, models, chosen, size, writer.bytes_taken)


def _require_copies(bundle: Bundle, folder: Path) -> None:
    """Read back what was written: a copy of a bundle's file is what `bundle.json` says of it.

    Raises:
        BundleError: one is not.
    """
    entries = bundle.manifest.files
    for path in folder.rglob("*"):
        if path.name in entries and path.is_file() and file_entry(path) != entries[path.name]:
            raise BundleError(
                f"the copy of {path.name!r} for {path.parent.parent.name} is not what the bundle "
                f"{bundle.folder} holds. Look after the disk, and write the repository again"
            )


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name another, or remove it first")


class _Writer:
    """Writes one model after another."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        engine: ServedBy,
        max_batch_size: int,
        mode: Mode,
        self_check: bool,
    ) -> None:
        self._bundle, self._manifest = bundle, bundle.manifest
        self._folder, self._engine, self._max, self._mode = folder, engine, max_batch_size, mode
        walks, texts = batch_sizes(self._manifest, _MATRIX_MEMORY_MB).matrix
        self._self_check = self_check
        self._block = min(walks, max_batch_size), texts
        self.bytes_taken = 0

    def graph(self, name: str, fitting: Sequence[Plan]) -> None:
        """The model that serves a graph."""
        graph = self._manifest.graphs[name]
        if self._engine == "tensorrt":
            runs = config.tensorrt({gpu: _plan_name(gpu) for gpu, _ in _by_gpu(fitting)})
        elif self._engine == "onnxruntime":
            runs = config.onnxruntime(graph)
        else:
            runs = config.lean_runtime(name, self._self_check)
        if graph.batched:
            text = config.graph_config(name, graph, runs, self._max)
        else:
            text = config.matrix_config(name, graph, runs, self._block)
        folder = self._model(config.model_of(name), text)
        for file, source in _copies(self._bundle, name, fitting).items():
            self._copy(source, folder / file)
        if self._engine == "python":
            self._code(folder, "graph")
            self._known(folder)
            if (adapter := self._manifest.adapter) is not None:
                self._copy(self._bundle.path(adapter.file), folder / adapter.file)

    def tokenizer(self) -> None:
        """`dsd_tokenizer`."""
        text = config.tokenizer_config(self._manifest, self._max)
        folder = self._model(config.TOKENIZER, text)
        self._code(folder, "tokenizer")
        file = self._manifest.tokenizer.file
        self._copy(self._bundle.path(file), folder / file)

    def score(self, limits: config.Limits) -> None:
        """`dsd_score`."""
        block = self._block if self._mode == "matrix" else None
        # What the lean runtime serves checks itself when it is loaded.
        self_check = self._self_check and self._engine != "python"
        text = config.score_config(self._max, limits, self_check, block)
        folder = self._model(config.SCORE, text)
        self._code(folder, "score")
        self._known(folder)
        file = self._manifest.tokenizer.file
        self._copy(self._bundle.path(file), folder / file)

    def match(self) -> None:
        """`dsd_match`, which is its configuration; an empty version's folder is easily lost."""
        folder = self._model(config.MATCH, config.match_config(self._manifest, self._max))
        self._copy(self._bundle.path(MANIFEST_NAME), folder / MANIFEST_NAME)

    def _known(self, folder: Path) -> None:
        """What a self-check compares with."""
        if (check := self._manifest.self_check) is not None:
            self._copy(self._bundle.path(check.file), folder / check.file)

    def _copy(self, source: Path, target: Path) -> None:
        self.bytes_taken += clone_or_copy(source, target)

    def _model(self, name: str, text: str) -> Path:
        """Write a model's configuration, and make the folder of its first version."""
        config.check_config(name, text)
        folder = self._folder / name / VERSION
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(text, encoding="utf-8")
        return folder

    def _code(self, folder: Path, module: str) -> None:
        """Write a python model: its module, the runtime's, and the bundle's description."""
        write_code(folder, module)
        self._copy(self._bundle.path(MANIFEST_NAME), folder / MANIFEST_NAME)


def _copies(bundle: Bundle, name: str, fitting: Sequence[Plan]) -> dict[str, Path]:
    """What a graph's model is given, by the name it has there: its plans, or graph and weights."""
    if fitting:
        return {_plan_name(gpu): plan.path for gpu, plan in _by_gpu(fitting)}
    wanted = (bundle.manifest.graphs[name].file, *bundle.manifest.weight_files)
    return {file: bundle.path(file) for file in wanted}


def _by_gpu(fitting: Sequence[Plan]) -> list[tuple[str, Plan]]:
    """Plans by the compute capabilities they are for."""
    return [(gpu, plan) for plan in fitting for gpu in plan.sidecar.compute_capabilities]


def _plan_name(capability: str) -> str:
    return f"sm{capability.replace('.', '')}.plan"


def _plans(bundle: Bundle, name: str) -> list[Plan]:
    """A graph's plans, one a compute capability: of several, the one for the largest batches.

    Raises:
        EngineError: there is none that belongs to this export and takes batches of one.
    """
    wanted = bundle.manifest.graph_hash(name)
    found: dict[tuple[str, ...], Plan] = {}
    for plan in sorted(plans(bundle.folder), key=lambda plan: plan.sidecar.profiles[0].max):
        it = plan.sidecar
        if (it.graph, it.library, it.graph_hash) != (name, "tensorrt", wanted):
            continue
        if it.profiles[0].min == 1:
            found[it.compute_capabilities] = plan
    if not found:
        raise EngineError(
            f"{bundle.folder} has no tensorrt plan of its {name} that takes batches from 1 on and "
            f"belongs to this export. Build one, on each kind of GPU that is to serve: "
            f"dsd-trt build {bundle.folder} --engine tensorrt --batch 1,8,32"
        )
    return list(found.values())


def _check_together(bundle: Bundle, fitting: dict[str, list[Plan]]) -> None:
    """A server has one TensorRT, which reads plans of its version alone, and needs every graph's.

    Raises:
        EngineError: plans of several versions, or for a GPU that another graph has no plan for.
    """
    versions = {plan.sidecar.version for found in fitting.values() for plan in found}
    if len(versions) > 1:
        raise EngineError(
            f"the plans in {bundle.folder} are of several versions of TensorRT, "
            f"{', '.join(sorted(versions))}, and a server reads one. Remove those of the others"
        )
    able = {
        name: {gpu for plan in found for gpu in plan.sidecar.compute_capabilities}
        for name, found in fitting.items()
    }
    for gpu in sorted(set().union(*able.values())):
        if lacking := [name for name, gpus in able.items() if gpu not in gpus]:
            raise EngineError(
                f"{bundle.folder} has plans for GPUs of compute capability {gpu}, but none of its "
                f"{', '.join(lacking)}. Build on such a GPU: "
                f"dsd-trt build {bundle.folder} --graphs {','.join(lacking)}"
            )
