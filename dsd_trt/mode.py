"""Pair mode or matrix mode: the requested one, if bundle and engine support it."""

from __future__ import annotations

from typing import Literal, get_args

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import Backend, usable_entries
from dsd_trt.errors import InputError
from dsd_trt.log import get_logger

logger = get_logger(__name__)


def choose_mode(manifest: Manifest, mode: Mode | Literal["auto"], backend: Backend | None) -> Mode:
    """The requested mode, with a warning if the adapter was trained for the other one alone.

    Matrix mode with lists is not warned of: its token heads were learned to estimate pair mode.

    Args:
        manifest: manifest of the bundle to score with.
        mode: "pair", "matrix", or "auto": the one the adapter was trained for, or "pair" for both
            or no adapter.
        backend: backend to score with; None supports every mode.

    Raises:
        InputError: there is no such mode, or the bundle or the engine does not support it.
    """
    mode, trained = wanted_mode(manifest, mode), manifest.method.trained_for
    if backend is not None and mode not in backend.modes:
        others = [it.name for it in usable_entries() if mode in it.modes]
        raise InputError(
            f"{mode} mode does not run on {backend.name} yet: use --engine {', '.join(others)}"
        )
    matrix = manifest.matrix if mode == "matrix" else None
    estimates = matrix is not None and matrix.lists is not None
    if trained not in (None, "both", mode) and not estimates:
        logger.warning(
            "the bundle's adapter was trained for %s mode: its scores in %s mode are worse",
            trained,
            mode,
        )
    return mode


def require_mode(mode: object) -> None:
    """Refuse a mode that no bundle has.

    Raises:
        InputError: there is no such mode; the message names all.
    """
    if not isinstance(mode, str) or mode not in ("auto", *get_args(Mode)):
        raise InputError(f"no mode {mode!r}: there are auto, {', '.join(get_args(Mode))}")


def wanted_mode(manifest: Manifest, mode: Mode | Literal["auto"]) -> Mode:
    """The requested mode, whichever engine runs it; arguments as for `choose_mode`.

    Raises:
        InputError: there is no such mode, or the bundle does not support it.
    """
    require_mode(mode)
    if mode == "auto":
        mode = "matrix" if manifest.method.trained_for == "matrix" else "pair"
    if mode == "matrix" and manifest.matrix is None:
        raise InputError(
            "the bundle has no matrix scorer. Export it with one: dsd-trt export --matrix"
        )
    return mode


def graphs_of(mode: Mode) -> tuple[str, ...]:
    """Names of the graphs that a mode needs."""
    return ("image_encoder", "text_encoder", f"{mode}_scorer")
