"""The memory budget of the environment, which bounds what a bundle takes."""

from __future__ import annotations

import os

from dsd_trt.batching import DEFAULT_MB, MOST_MB

BUDGET = "DSD_TRT_MEMORY_BUDGET"
"""Variable of the budget, in MiB."""


def memory_budget() -> float:
    """The budget in MiB; the default where none is set, or no valid one: `variables` says that."""
    try:
        budget = float(os.environ.get(BUDGET, ""))
    except ValueError:
        return DEFAULT_MB
    return budget if 0 <= budget < MOST_MB else DEFAULT_MB
