"""The process of `dsd-trt` and `python -m dsd_trt`, built for a fast start and end.

Launchers such as accelerate start `python -m dsd_trt` in several processes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

if not __package__:  # run by its file, as a child process: see `installation.own_command`
    _home = str(Path(__file__).absolute().parents[1])
    if _home not in sys.path:  # an editable installation, or a clone that was the current folder
        sys.path.insert(0, _home)

from dsd_trt.commands import signals


def run() -> NoReturn:
    """Run the command line, then end the process."""
    signals.end_at_once()
    # numpy's BLAS starts threads on import: 0.04 s, and no command has a large product.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # openvino imports its model converter if installed: 0.05 s, and no command converts.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    try:
        from dsd_trt.commands.main import main
    except ImportError as error:  # click is missing, or a file of this package
        sys.exit(_say_unusable(error))
    try:
        main()
    except SystemExit as ended:
        signals.end_at_once()
        _leave(ended)
    except KeyboardInterrupt:  # a second signal during the answer to the first
        signals.end_interrupted()


def _say_unusable(error: ImportError) -> int:
    """Print what mends an installation in which no command can start; the exit code."""
    from dsd_trt.installation import install_command

    again = install_command("", "--force-reinstall")
    sys.stderr.write(f"Error: dsd-trt cannot start ({error}). Install it again: {again}\n")
    return 4


def _leave(ended: SystemExit) -> NoReturn:
    """End the process at once: OpenVINO's teardown would take 0.1 s.

    Not if torch is loaded, which may have work to finish, nor if a temporary copy of a bundle has
    to be removed.
    """
    copies = sys.modules.get("dsd_trt.bundle.real_files")
    if (
        "dsd_trt.engine.openvino.graph" not in sys.modules
        or "torch" in sys.modules
        or (copies is not None and copies.any_temporary())
    ):
        raise ended
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None if the stream was closed
            stream.flush()
    except OSError:  # the reader is gone, for which Python would print a message
        raise ended from None
    os._exit(ended.code if isinstance(ended.code, int) else 0)


if __name__ == "__main__":
    run()
