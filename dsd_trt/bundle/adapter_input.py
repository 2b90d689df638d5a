"""An adapter that is an input of the pair scorer, as the graph is fed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import AdapterInput
from dsd_trt.errors import InputError


def adapter_feed(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The adapter as an additional input of the pair scorer, unless it is folded in."""
    if (adapter := bundle.manifest.adapter) is None:
        return {}
    return read_adapter_input(bundle.path(adapter.file))


def require_fed(bundle: Bundle) -> AdapterInput:
    """The description of a bundle's adapter as an input.

    Raises:
        InputError: the adapter is folded into the bundle's graphs.
    """
    if (adapter := bundle.manifest.adapter) is None:
        raise InputError(
            f"the adapter of {bundle.folder} is folded into its graphs. Export again: dsd-trt "
            "export --adapter ADAPTER, and --adapter-input if it changes often. The latter takes "
            "an adapter from dsd-trt train --update-rank 0"
        )
    return adapter


def read_adapter_input(path: Path) -> dict[str, NDArray[Any]]:
    """Read an adapter's file as the pair scorer's `adapter` input."""
    return {"adapter": np.fromfile(path, "<f4").astype(np.float32)}
