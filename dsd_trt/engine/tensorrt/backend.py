"""TensorRT and TensorRT-RTX: plans from `dsd-trt build`, run on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsd_trt.batching import ON_DEVICE, BatchSizes
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Backend, EngineDescription
from dsd_trt.engine.driver import why_no_driver
from dsd_trt.engine.tensorrt.plan import PlanLibrary, find_plans, plans, read_plan
from dsd_trt.errors import EngineError
from dsd_trt.log import get_logger

if TYPE_CHECKING:
    from dsd_trt.engine.tensorrt.matrix import TensorRTMatrixEngine
    from dsd_trt.engine.tensorrt.runner import TensorRTEngine


logger = get_logger(__name__)


@dataclass(frozen=True)
class TensorRT(Backend):
    """TensorRT or TensorRT-RTX; see `Backend`.

    Attributes:
        name: name of the backend, and of the library.
    """

    name: PlanLibrary
    reads_graphs: bool = False  # but plans, which lie beside them
    on_gpu: bool = True
    tunes_batch: bool = False  # a plan is compiled for its optimal batch size

    def require(self) -> None:
        """See `Backend.require`."""
        from dsd_trt.engine.tensorrt.runner import require

        require(self.name, self.device)

    def why_not(self, bundle: Bundle | None, graphs: Sequence[str]) -> str | None:
        """See `Backend.why_not`."""
        if why := why_no_driver():
            return why
        if bundle is None:  # it may have plans
            return super().why_not(bundle, graphs)
        try:
            if not any(it.sidecar.library == self.name for it in plans(bundle.folder)):
                return "the bundle has no plans for it"
            from dsd_trt.engine.tensorrt.runner import require

            trt, capability = require(self.name, self.device)
            for graph in graphs:
                version = str(trt.__version__)
                find_plans(bundle.folder, bundle.manifest, graph, self.name, version, capability)
        except EngineError as error:
            return str(error)
        return None

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """See `Backend.batch_sizes`; a plan holds its own activations."""
        super().batch_sizes(bundle, memory_budget_mb)  # refuses an invalid budget
        return ON_DEVICE

    def open(self, bundle: Bundle, graph: str) -> TensorRTEngine | TensorRTMatrixEngine:
        """See `Backend.open`; fails if the bundle has no plan for this library and GPU."""
        from dsd_trt.engine.tensorrt.matrix import Limits, TensorRTMatrixEngine
        from dsd_trt.engine.tensorrt.runner import TensorRTEngine, require

        trt, capability = require(self.name, self.device)
        manifest, version = bundle.manifest, str(trt.__version__)
        found = find_plans(bundle.folder, manifest, graph, self.name, version, capability)
        description = EngineDescription(
            f"{self.name} {version}", f"GPU of compute capability {capability}", manifest.precision
        )
        for plan in found:
            logger.info(
                "plan %s, batches %s", plan.path, "; ".join(map(str, plan.sidecar.profiles))
            )
        signature, profiles = manifest.graphs[graph], found[0].sidecar.profiles
        first, *rest = (read_plan(plan) for plan in found)
        if not rest:
            return TensorRTEngine(trt, first, signature, profiles, description, self.device)
        (match,), sidecar = rest, found[1].sidecar
        assert sidecar.texts is not None  # as `open_plan` checks
        assert sidecar.tokens is not None
        limits = Limits(profiles, sidecar.texts, sidecar.tokens)
        return TensorRTMatrixEngine(trt, first, match, signature, limits, description, self.device)


TENSORRT = TensorRT("tensorrt", "TensorRT", extra="gpu")
RTX = TensorRT("tensorrt-rtx", "TensorRT-RTX", extra="rtx")
