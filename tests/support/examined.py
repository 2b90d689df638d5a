"""Run an examination of `dsd-trt doctor` in an environment that a test has broken."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_trt.doctor.finding import Finding
from dsd_trt.doctor.studied import Needs

ROOT = Path(__file__).parents[2]

# What is found is printed on standard error, too: a disk of its own passes that on alone.
PROGRAM = """
import json, sys
from importlib import import_module
name, arguments = json.loads(sys.argv[1])
module, _, function = name.partition(":")
if arguments and isinstance(arguments[0], dict):
    from dsd_trt.doctor.studied import Needs
    arguments[0] = Needs(**arguments[0])
found = getattr(import_module(f"dsd_trt.doctor.{module}"), function or "examine")(*arguments)
found = [found] if hasattr(found, "state") else found
if isinstance(found, dict):  # a bundle
    found = found["findings"] + found["plans"]
found = json.dumps([it if isinstance(it, dict) else it.to_plain() for it in found])
print(found)
print(found, file=sys.stderr)
"""

SMALL = Needs(
    weight_bytes=12_000_000,
    least_bytes=50_000_000,
    usual_bytes=1_000_000_000,
    missing_bytes=0,
    compiled_bytes=24_000_000,
)
"""What a small bundle needs."""


def program(what: str, *arguments: Any, alone: bool = False) -> list[str]:
    """Command line of an examination.

    Args:
        what: module of `dsd_trt.doctor`, or MODULE:FUNCTION.
        arguments: arguments of its function, as JSON has them, and a `Needs`.
        alone: whether this environment's packages are out of sight.
    """
    given = [vars(it) if isinstance(it, Needs) else it for it in arguments]
    flags = ["-S"] if alone else []
    return [sys.executable, "-P", *flags, "-c", PROGRAM, json.dumps([what, given])]


def environment(site: Sequence[Path], variables: Mapping[str, str | None]) -> dict[str, str]:
    """The tests' environment, with folders of packages before all others, and other variables."""
    found: dict[str, str | None] = dict(os.environ)
    for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "ONEDNN_MAX_CPU_ISA"):
        found[name] = None
    found["PYTHONPATH"] = os.pathsep.join(map(str, (*site, ROOT)))
    found |= variables
    return {name: it for name, it in found.items() if it is not None}


def examined(
    what: str,
    *arguments: Any,
    site: Sequence[Path] = (),
    alone: bool = False,
    prefix: Callable[[list[str]], list[str]] = list,
    preexec: Callable[[], None] | None = None,
    **variables: str | None,
) -> dict[str, Finding]:
    """Findings of an examination, by subject.

    Args:
        what: the examination, and `arguments` and `alone`, as for `program`.
        arguments: arguments of its function.
        site: folders of packages that come before all others.
        alone: whether this environment's packages are out of sight.
        prefix: function that changes the command line.
        preexec: function that runs in the new process before its program.
        variables: environment variables to set; None unsets one.
    """
    done = subprocess.run(
        prefix(program(what, *arguments, alone=alone)),
        env=environment(site, variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=preexec,
    )
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def read(said: str) -> dict[str, Finding]:
    """Findings from the last line that `PROGRAM` printed."""
    found = map(Finding.from_plain, json.loads(said.splitlines()[-1]))
    return {it.subject: it for it in found}


def exported(remedy: str) -> dict[str, Any]:
    """Variables that a remedy sets or unsets: it is applied in another environment."""
    result: dict[str, Any] = {}
    words = shlex.split(remedy)
    while words:
        verb, rest, *words = words
        name, _, value = rest.partition("=")
        assert verb in ("export", "unset"), remedy
        assert not words or words.pop(0) == "&&", remedy
        result[name] = value if verb == "export" else None
    return result
