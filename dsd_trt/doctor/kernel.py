"""The kernel of matrix mode: whether it was compiled, loads and fits this version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from dsd_trt.doctor.child import ChildError, ask
from dsd_trt.doctor.finding import Finding
from dsd_trt.doctor.packages import broken_base
from dsd_trt.installation import rebuild_command

_SUBJECT = "kernel"
_COMPILERS = ("c++", "g++", "clang++")
_INSTALLERS = {
    "apt-get": "apt-get install --yes g++",
    "dnf": "dnf install --assumeyes gcc-c++",
    "apk": "apk add g++",
    "xcode-select": "xcode-select --install",
}


def examine(packages: Sequence[Finding]) -> Iterator[Finding]:
    """The kernel, opened in a process of its own; without it matrix mode works, and is slower.

    Args:
        packages: findings about the packages that scoring needs.
    """
    if (broken := broken_base(packages)) is not None:
        detail = f"not examined, since {broken.subject} does not work: see packages"
        yield Finding(_SUBJECT, "note", detail, broken.remedy)
        return
    try:
        found = ask("dsd_trt.doctor.kernel:open_here")
    except ChildError as error:
        found = {"why": f"it cannot be opened: {error}", "file": None, "widths": [], "tiles": None}
    why = found.pop("why")
    if not why:
        tiles = f", and {found['tiles']}-bit tiles for BF16" if found["tiles"] else ""
        detail = f"{found['file']}: {max(found['widths'])}-bit registers{tiles}"
        yield Finding(_SUBJECT, "ok", detail, "", found)
        return
    # Where no instructions of this processor serve it, compiling it again changes nothing.
    remedy = "" if found.pop("useless", False) else _compile_command()
    yield Finding(_SUBJECT, "warning", f"matrix mode is slower: {why}", remedy, found)


def open_here() -> dict[str, Any]:
    """Open the kernel in this process: its file, register widths, and why it cannot be used."""
    from dsd_trt.engine import pooled_attention  # imports numpy

    path = pooled_attention.kernel_file()
    facts: dict[str, Any] = {"file": path and str(path), "widths": [], "tiles": None, "why": ""}
    if path is None:
        compiler = next(filter(shutil.which, _COMPILERS), None)
        lacks = "" if compiler else f"; none of {', '.join(_COMPILERS)} is in PATH to compile it"
        return facts | {"why": f"the kernel was not compiled when the package was installed{lacks}"}
    try:
        pooled_attention.open_kernel(path)
    except OSError as error:
        return facts | {"why": str(error).partition("; install the package")[0]}
    facts["widths"] = pooled_attention.register_widths()
    facts["tiles"] = pooled_attention.tile_width()
    if not facts["widths"]:
        return facts | {"why": "this processor lacks AVX2, which the kernel needs", "useless": True}
    return facts


def _compile_command() -> str:
    """Command that compiles the kernel, after a compiler where there is none."""
    again = rebuild_command()
    if any(map(shutil.which, _COMPILERS)):
        return again
    installer = next((it for name, it in _INSTALLERS.items() if shutil.which(name)), None)
    return again if installer is None else f"{installer} && {again}"
