"""What BF16 does to a bundle's scores, measured when it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dsd_trt.bfloat16 import compare_bfloat16
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Bfloat16
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import BFLOAT16, find_backend
from dsd_trt.errors import DsdError, EngineError
from dsd_trt.log import get_logger
from dsd_trt.pipeline import Pipeline
from dsd_trt.train.run.memory import release_freed_memory

ENGINE = BFLOAT16
_MEMORY = Path("/proc/meminfo")

logger = get_logger(__name__)


def computes_bfloat16() -> bool:
    """Whether this machine has the engine and the instructions."""
    return _why_not() is None


def why_unmeasured(needed: float) -> str | None:
    """Why BF16 cannot be compared with FP32 on this machine, or None if it can.

    Args:
        needed: memory that the comparison takes, in bytes.
    """
    if (reason := _why_not()) is not None:
        return reason
    free = _free_memory()
    if free is not None and free < needed:
        return f"it takes {needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free"
    return None


def measure_bfloat16(bundle: Bundle) -> dict[str, Bfloat16] | None:
    """Compare BF16 with FP32 in every mode of a bundle, on this machine's processor.

    Args:
        bundle: the bundle that was just written.

    Returns:
        What BF16 does to scores, by mode. A mode is left out if its scores are not finite or all
        equal, which is logged as a warning. None if nothing was measured.
    """
    modes: list[Mode] = ["pair"] if bundle.manifest.matrix is None else ["pair", "matrix"]
    found = dict[str, Bfloat16]()
    for mode in modes:
        release_freed_memory()
        try:
            with _opened(bundle) as pipeline:
                measured = compare_bfloat16(bundle, mode, pipeline, None)
        except EngineError as error:  # the graphs agreed with PyTorch, so the export is not lost
            logger.warning("BF16 was not compared with FP32 in %s mode: %s", mode, error)
            continue
        # NaN is no JSON; and without a figure, it is measured again where it is asked for.
        if not (measured.winner_changes >= 0 and measured.difference >= 0):
            why = "scores are not finite, or all equal"
            logger.warning("BF16 was not compared with FP32 in %s mode: %s", mode, why)
            continue
        found[mode] = replace(measured, winner_changes=float(f"{measured.winner_changes:.3g}"))
    return found or None


@contextmanager
def _opened(bundle: Bundle) -> Iterator[Pipeline]:
    # Without the self-check: its tolerance is of the comparison with PyTorch, which has passed.
    pipeline = Pipeline(bundle, find_backend(ENGINE), None, self_check=False)
    try:
        yield pipeline
    finally:
        pipeline.close()


def _why_not() -> str | None:
    try:
        find_backend(ENGINE).require()
    except DsdError as error:  # no such library, or no such instructions
        return str(error)
    return None


def _free_memory() -> int | None:
    """Memory that is free or could be freed, in bytes; None where the system does not say."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None
