"""What a model of Triton's python backend brings along of the package: the modules it imports.

Images and texts become the same numbers as in Python, and the server needs no package of ours.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from dsd_trt.engine import BACKENDS
from dsd_trt.engine.openvino.pooled_attention import kernel_file

_PACKAGE = "dsd_trt"
_KERNEL_USER = "engine/openvino/pooled_attention.py"


def write_code(folder: Path, model: str) -> None:
    """Write a python model's `model.py`, and beside it what it imports of the package.

    Args:
        folder: of the model's version.
        model: a module of `dsd_trt.engines.triton.models`.
    """
    models = resources.files("dsd_trt.engines.triton.models")
    source = (models / f"{model}.py").read_text("utf-8")
    (folder / "model.py").write_text(source, "utf-8")
    files = needed_files(source)
    if _KERNEL_USER in files and (kernel := kernel_file()) is not None:
        # Named for every Python: the server's may be another, and the kernel asks nothing of it.
        files["engine/openvino/_pooled_attention.so"] = kernel.read_bytes()
    for name, content in files.items():
        target = folder / _PACKAGE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def needed_files(source: str) -> dict[str, bytes]:
    """Modules of the package that a model needs; arguments and result as of `imported_files`.

    Backends are named in a model's configuration, and imported by that name.
    """
    named = BACKENDS.values() if "find_backend" in source else ()
    return imported_files("\n".join([source, *(f"import {it.partition(':')[0]}" for it in named)]))


def imported_files(source: str) -> dict[str, bytes]:
    """Modules of the package that a source imports, and all that these import in turn.

    Imports within functions count, since the server may come to them; those for type checkers do
    not.

    Returns:
        Contents by path within the package.
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
    """Dotted names that a source imports; of `from a import b` both `a` and `a.b`."""
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
    """Files that importing a dotted name runs: of each package on the way, and of the module."""
    first, *parts = name.split(".")
    if first != _PACKAGE:
        return
    package = resources.files(_PACKAGE)
    for depth in range(len(parts) + 1):
        inner = "/".join(parts[:depth])
        for path in (PurePosixPath(inner) / "__init__.py", PurePosixPath(f"{inner}.py")):
            if (file := package.joinpath(str(path))).is_file():
                yield str(path), file
