"""ONNX Runtime on an NVIDIA GPU: nothing is compiled beforehand, and it never falls to the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from dsd_trt.batching import BatchSizes
from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Backend
from dsd_trt.engine.driver import why_no_driver
from dsd_trt.errors import EngineError
from dsd_trt.log import get_logger

if TYPE_CHECKING:
    from dsd_trt.engine.onnxruntime.cuda_engine import CudaEngine

_SHARE = 0.8  # of the memory that is free; other programs draw on the GPU as well
_MIB = 2**20

logger = get_logger(__name__)


@dataclass(frozen=True)
class OnnxRuntimeCuda(Backend):
    """ONNX Runtime's CUDA provider; see `Backend`.

    Attributes:
        memory_mb: memory for activations of a graph, in MiB; None is two fifths of what is left
            beside weights.
    """

    on_gpu: bool = True
    memory_mb: float | None = None

    def require(self) -> None:
        """See `Backend.require`."""
        from dsd_trt.engine.onnxruntime.libraries import load_cuda

        load_cuda(self.device)
        import dsd_trt.engine.cuda  # noqa: F401 (refuses where its bindings are missing)

    def why_not(self, bundle: Bundle | None, graphs: Sequence[str]) -> str | None:
        """See `Backend.why_not`."""
        return why_no_driver() or super().why_not(bundle, graphs)

    def within(self, bundle: Bundle, memory_budget_mb: float | None) -> Self:
        """See `Backend.within`; activations get no more than this."""
        if memory_budget_mb is None:
            memory_budget_mb = self._free_mb(bundle)
        super().batch_sizes(bundle, memory_budget_mb)  # refuses an invalid budget
        return replace(self, memory_mb=memory_budget_mb)

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """See `Backend.batch_sizes`."""
        if memory_budget_mb is None:
            memory_budget_mb = self.memory_mb
        return super().batch_sizes(bundle, self.within(bundle, memory_budget_mb).memory_mb)

    def open(self, bundle: Bundle, graph: str) -> CudaEngine:
        """See `Backend.open`; the bundle's form for CUDA is taken if it passes the self-check."""
        file = bundle.manifest.graphs[graph].file
        why: str | None
        if graph in (bundle.manifest.cuda_form or {}):
            try:
                engine = self.open_form(bundle, graph)
            except EngineError as error:
                why = str(error)
            else:
                if not (why := _why_wrong(bundle, graph, engine)):
                    logger.info("the form for CUDA of %s is used", file)
                    return engine
                engine.close()
            logger.warning("the form for CUDA of %s is not used: %s", file, why)
        return self._open_file(bundle, graph, file, channels_last=False)

    def open_form(self, bundle: Bundle, graph: str) -> CudaEngine:
        """Open a graph's form for CUDA, which the bundle has to have, without a self-check.

        Raises:
            EngineError: CUDA lacks something, or the library refuses the form.
        """
        file = (bundle.manifest.cuda_form or {})[graph]
        return self._open_file(bundle, graph, file, channels_last=True)

    def _open_file(
        self, bundle: Bundle, graph: str, file: str, *, channels_last: bool
    ) -> CudaEngine:
        from dsd_trt.engine.onnxruntime.cuda_engine import open_engine

        budget = self.memory_mb if self.memory_mb is not None else self._free_mb(bundle)
        return open_engine(
            bundle.path(file),
            bundle.manifest.graphs[graph],
            self.device,
            math.ceil(budget * _MIB) + _weights(bundle),
            keeps=graph.endswith("_scorer"),
            channels_last=channels_last,
        )

    def _free_mb(self, bundle: Bundle) -> float:
        """Memory for activations where none is asked for, in MiB.

        Two graphs hold theirs at once: an encoder, and the scorer, which keeps it.
        """
        self.require()
        from dsd_trt.engine.cuda import free_memory
        from dsd_trt.engine.onnxruntime.cuda_engine import KEPT
        from dsd_trt.engine.onnxruntime.cuda_session import WORKSPACE
        from dsd_trt.engine.onnxruntime.cuda_thread import on_gpu_thread

        free = on_gpu_thread(self.device, free_memory) - _weights(bundle) - KEPT - 2 * WORKSPACE
        return max(free * _SHARE / 2, 0) / _MIB


def _weights(bundle: Bundle) -> int:
    """Most bytes that a graph's weights take: FP32 ones may be stored in half of them."""
    manifest = bundle.manifest
    stored = sum(manifest.files[name].size for name in manifest.weight_files)
    return stored * (1 if manifest.precision == "fp16" else 2)


def _why_wrong(bundle: Bundle, graph: str, engine: CudaEngine) -> str | None:
    """Why a form of a graph cannot be trusted: it fails the self-check, or there is none."""
    from dsd_trt.engine.self_check import SelfCheck

    if (check := SelfCheck.read(bundle)) is None:
        return "the bundle has no self-check; export it again for one"
    try:
        check.require(graph, bundle.manifest.graphs[graph], engine, adapter_feed(bundle))
    except EngineError as error:
        return str(error)
    return None


CUDA = OnnxRuntimeCuda("onnxruntime-cuda", "ONNX Runtime, CUDA", extra="cuda")
