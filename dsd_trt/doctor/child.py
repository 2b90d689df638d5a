"""A process of its own for what may end one: an import, a driver, a kernel.

This file run as a script is the inner process. It looks for modules where its parent does, and
answers with one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_MARK = "dsd-trt doctor: "  # libraries print lines of their own
_SECONDS = 120.0  # an import from a cold network disk takes half of it
_MEANINGS = {
    "SIGBUS": "a file that it maps is cut short, or its disk is full",
    "SIGILL": "a library uses instructions that this processor lacks",
    "SIGKILL": "the system ends processes for which there is no memory",
    "SIGSEGV": "a library is damaged, or of another version than the one beside it",
}


class ChildError(Exception):
    """The process ended without an answer.

    Attributes:
        signal: name of the signal that ended it, such as "SIGKILL"; "" for another end.
        started: whether there was a process at all.
    """

    def __init__(self, message: str, ended_by: str = "", *, started: bool = True) -> None:
        super().__init__(message)
        self.signal, self.started = ended_by, started


def ask(function: str, *arguments: str | None, variables: dict[str, str] | None = None) -> Any:
    """What a function returns, called in a process of its own.

    Args:
        function: the function, as MODULE:NAME; it returns values for JSON.
        arguments: arguments of the function.
        variables: environment variables to set there.

    Raises:
        ChildError: the process ended by a signal or with an error, or took two minutes.
    """
    given = json.dumps({"path": sys.path, "call": function, "arguments": arguments})
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).absolute()), given],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildError("its process gave no answer within two minutes") from None
    except OSError as error:
        why = f"no process can be started ({sys.executable}: {error.strerror})"
        raise ChildError(why, started=False) from error
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    said = done.stderr.decode(errors="replace").strip().splitlines()
    last = f" ({said[-1].strip()[:300]})" if said else ""
    if done.returncode >= 0:
        raise ChildError(f"its process ended with exit code {done.returncode}{last}")
    try:
        name = signal.Signals(-done.returncode).name
    except ValueError:
        name = f"signal {-done.returncode}"
    meaning = f": {_MEANINGS[name]}" if name in _MEANINGS else ""
    raise ChildError(f"its process was ended by {name}{meaning}{last}", name)


def _main(given: str) -> None:
    asked = json.loads(given)
    sys.path[:] = asked["path"]
    home = str(Path(__file__).absolute().parents[2])
    if home not in sys.path:  # an editable installation, or a clone that was the current folder
        sys.path.insert(0, home)
    module, name = asked["call"].split(":")
    answer = json.dumps(getattr(importlib.import_module(module), name)(*asked["arguments"]))
    sys.stdout.write(f"\n{_MARK}{answer}\n")
    sys.stdout.flush()
    os._exit(0)  # libraries may fail as they end, which is no matter here


if __name__ == "__main__":
    _main(sys.argv[1])
