"""What commands say beside their results."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console


@contextlib.contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Show the package's log on stderr, above a progress bar if there is one."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"{record.levelname.lower()}: {record.getMessage()}")

    handler, logger = Handler(), logging.getLogger("dsd_trt")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
