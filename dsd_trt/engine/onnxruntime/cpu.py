"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Backend, EngineDescription, check_signature, thread_limit
from dsd_trt.engine.elf import why_cut
from dsd_trt.engine.onnxruntime.editions import installed_editions, package_folder
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line
from dsd_trt.installation import install_command, reinstall_command, uninstall_command

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDER = "CPUExecutionProvider"


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

    def open(self, bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        """See `Backend.open`."""
        signature = bundle.manifest.graphs[graph]
        path = bundle.path(signature.file)
        return OnnxRuntimeEngine(path, signature, frugal=self.frugal, threads=self.threads)


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
        ort = load_library()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only, which are also raised
        options.intra_op_num_threads = threads or thread_limit() or 0  # 0: one per physical core
        # Waiting threads sleep: faster at batches of 32, and other programs get the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = open_session(path, options, frugal=frugal)
            inputs = [tensor_spec(tensor) for tensor in self._session.get_inputs()]
            outputs = [tensor_spec(tensor) for tensor in self._session.get_outputs()]
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"onnxruntime refuses {path}: {one_line(error, 800)}") from error
        if self._session.get_providers() != [PROVIDER]:
            raise EngineError(f"onnxruntime took {self._session.get_providers()} for {PROVIDER}")
        check_signature(path, graph, inputs, outputs)
        self._outputs = [spec.name for spec in outputs]
        half = any(spec.dtype == "float16" for spec in (*graph.inputs, *graph.outputs))
        self.description = EngineDescription(
            f"onnxruntime {ort.__version__}",
            "CPU",
            # It has no FP16 kernels on the CPU: such graphs are computed in FP32.
            "fp32 (from fp16 weights)" if half else "fp32",
        )

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise EngineError(f"onnxruntime failed: {one_line(error, 800)}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _release(self) -> None:
        del self._session


def open_session(path: Path, options: ort.SessionOptions, *, frugal: bool) -> ort.InferenceSession:
    """Open a graph on the CPU; `options` is modified, `frugal` as for `OnnxRuntimeEngine`."""
    library, unwanted = load_library(), []
    if frugal:  # optimisations would fold the casts of weights, and the arena keeps freed memory
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False
        unwanted = ["ConstantFolding"]
    session: ort.InferenceSession = library.InferenceSession(
        path,
        options,
        [PROVIDER],
        disabled_optimizers=unwanted,
        enable_fallback=0,  # else it prints a message about the provider on standard output
    )
    return session


def tensor_spec(tensor: Any) -> TensorSpec:
    """An input or output of a session as the contract describes tensors; "?" is an open size."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype: Any = "float32" if kind == "float" else kind
    return TensorSpec(
        tensor.name, dtype, tuple(d if isinstance(d, int) else "?" for d in tensor.shape)
    )
