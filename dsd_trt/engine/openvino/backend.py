"""OpenVINO on the CPU, in FP32 or in BF16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dsd_trt.batching import MAX_TEXTS, BatchSizes, walks_at_once
from dsd_trt.bundle.folder import Bundle, is_large
from dsd_trt.engine import Backend, Engine


@dataclass(frozen=True)
class OpenVino(Backend):
    """OpenVINO on the CPU; see `Backend`.

    Attributes:
        bf16: whether to compute in BF16, about twice as fast on CPUs that support it.
    """

    bf16: bool = False

    def require(self) -> None:
        """See `Backend.require`."""
        from dsd_trt.engine.openvino.graph import require

        require(bf16=self.bf16)

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """See `Backend.batch_sizes`."""
        sizes = super().batch_sizes(bundle, memory_budget_mb)
        return replace(sizes, matrix=(walks_at_once(is_large(bundle.folder))[0], MAX_TEXTS))

    def open(self, bundle: Bundle, graph: str) -> Engine:
        """See `Backend.open`."""
        signature = bundle.manifest.graphs[graph]
        path = bundle.path(signature.file)
        settings: dict[str, Any] = {
            "bf16": self.bf16,
            "large": is_large(bundle.folder),
            "threads": self.threads,
            "cache_compiled": self.cache_compiled,
        }
        if signature.batched:
            from dsd_trt.engine.openvino.runner import OpenVinoEngine

            return OpenVinoEngine(path, signature, **settings)
        from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine

        return OpenVinoMatrixEngine(path, signature, **settings)


FP32 = OpenVino("openvino", "OpenVINO", extra="openvino")
BF16 = replace(
    FP32, name="openvino-bf16", title="OpenVINO, BF16", bf16=True, keeps_order_of=FP32.name
)
