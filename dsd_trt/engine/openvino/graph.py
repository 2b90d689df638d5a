"""A graph as OpenVINO reads it on the CPU, through its own package.

OpenVINO's plugin for ONNX Runtime is not used: it lists no device on AMD CPUs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.cache import cache_folder
from dsd_trt.engine import EngineDescription, check_signature, thread_limit
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.engine.openvino.compiled import STORE, is_kept, kept_compiled
from dsd_trt.engine.openvino.libraries import require_whole
from dsd_trt.engine.shared import require_process
from dsd_trt.errors import EngineError, one_line
from dsd_trt.files.disk import in_gigabytes, nearest_folder
from dsd_trt.files.whole import sha256_of
from dsd_trt.installation import install_command
from dsd_trt.limits import COMPILED_BYTES
from dsd_trt.log import get_logger

logger = get_logger(__name__)

require_whole()
try:
    import openvino as ov
    from openvino.frontend import FrontEndManager
except ImportError as error:
    raise EngineError(
        f"openvino cannot be used here ({error}). Install it with: {install_command(FP32.extra)}"
    ) from error

DEVICE = "CPU"
_SPARE = 2**28  # bytes of the disk that a large compiled model leaves to others
_PRECISIONS = {"f32": "fp32", "f16": "fp16"}  # names used in the rest of the package

# OpenVINO changes the process's locale while it reads and writes compiled models. Threads that
# do so concurrently leave it changed, or deadlock.
_compiling = threading.RLock()  # a signal handler may interrupt


@functools.cache
def _first_process() -> int:
    """The process that opened a graph first: OpenVINO's threads do not exist in its forks."""
    return os.getpid()


@functools.cache
def _core() -> ov.Core:
    """OpenVINO's core, loaded once and shared by all threads.

    Its plugin gives the loading thread a signal stack, and frees it with the last core and graph,
    in any thread. The loading thread would then die of its next signal.
    """
    return ov.Core()


_LIMIT = "ONEDNN_MAX_CPU_ISA"
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")
"""Variable that limits oneDNN's instructions, and values with which OpenVINO still reports BF16 and
then refuses to compile (2026.4.1)."""


def computes_bf16() -> bool:
    """Whether this processor computes in BF16, with the instructions that are allowed."""
    allowed = os.environ.get(_LIMIT, "").upper() not in _WITHOUT_BF16
    return allowed and "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def require(*, bf16: bool) -> None:
    """Refuse BF16 on CPUs without support for it.

    Raises:
        EngineError: the CPU does not compute in BF16.
    """
    require_process(_first_process())
    if bf16 and not computes_bf16():
        limit = os.environ.get(_LIMIT)
        why = f" with {_LIMIT}={limit}" if limit else ""
        raise EngineError(
            f"this processor does not compute in BF16{why}. Score in FP32: --engine {FP32.name}"
        )


