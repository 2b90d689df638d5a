"""Copy the package's modules that a model of Triton's python backend imports.

The server then preprocesses images and texts with the same code as Python, and need not have
dsd-trt installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from dsd_trt.engine import BACKENDS
from dsd_trt.engine.pooled_attention import kernel_file

_PACKAGE = "dsd_trt"
_KERNEL_USER = "engine/pooled_attention.py"


def write_code(folder: Path, model: str) -> None:
    """Write a python model's `model.py`, and beside it the package's modules that it imports.

    Args:
        folder: version folder of the model.
        model: name of a module in `dsd_trt.engines.triton.models`.
    """
    models = resources.files("dsd_trt.engines.triton.models")
    source = (models / f"{model}.py").read_text("utf-8")
    (folder / "model.py").write_text(source, "utf-8")
    files = needed_files(source)
    if _KERNEL_USER in files and (kernel := kernel_file()) is not None:
        # A name without a Python version: the server's may differ, and the kernel does not use it.
        files["engine/_pooled_attention.so"] = kernel.read_bytes()
    for name, content in files.items():
        target = folder / _PACKAGE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def needed_files(source: str) -> dict[str, bytes]:
    """Modules of the package that a model needs, its backends included.

    A model's configuration names its backend, so no import in its source shows which one it is.

    Args:
        source: Python source of the model.

    Returns:
        Contents of the modules by their path in the package.
    """
    named = BACKENDS.values() if "open_first" in source else ()
    return imported_files("\n".join([source, *(f"import {it.partition(':')[0]}" for it in named)]))


def imported_files(source: str) -> dict[str, bytes]:
    """Modules of the package that a source imports, directly or indirectly.

    Imports inside functions count, because the server may execute them. Imports for type checkers
    do not.

    Args:
        source: Python source of the model.

    Returns:
        Contents of the modules by their path in the package.
    """
    found: dict[str, bytes] = {}
    sources = [source]
    while sources:
        for name in _imports(ast.parse(sources.pop())):
            for path, file in _files(name):
                if path not in found:
                    found[path] = file.read_bytes()
                    sources.append(file.read_text("utf-8"))
    return found


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a source imports; `from a import b` gives both `a` and `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from _imports(other)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imports(node)


def _files(name: str) -> Iterator[tuple[str, Traversable]]:
    """Files that importing a dotted name executes: each package's `__init__.py` and the module."""
    first, *parts = name.split(".")
    if first != _PACKAGE:
        return
    package = resources.files(_PACKAGE)
    for depth in range(len(parts) + 1):
        inner = "/".join(parts[:depth])
        for path in (PurePosixPath(inner) / "__init__.py", PurePosixPath(f"{inner}.py")):
            if (file := package.joinpath(str(path))).is_file():
                yield str(path), file
