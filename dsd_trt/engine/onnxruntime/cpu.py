"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dsd_trt.batching import MAX_TEXTS, BatchSizes, walks_at_once
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle, is_large
from dsd_trt.engine import Backend, Engine, EngineDescription, check_signature, thread_limit
from dsd_trt.engine.elf import why_cut
from dsd_trt.engine.onnxruntime.editions import installed_editions, package_folder
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line
from dsd_trt.installation import install_command, reinstall_command, uninstall_command

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDER = "CPUExecutionProvider"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU; see `Backend`.

    Attributes:
        frugal: whether FP16 weights are widened on use, as for `OnnxRuntimeEngine`.
    """

    frugal: bool = False

    def require(self) -> None:
        """See `Backend.require`."""
        load_library()

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """See `Backend.batch_sizes`."""
        sizes = super().batch_sizes(bundle, memory_budget_mb)
        walks = min(walks_at_once(is_large(bundle.folder))[0], sizes.passes)
        return replace(sizes, matrix=(walks, MAX_TEXTS))

    def open(self, bundle: Bundle, graph: str) -> Engine:
        """See `Backend.open`."""
        signature = bundle.manifest.graphs[graph]
        path, threads = bundle.path(signature.file), self.threads
        if signature.batched:
            return OnnxRuntimeEngine(path, signature, frugal=self.frugal, threads=threads)
        from dsd_trt.engine.onnxruntime.matrix import OnnxRuntimeMatrixEngine

        large = is_large(bundle.folder)
        return OnnxRuntimeMatrixEngine(
            path, signature, large=large, frugal=self.frugal, threads=threads
        )


CPU = OnnxRuntime("onnxruntime", "ONNX Runtime", extra="cpu")


def load_library() -> Any:
    """Import ONNX Runtime.

    Raises:
        EngineError: ONNX Runtime is not installed, or lacks files.
    """
    try:
        package = package_folder()
        if package is not None and (why := why_cut(package / "capi", "*pybind*.so")) is not None:
            raise ImportError(why)
        import onnxruntime

        if onnxruntime.__file__ is None:  # what uninstalling another edition leaves
            raise ImportError(f"{package} has no code")
    except ImportError as error:
        raise EngineError(f"{CPU.name} cannot be used here ({error}). {_remedy()}") from error
    return onnxruntime


def _remedy() -> str:
    """Command that installs the library, or the edition of it whose files are not all there."""
    package = package_folder()
    editions = [] if package is None else installed_editions(package)
    if not editions:
        return f"Install it with: {install_command(CPU.extra)}"
    if len(editions) == 1:
        pinned = f"{editions[0].name}=={editions[0].version}"
        return f"{editions[0]} lacks files. Install it again: {reinstall_command(pinned)}"
    return (
        f"{' and '.join(map(str, editions))} have overwritten each other's files. Remove both and "
        f"install one: {uninstall_command(*(it.name for it in editions))} && "
        f"{install_command(CPU.extra)}"
    )


class OnnxRuntimeEngine(SharedEngine):
    """A graph in an ONNX Runtime session; see `Engine`.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        frugal: whether to widen FP16 weights on every use instead of once. A large graph then opens
            at once and takes half the memory, but its runs take a third longer.
        threads: number of threads to compute with; None is one per core.
    """

    def __init__(
        self, path: Path, graph: Graph, *, frugal: bool = False, threads: int | None = None
    ) -> None:
        super().__init__(graph)
        options = session_options(threads)
        try:
            self._session = open_session(path, options, frugal=frugal)
            inputs = [tensor_spec(tensor) for tensor in self._session.get_inputs()]
            outputs = [tensor_spec(tensor) for tensor in self._session.get_outputs()]
        except EngineError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"onnxruntime refuses {path}: {one_line(error, 800)}") from error
        check_signature(path, graph, inputs, outputs)
        self._outputs = [spec.name for spec in outputs]
        self.description: EngineDescription = describe(graph)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return run_session(self._session, self._outputs, feeds)

    def _release(self) -> None:
        del self._session


def session_options(threads: int | None) -> ort.SessionOptions:
    """Options of every session; `threads` as for `OnnxRuntimeEngine`."""
    options = load_library().SessionOptions()
    options.log_severity_level = 3  # errors only, which are also raised
    options.intra_op_num_threads = threads or thread_limit() or 0  # 0: one per physical core
    # Waiting threads sleep: faster at batches of 32, and other programs get the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    path: Path, options: ort.SessionOptions, *, frugal: bool, part: bytes | None = None
) -> ort.InferenceSession:
    """Open a graph on the CPU.

    Args:
        path: path of the ONNX file.
        options: options of the session, which are modified.
        frugal: whether to widen FP16 weights on every use, as for `OnnxRuntimeEngine`.
        part: content of an ONNX file to open in its place, with weights in the same files.
    """
    library, unwanted = load_library(), []
    if frugal:  # optimisations would fold the casts of weights, and the arena keeps freed memory
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False
        unwanted = ["ConstantFolding"]
    if part is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    session: ort.InferenceSession = library.InferenceSession(
        path if part is None else part,
        options,
        [PROVIDER],
        disabled_optimizers=unwanted,
        enable_fallback=0,  # else it prints a message about the provider on standard output
    )
    if session.get_providers() != [PROVIDER]:
        raise EngineError(f"onnxruntime took {session.get_providers()} for {PROVIDER}")
    return session


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run a session once.

    Args:
        session: session of a graph, or of a part of one.
        outputs: names of the outputs to compute.
        feeds: one array per input, by name.

    Raises:
        EngineError: ONNX Runtime failed to run it.
    """
    try:
        results = session.run(outputs, dict(feeds))
    except Exception as error:  # its exceptions share no base class
        raise EngineError(f"onnxruntime failed: {one_line(error, 800)}") from error
    return dict(zip(outputs, results, strict=True))


def describe(graph: Graph) -> EngineDescription:
    """Description of an engine of a graph."""
    half = any(spec.dtype == "float16" for spec in (*graph.inputs, *graph.outputs))
    return EngineDescription(
        f"onnxruntime {load_library().__version__}",
        "CPU",
        # It has no FP16 kernels on the CPU: such graphs are computed in FP32.
        "fp32 (from fp16 weights)" if half else "fp32",
    )


def tensor_spec(tensor: Any) -> TensorSpec:
    """An input or output of a session as the contract describes tensors; "?" is an open size."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype: Any = "float32" if kind == "float" else kind
    return TensorSpec(
        tensor.name, dtype, tuple(d if isinstance(d, int) else "?" for d in tensor.shape)
    )
