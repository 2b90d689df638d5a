#!/usr/bin/env bash
# torch.save on a full disk does not raise OSError: "unexpected pos" is all the message says.
#
# Versions: torch 2.13.0 (CPU), Python 3.11, Linux.  Date: 2026-11-28.
# Expected: OSError with errno ENOSPC (EFBIG at a file-size limit), as from any other write, so that
# `except OSError` can say that the disk is full.
# Seen: RuntimeError "[enforce fail at inline_container.cc ...] unexpected pos A vs B", raised while the
# archive is closed; the OSError is in __context__ alone. A file-size limit plays the full disk here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - "$folder/state.pt" <<'PYTHON'
import errno
import resource
import signal
import sys

import torch

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with open(sys.argv[1], "wb", buffering=0) as file:
        torch.save({"w": torch.zeros(10_000)}, file)
except Exception as error:
    caught = error
print(type(caught).__name__, "|", "unexpected pos" in str(caught), "|", repr(caught.__context__))
assert type(caught) is RuntimeError and "unexpected pos" in str(caught), "this has changed"
assert isinstance(caught.__context__, OSError), "this has changed"
assert caught.__context__.errno == errno.EFBIG, "this has changed"
PYTHON
# RuntimeError | True | OSError(27, 'File too large')
