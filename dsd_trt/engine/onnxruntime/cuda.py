"""ONNX Runtime on an NVIDIA GPU: nothing is compiled beforehand, and it never falls to the CPU."""

from __future__ import annotations

import logging
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

if TYPE_CHECKING:
    from dsd_trt.engine.onnxruntime.cuda_engine import CudaEngine

_SHARE = 0.8  # of the memory that weights leave free; other programs draw on the GPU as well
_MIB = 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxRuntimeCuda(Backend):
    """ONNX Runtime's CUDA provider; see `Backend`.

    Attributes:
        memory_mb: memory for activations, in MiB; None is four fifths of what weights leave free.
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
        return super().batch_sizes(bundle, self.within(bundle, memory_budget_mb).memory_mb)

    def open(self, bundle: Bundle, graph: str) -> CudaEngine:
        """See `Backend.open`; the bundle's form for CUDA is taken if it passes the self-check."""
        from dsd_trt.engine.onnxruntime.cuda_engine import open_engine

        signature = bundle.manifest.graphs[graph]
        budget = self.memory_mb if self.memory_mb is not None else self._free_mb(bundle)
        arena = math.ceil(budget * _MIB)
        keeps = graph.endswith("_scorer")
        form = (bundle.manifest.cuda_form or {}).get(graph)
        if form is not None:
            try:
                engine = open_engine(bundle.path(form), signature, self.device, arena, keeps=keeps)
            except EngineError as error:
                logger.warning("the form for CUDA of %s is not used: %s", signature.file, error)
            else:
                if (why := _why_wrong(bundle, graph, engine)) is None:
                    return engine
                engine.close()
                logger.warning("the form for CUDA of %s is not used: %s", signature.file, why)
        return open_engine(bundle.path(signature.file), signature, self.device, arena, keeps=keeps)

    def _free_mb(self, bundle: Bundle) -> float:
        """Memory for activations where none is asked for, in MiB."""
        self.require()
        from dsd_trt.engine.cuda import free_memory

        manifest = bundle.manifest
        weights = sum(manifest.files[name].size for name in manifest.weight_files)
        return max((free_memory(self.device) - weights) * _SHARE, 0) / _MIB


def _why_wrong(bundle: Bundle, graph: str, engine: CudaEngine) -> str | None:
    """Why a form of a graph fails the bundle's self-check; None if it passes, or there is none."""
    from dsd_trt.engine.self_check import SelfCheck

    if (check := SelfCheck.read(bundle)) is None:
        return None
    try:
        check.require(graph, bundle.manifest.graphs[graph], engine, adapter_feed(bundle))
    except EngineError as error:
        return str(error)
    return None


CUDA = OnnxRuntimeCuda("onnxruntime-cuda", "ONNX Runtime, CUDA", extra="cuda")
