"""Write a model repository that Triton can serve, from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsd_trt.batching import batch_sizes
from dsd_trt.bundle.folder import Bundle, file_entry
from dsd_trt.bundle.manifest import MANIFEST_NAME
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import why_no_probability
from dsd_trt.engine.tensorrt.plan import Plan, plans
from dsd_trt.engines.triton import config
from dsd_trt.engines.triton.runtime import write_code
from dsd_trt.errors import BundleError, EngineError, InputError
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.files.folders import whole_folder
from dsd_trt.log import get_logger
from dsd_trt.mode import choose_mode

ServedBy = Literal["onnxruntime", "tensorrt", "python"]

VERSION = "1"

logger = get_logger(__name__)

_MATRIX_MEMORY_MB = 1024  # for the matrix scorer's activations, the default of `Scorer`


@dataclass(frozen=True)
class Repository:
    """A model repository on disk.

    Attributes:
        folder: folder for `tritonserver --model-repository`.
        models: names of the models, in order of execution.
        mode: mode of the scores that `dsd_score` returns, "pair" or "matrix".
        max_batch_size: greatest batch of the models that serve graphs: the requested one, or
            fewer items if the plans accept fewer.
        bytes_taken: disk space of the copied files, in bytes; 0 if the file system clones.
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
    lists: bool = True,
) -> Repository:
    """Write a repository, completely or not at all.

    Every model has its own copies of graphs, weights and plans (`clone_or_copy`), because the
    server's ONNX Runtime and other programs refuse links.

    Args:
        bundle: a verified bundle, with plans if `engine` is "tensorrt".
        out: folder of the repository, which must be missing or empty.
        engine: backend of the graphs: Triton's ONNX Runtime or TensorRT backend, or the lean
            runtime inside its python backend ("python").
        max_batch_size: greatest number of items in a graph's batch; a plan may lower it.
        limits: limits of one request to `dsd_score` and `dsd_rank_texts`; None means the defaults
            of each.
        mode: mode of the scores, "pair", "matrix" or "auto" as for `Scorer`; Triton's TensorRT
            backend does not serve "matrix", whose two plans share memory.
        self_check: whether the served graphs must pass the bundle's self-check.
        lists: whether pair mode also serves the matrix scorer, with which `dsd_rank_texts` makes
            lists, if the bundle has measured some of texts. TensorRT's backend does not serve it.

    Raises:
        InputError: `out` is not empty or not writable, the disk is full, bundle or engine lack
            the mode, or the bundle's adapter is an input, which Triton's batcher cannot feed.
        EngineError: a graph has no plan that Triton can load.
        BundleError: a written copy differs from the bundle's file.
    """
    require_empty(out)
    if bundle.manifest.adapter is not None and engine != "python":
        raise InputError(
            "the bundle's adapter is an input that is the same for a whole batch, which Triton's "
            "batcher cannot feed. Run dsd-trt export without --adapter-input. Or: --engine python"
        )
    chosen = choose_mode(bundle.manifest, mode, None)
    require_served(chosen, engine)
    if why := why_no_probability(bundle.manifest, chosen, bundle=str(bundle.folder)):
        logger.warning("%s", why)
    with_lists = lists and chosen == "pair" and engine != "tensorrt" and _has_lists(bundle)
    graphs = config.GRAPHS[chosen] + (("matrix_scorer",) if with_lists else ())
    fitting = {name: _plans(bundle, name) for name in graphs} if engine == "tensorrt" else {}
    _check_together(bundle, fitting)
    # Triton uses the first profile of a plan.
    takes = [it.sidecar.profiles[0].max for found in fitting.values() for it in found]
    size = min([max_batch_size, *takes])
    copies = [_copies(bundle, name, fitting.get(name, []), engine) for name in graphs]
    require_room(
        out,
        [it for found in copies for it in found.values()],
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
                writer.rank_texts(limits or config.RANK_LIMITS, with_lists)
                writer.match()
            _require_copies(bundle, unfinished)
            require_empty(out)  # again: another process may have filled it since
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    of_pairs = (config.RANK_TEXTS, config.MATCH) if chosen == "pair" else ()
    models = (*map(config.model_of, graphs), config.TOKENIZER, config.SCORE, *of_pairs)
    return Repository(out, models, chosen, size, writer.bytes_taken)


def _has_lists(bundle: Bundle) -> bool:
    """Whether searches for an image's best texts can make lists."""
    matrix = bundle.manifest.matrix
    lists = matrix.lists if matrix else None
    return lists is not None and lists.measured("texts", 1) is not None


def _require_copies(bundle: Bundle, folder: Path) -> None:
    """Read the written copies back and compare them with the hashes in `bundle.json`.

    Raises:
        BundleError: a copied file differs from the bundle's.
    """
    entries = bundle.manifest.files
    for path in folder.rglob("*"):
        if path.name in entries and path.is_file() and file_entry(path) != entries[path.name]:
            raise BundleError(
                f"the copy of {path.name!r} for {path.parent.parent.name} is not what the bundle "
                f"{bundle.folder} holds. Look after the disk, and write the repository again"
            )


def require_served(mode: Mode | Literal["auto"], engine: ServedBy) -> None:
    """Refuse a mode that Triton's backend does not serve.

    Raises:
        InputError: it is matrix mode on TensorRT.
    """
    if mode == "matrix" and engine == "tensorrt":
        raise InputError(
            "matrix mode does not run on tensorrt yet: use --engine onnxruntime or python, or, for "
            "the other score, --mode pair"
        )


def require_empty(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: it is not empty, or no folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name another, or remove it first")


class _Writer:
    """Writer of a repository's models, one method per kind of model."""

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
        # A list takes one walk.
        self._block = min(walks, max_batch_size) if mode == "matrix" else 1, texts
        self.bytes_taken = 0

    def graph(self, name: str, fitting: Sequence[Plan]) -> None:
        """Write the model that serves a graph; `fitting` are its plans, if TensorRT runs it."""
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
        for file, source in _copies(self._bundle, name, fitting, self._engine).items():
            self._copy(source, folder / file)
        if self._engine == "python":
            self._code(folder, "graph")
            self._known(folder)
            if (adapter := self._manifest.adapter) is not None:
                self._copy(self._bundle.path(adapter.file), folder / adapter.file)

    def tokenizer(self) -> None:
        """Write `dsd_tokenizer`."""
        text = config.tokenizer_config(self._manifest, self._max)
        folder = self._model(config.TOKENIZER, text)
        self._code(folder, "tokenizer")
        file = self._manifest.tokenizer.file
        self._copy(self._bundle.path(file), folder / file)

    def score(self, limits: config.Limits) -> None:
        """Write `dsd_score`."""
        block = self._block if self._mode == "matrix" else None
        text = config.score_config(self._max, limits, self._checked_by_clients, block)
        self._served(config.SCORE, text, "score")

    def rank_texts(self, limits: config.Limits, with_lists: bool) -> None:
        """Write `dsd_rank_texts`, which asks the matrix scorer for lists if it is to make some."""
        block = self._block if with_lists else None
        text = config.rank_texts_config(
            self._manifest, self._max, limits, self._checked_by_clients, block
        )
        self._served(config.RANK_TEXTS, text, "rank_texts")

    @property
    def _checked_by_clients(self) -> bool:
        """Whether models that ask the graphs check them: the lean runtime's check themselves."""
        return self._self_check and self._engine != "python"

    def _served(self, name: str, text: str, module: str) -> None:
        """Write a model that clients send images and texts to."""
        folder = self._model(name, text)
        self._code(folder, module)
        self._known(folder)
        file = self._manifest.tokenizer.file
        self._copy(self._bundle.path(file), folder / file)

    def match(self) -> None:
        """Write `dsd_match`, a configuration only.

        Its version folder gets a copy of the manifest, because empty folders are easily lost.
        """
        folder = self._model(config.MATCH, config.match_config(self._manifest, self._max))
        self._copy(self._bundle.path(MANIFEST_NAME), folder / MANIFEST_NAME)

    def _known(self, folder: Path) -> None:
        """Copy the self-check's file, if the bundle has one."""
        if (check := self._manifest.self_check) is not None:
            self._copy(self._bundle.path(check.file), folder / check.file)

    def _copy(self, source: Path, target: Path) -> None:
        self.bytes_taken += clone_or_copy(source, target)

    def _model(self, name: str, text: str) -> Path:
        """Write a model's configuration and create its version folder, which is returned."""
        config.check_config(name, text)
        folder = self._folder / name / VERSION
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(text, encoding="utf-8")
        return folder

    def _code(self, folder: Path, module: str) -> None:
        """Write a python model: its module, the runtime's modules, and the manifest."""
        write_code(folder, module)
        self._copy(self._bundle.path(MANIFEST_NAME), folder / MANIFEST_NAME)


def _copies(
    bundle: Bundle, name: str, fitting: Sequence[Plan], engine: ServedBy
) -> dict[str, Path]:
    """Sources of a graph's files by their name in the model: plans, or graph, form and weights.

    Only the lean runtime takes a form for CUDA, because it checks it first.
    """
    if fitting:
        return {_plan_name(gpu): plan.path for gpu, plan in _by_gpu(fitting)}
    manifest = bundle.manifest
    wanted = [manifest.graphs[name].file, *manifest.weight_files]
    if engine == "python" and (form := (manifest.cuda_form or {}).get(name)) is not None:
        wanted.append(form)
    return {file: bundle.path(file) for file in wanted}


def _by_gpu(fitting: Sequence[Plan]) -> list[tuple[str, Plan]]:
    """Pairs of a compute capability and a plan built for it."""
    return [(gpu, plan) for plan in fitting for gpu in plan.sidecar.compute_capabilities]


def _plan_name(capability: str) -> str:
    return f"sm{capability.replace('.', '')}.plan"


def _plans(bundle: Bundle, name: str) -> list[Plan]:
    """A graph's plans, one per compute capability; the one with the largest batches wins.

    Raises:
        EngineError: no plan belongs to this export and accepts batches of one.
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
    """Check that one server can load all plans: it has one TensorRT and needs every graph.

    Raises:
        EngineError: the plans are of several versions, or a graph lacks a plan for a GPU that
            another graph has a plan for.
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
