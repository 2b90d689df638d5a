"""How a command opens its bundle: the options that say so, and the scorer that they give."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from dsd_trt.commands.log import note_engine
from dsd_trt.commands.options import (
    cache_compiled_option,
    device_option,
    engine_option,
    memory_option,
    self_check_option,
    signature_option,
    threads_option,
)

if TYPE_CHECKING:
    from dsd_trt.bundle.method import Mode
    from dsd_trt.scorer import Scorer

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Opening:
    """What the options say of the opening of a bundle.

    Attributes:
        require_signature: path of the public key that must have signed it; None requires none.
        self_check: whether graphs must reproduce the bundle's stored results.
        engine: name of the backend, or "auto".
        device: number of the GPU, from 0.
        threads: number of threads on the processor; None is one per core.
        memory_budget: memory for activations, in MiB; None is the engine's own choice.
        cache_compiled: whether compiled models of large bundles are kept.
    """

    require_signature: Path | None
    self_check: bool
    engine: str
    device: int
    threads: int | None
    memory_budget: float | None
    cache_compiled: bool

    @property
    def names_engine(self) -> bool:
        """Whether engine, GPU or threads are asked for."""
        return (self.engine, self.device, self.threads) != ("auto", 0, None)

    def require_possible(self) -> None:
        """Refuse an engine that works with no bundle here, before anything is read.

        Raises:
            InputError, EngineError: the engine cannot be used, as for `engine.choice`.
        """
        from dsd_trt.engine.choice import require_possible

        require_possible(self.engine, self.device, self.threads)

    def scorer(
        self,
        bundle: str | os.PathLike[str] | None,
        mode: Mode | Literal["auto"],
        *,
        tune: bool = False,
        text_cache_mb: float | None = None,
    ) -> Scorer:
        """Open a bundle, and note the engine in use.

        Args:
            bundle: name of the bundle, as for `Scorer.load`.
            mode: mode to score in, as for `Scorer`.
            tune: whether to find the fastest batch size, as for `Scorer`.
            text_cache_mb: memory for texts of earlier calls, in MiB; None is the default.

        Raises:
            DsdError: the bundle or the engine cannot be used, as for `Scorer.load`.
        """
        from dsd_trt.scorer import Scorer
        from dsd_trt.text_cache import DEFAULT_MB

        opened = Scorer.load(
            bundle,
            self.engine,
            self.memory_budget,
            mode,
            tune=tune,
            require_signature=self.require_signature,
            self_check=self.self_check,
            device=self.device,
            threads=self.threads,
            text_cache_mb=DEFAULT_MB if text_cache_mb is None else text_cache_mb,
            cache_compiled=self.cache_compiled,
        )
        note_engine(opened)
        return opened


def opening_options(command: Command) -> Command:
    """Options of a bundle's opening; the command gets `opening`: `Opening`."""

    @functools.wraps(command)
    def with_opening(**given: Any) -> Any:
        opening = Opening(**{it.name: given.pop(it.name) for it in fields(Opening)})
        return command(**given, opening=opening)

    opened = cast(Command, with_opening)
    for option in (
        cache_compiled_option,
        memory_option,
        threads_option,
        device_option,
        engine_option,
        self_check_option,
        signature_option,
    ):
        opened = option(opened)
    return opened
