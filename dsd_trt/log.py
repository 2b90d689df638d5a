"""The package's log: what the library does, under the one name `dsd_trt`.

Library code logs and never prints. INFO is what it does: the engine that is chosen, caches that are
used, batch sizes, timings. WARNING is what a user should know.

A program that configures logging gets both from the logger "dsd_trt". In a program that does not,
INFO is not shown, and warnings are Python's own, of the module `warnings`.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "dsd_trt"
_INNER = (NAME, "logging", "contextlib", "functools")  # packages between the user's code and here


class _Unconfigured(logging.NullHandler):
    """Takes records in programs without logging: warnings become Python's own."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Show a warning, unless another handler shows it or the user has turned the log off."""
        if record.levelno >= logging.WARNING and not _handled(record.name):
            _warn(record.getMessage())
        return True


def get_logger(module: str) -> logging.Logger:
    """The logger of a module of this package.

    Args:
        module: `__name__` of the module.
    """
    package = logging.getLogger(NAME)
    if not any(isinstance(it, _Unconfigured) for it in package.handlers):
        package.addHandler(_Unconfigured())
    return logging.getLogger(module)


@contextmanager
def timed(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log what the block did, with the seconds it took; nothing if it fails.

    Args:
        logger: logger of the module.
        what: what is done by the block, such as "compiled pair_scorer".
    """
    began = time.perf_counter()
    yield
    logger.info("%s in %.2f s", what, time.perf_counter() - began)


def _handled(name: str) -> bool:
    """Whether a record of a logger reaches a handler, or is kept from all on purpose."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(it, logging.NullHandler) for it in logger.handlers):
            return True
        if not logger.propagate:
            return True
        logger = logger.parent
    return False


def _warn(message: str) -> None:
    """Give a warning that names the user's line, as `warnings.warn` does for a direct call."""
    frame = sys._getframe()
    while frame.f_back is not None and _package(frame.f_globals) in _INNER:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