class OpenVinoGraph:
    """A graph as read by OpenVINO, and its compile settings on this machine.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        bf16: whether to compute in BF16, twice as fast on CPUs that support it; see
            `dsd_trt.bfloat16`.
        large: whether the bundle's weights are so large that memory and disk outweigh a second of
            start.
        batch: batch size to read the graph for; None leaves the size open.
        threads: number of threads to compute with; None is one per core.
        cache_compiled: whether compiled models of a large bundle are kept for the next start, see
            `Backend`; those of a small one always are.

    Raises:
        EngineError: OpenVINO refuses the graph, or the CPU does not support BF16.

    Attributes:
        bf16: whether the graph computes in BF16.
        large: whether operations are so long that each keeps all threads busy.
        threads: number of threads to compute with.
        model: the graph in memory: later changes of its files have no effect.
        inputs: declared inputs, in the model's order.
        outputs: names of the outputs, in the model's order.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        bf16: bool,
        large: bool,
        batch: int | None = None,
        threads: int | None = None,
        cache_compiled: bool = False,
    ) -> None:
        require(bf16=bf16)
        self._path, self._graph, self._core = path, graph, _core()
        self.bf16, self.large = bf16, large
        self.threads: int = threads or thread_limit() or os.cpu_count() or 1
        self._settings: dict[str, Any] = {
            # By default it uses BF16 on CPUs that support it, 7e-5 off the reference.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        cache = None if self.large and not cache_compiled else cache_folder()
        self._store = cache and cache / STORE
        self._kept_bytes = COMPILED_BYTES.value()
        self._declared = {spec.name: spec for spec in graph.inputs}
        self._results = {spec.name for spec in graph.outputs}
        self._batch = batch
        self.model = self._read()
        # Compiling may rename tensors, but preserves their order.
        names = [_name(port, self._declared) for port in self.model.inputs]
        self.inputs: list[TensorSpec] = [self._declared[name] for name in names]
        self.outputs: list[str] = [_name(port, self._results) for port in self.model.outputs]

    def _read(self) -> ov.Model:
        try:
            # `Core.read_model` detects the format by content. For OpenVINO's own format, whatever
            # the file's suffix, it would read weights from a file the bundle does not verify.
            with _compiling:
                self._digest = sha256_of(self._path)
                onnx = FrontEndManager().load_by_framework("onnx")
                source = onnx.load(str(self._path))
                inputs = []
                for place in source.get_inputs():
                    shape, kind = source.get_partial_shape(place), source.get_element_type(place)
                    inputs.append(_spec(_name(place, self._declared), shape, kind))
                    spec = self._declared.get(inputs[-1].name)
                    if spec and self._batch:  # here it is free; reshaping takes as long as reading
                        shape = ov.PartialShape(spec.of_batch(self._batch))
                        source.set_partial_shape(place, shape)
                model = onnx.convert(source)
                self._require_signature(model, inputs, self._batch)
        except EngineError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"openvino refuses {self._path}: {one_line(error, 800)}") from error
        return model

    def sized(self, batch: int) -> ov.Model:
        """The graph for one batch size, to be compiled before another size is asked for."""
        if batch != self._batch:
            sizes = {i: it.of_batch(batch) for i, it in enumerate(self.inputs) if it.batched}
            try:
                self.model.reshape(sizes)
            except Exception as error:
                message = one_line(error, 800)
                raise EngineError(f"openvino refuses {self._path}: {message}") from error
            self._require_signature(self.model, self._graph.inputs, batch)
            self._batch = batch
        return self.model

    def _require_signature(
        self, model: ov.Model, inputs: Sequence[TensorSpec], batch: int | None
    ) -> None:
        """Check the declared inputs, and the outputs that follow from a batch size."""
        outputs = [
            _spec(_name(it, self._results), it.get_partial_shape(), it.get_element_type())
            for it in model.outputs
        ]
        graph = self._graph
        if batch:
            sized = (dataclasses.replace(it, shape=it.of_batch(batch)) for it in graph.outputs)
            graph = dataclasses.replace(graph, outputs=tuple(sized))
        check_signature(self._path, graph, inputs, outputs)

    def compile(self, model: Any, part: int | str, **settings: Any) -> Any:
        """Compile a model.

        Args:
            model: result of `sized`, or a part of the graph.
            part: batch size of the whole graph, or name of a part, which the cache keeps apart.
            settings: OpenVINO settings in addition to the common ones.
        """
        try:
            settings = {**self._settings, **settings}
            if self._store is None or (self.large and not self._has_room(model, self._store)):
                with _compiling:
                    return self._core.compile_model(model, DEVICE, settings)
            # The precision is among the settings: OpenVINO 2026.4 also uses a model compiled for
            # FP32 for BF16, and computes NaN.
            key = [ov.get_version(), self._digest, part, settings]
            with _compiling, kept_compiled(self._store, key, self._kept_bytes) as folder:
                if folder is not None:
                    settings["CACHE_DIR"] = str(folder)
                compiled = self._core.compile_model(model, DEVICE, settings)
                fresh = not compiled.get_property("LOADED_FROM_CACHE")
                if self.large and fresh and folder is not None and is_kept(folder):
                    # Constants of a model that was just compiled are private memory; of one that
                    # is loaded, they are pages of its file.
                    del compiled
                    compiled = self._core.compile_model(model, DEVICE, settings)
                return compiled
        except Exception as error:
            raise EngineError(f"openvino refuses {self._path}: {one_line(error, 800)}") from error

    def _has_room(self, model: ov.Model, store: Path) -> bool:
        """Whether a large compiled model fits the limit and the disk; if it does not, that is said.

        Its file has every constant in FP32.
        """
        needed = sum(
            4 * math.prod(node.get_output_shape(0))
            for node in model.get_ordered_ops()
            if node.get_type_name() == "Constant"
        )
        why = ""
        if needed > self._kept_bytes:
            why = f"the limit {COMPILED_BYTES.variable} is {in_gigabytes(self._kept_bytes)}"
        elif (free := shutil.disk_usage(nearest_folder(store)).free) < needed + _SPARE:
            why = f"the disk has {in_gigabytes(free)} left"
        if why:
            logger.warning(
                "%s is compiled at every start and takes twice the memory: its compiled form of %s "
                "is not kept in %s, because %s",
                *(self._path.name, in_gigabytes(needed), store, why),
            )
            return False
        return True

    def describe(self, compiled: Any) -> EngineDescription:
        """Description of a compiled model, with the precision it reports."""
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return EngineDescription(
            f"openvino {ov.get_version().split('-')[0]}",
            f"{DEVICE} ({self._core.get_property(DEVICE, 'FULL_DEVICE_NAME').strip()})",
            _PRECISIONS.get(precision, precision),
        )


def _spec(name: str, shape: Any, kind: Any) -> TensorSpec:
    """An input or output, with OpenVINO's shape and type."""
    dtype: Any = np.dtype(kind.to_dtype()).name
    sizes = (d.get_length() if d.is_static else "?" for d in shape)
    return TensorSpec(name, dtype, tuple(sizes))


def _name(place: Any, declared: Collection[str]) -> str:
    """The declared name of a tensor; one passed through unchanged has several names."""
    names = set(place.get_names())
    return min(names & set(declared), default=min(names, default=""))
