"""A session: a bundle whose graphs are compiled on the engine that was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import Rounding
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.choice import Choice, open_first
from dsd_trt.mode import choose_mode, graphs_of, wanted_mode
from dsd_trt.pipeline import Pipeline


@dataclass(frozen=True)
class Session:
    """A bundle that is ready to score in one mode.

    Attributes:
        mode: the mode it scores in, "pair" or "matrix".
        pipeline: pipeline of the bundle's graphs, compiled.
        engine: description of the engine that scores.
        rounding: what the rounding of "openvino-bf16" does to scores; None for other engines.
        why_engine: with engine "auto", reasons why faster engines were passed over, else empty.
    """

    mode: Mode
    pipeline: Pipeline
    engine: EngineDescription
    rounding: Rounding | None
    why_engine: str

    @property
    def fingerprint(self) -> str:
        """All that scores depend on besides bundle, mode and inputs, to the last bit."""
        from importlib.metadata import version  # takes 0.03 s: imports the email parser

        backend = self.pipeline.backend
        used = f"{backend.name}: {self.engine}"
        if backend.threads is not None:
            used += f", {backend.threads} threads"
        return f"dsd-trt {version('dsd-trt')}, {used}, {self.pipeline.batch}"


def open_session(
    bundle: Bundle,
    engine: str,
    memory_budget_mb: float | None,
    mode: Mode | Literal["auto"],
    tune: bool,
    self_check: bool,
    device: int,
    threads: int | None,
    cache_compiled: bool,
) -> Session:
    """Compile a bundle's graphs on the named engine, or on the fastest that opens them.

    The arguments are those of `Scorer`, and so are the errors.
    """

    def attempt(choice: Choice) -> Session:
        backend = replace(choice.backend, cache_compiled=cache_compiled)
        chosen = choose_mode(bundle.manifest, mode, backend)
        pipeline = Pipeline(bundle, backend, memory_budget_mb, tune, self_check)
        try:
            described, rounding = _compiled(bundle, chosen, pipeline, memory_budget_mb)
        except BaseException:
            pipeline.close()
            raise
        return Session(chosen, pipeline, described, rounding, choice.reason)

    graphs = graphs_of(wanted_mode(bundle.manifest, mode))
    return open_first(engine, device, bundle, graphs, attempt, threads)


def _compiled(
    bundle: Bundle, mode: Mode, pipeline: Pipeline, memory_budget_mb: float | None
) -> tuple[EngineDescription, Rounding | None]:
    if pipeline.backend.keeps_order_of is None:
        return pipeline.compile(mode), None
    from dsd_trt.bfloat16 import guarded  # imports a renderer, needed by BF16 alone

    return guarded(bundle, mode, pipeline, memory_budget_mb)
