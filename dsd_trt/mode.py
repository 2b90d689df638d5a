"""Pair or matrix: the mode that is asked for, if bundle and engine have it."""

from __future__ import annotations

import logging
from typing import Literal, get_args

from dsd_trt.bundle.manifest import Manifest, Mode
from dsd_trt.engine import BACKENDS, Backend, find_backend
from dsd_trt.errors import InputError

logger = logging.getLogger(__name__)


def choose_mode(manifest: Manifest, mode: Mode | Literal["auto"], backend: Backend | None) -> Mode:
    """The mode that is asked for, with a warning where the adapter was trained for another.

    Args:
        manifest: of the bundle.
        mode: "auto" is the one the adapter was trained for, "pair" if for both or none.
        backend: what scores; None has every mode.

    Raises:
        InputError: there is no such mode, or the bundle or the engine does not have it.
    """
    if not isinstance(mode, str) or mode not in ("auto", *get_args(Mode)):
        raise InputError(f"no mode {mode!r}: there are auto, {', '.join(get_args(Mode))}")
    trained = manifest.method.trained_for
    if mode == "auto":
        mode = "matrix" if trained == "matrix" else "pair"
    if mode == "matrix" and manifest.matrix is None:
        raise InputError(
            "the bundle has no matrix scorer. Export it with one: dsd-trt export --matrix"
        )
    if backend is not None and mode not in backend.modes:
        others = [name for name in BACKENDS if mode in find_backend(name).modes]
        raise InputError(
            f"{mode} mode does not run on {backend.name} yet: use --engine {' or '.join(others)}"
        )
    if trained not in (None, "both", mode):
        logger.warning(
            "the bundle's adapter was trained for %s mode: its scores in %s mode are worse, and "
            "its probabilities mean nothing",
            trained,
            mode,
        )
    return mode
