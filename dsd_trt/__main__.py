"""The process of the `dsd-trt` command, and of `python -m dsd_trt`, made to start and end quickly.

Launchers such as accelerate's start the latter in several processes.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from dsd_trt.commands import signals


def run() -> NoReturn:
    """Run the command line and end the process."""
    signals.end_at_once()
    # numpy's BLAS starts threads on being imported: 0.04 s, for no large product of any command.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # openvino imports its model converter where it finds one: 0.05 s, and no command converts.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    from dsd_trt.commands.main import main

    try:
        main()
    except SystemExit as ended:
        signals.end_at_once()
        _leave(ended)
    except KeyboardInterrupt:  # a second one, while the first was answered
        signals.end_interrupted()


def _leave(ended: SystemExit) -> NoReturn:
    """End at once: OpenVINO spends 0.1 s on giving back what the system takes back anyway.

    Not where torch was at work, which may have something left to finish, or where a copy of a
    bundle is to be removed.
    """
    copies = sys.modules.get("dsd_trt.bundle.real_files")
    if (
        "dsd_trt.engine.openvino.runner" not in sys.modules
        or "torch" in sys.modules
        or (copies is not None and copies.any_temporary())
    ):
        raise ended
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where they were closed
            stream.flush()
    except OSError:  # nobody reads any more, which Python has words for
        raise ended from None
    os._exit(ended.code if isinstance(ended.code, int) else 0)


if __name__ == "__main__":
    run()
