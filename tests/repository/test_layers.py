"""Imports point down: export -> train, engines -> dsd_trt; the runtime stays lean.

Every import statement counts, inside functions too, and `import_module("...")` with a literal name.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Layer:
    """One folder: what it may import besides itself and the standard library."""

    folder: str
    package: str
    extras: tuple[str, ...]  # the extras that install its libraries
    first_party: frozenset[str]
    third_party: frozenset[str]


LEAN = frozenset({"numpy", "PIL", "tokenizers", "click", "rich"})
TORCH = frozenset(
    {
        *("torch", "diffusers", "transformers", "safetensors", "accelerate", "huggingface_hub"),
        *("ijson", "matplotlib"),
    }
)
NVIDIA = frozenset({"tensorrt", "tensorrt_rtx", "cuda"})
OF_THE_SERVER = frozenset({"triton_python_backend_utils"})  # there where Triton runs a model

LAYERS = [
    Layer(
        "train",
        "dsd_trt.train",
        extras=("train",),
        first_party=frozenset({"dsd_trt"}),
        third_party=LEAN | TORCH,
    ),
    Layer(
        "export",
        "dsd_trt.export",
        extras=("export", "openvino"),
        first_party=frozenset({"dsd_trt.train", "dsd_trt.engines", "dsd_trt"}),
        third_party=LEAN | TORCH | {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino"},
    ),
    Layer(
        "engines",
        "dsd_trt.engines",
        extras=("gpu", "rtx", "triton"),
        first_party=frozenset({"dsd_trt"}),
        third_party=LEAN | NVIDIA | {"tritonclient", "google"} | OF_THE_SERVER,
    ),
    Layer(
        "dsd_trt",
        "dsd_trt",
        extras=("cpu", "hub", "index", "openvino", "pandas", "gpu", "rtx", "sign"),
        first_party=frozenset(),
        third_party=LEAN
        | NVIDIA
        | {
            "huggingface_hub",
            "minisign",
            "onnxruntime",
            "openvino",
            "pandas",
            "safetensors",
            "pyarrow",
        },
    ),
]
PACKAGES = {layer.folder: layer for layer in LAYERS}

# The one place that may name a heavy module, and only as a string.
COMMAND_LINE = Path("dsd_trt/commands/main.py")
HEAVY_NAME = re.compile(r"dsd_trt\.(train|export|engines)(\.\w+)*(:\w+)?")

# Where a module's name is not its distribution's.
DISTRIBUTIONS = {
    "minisign": "py-minisign",
    "PIL": "pillow",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "cuda-bindings",
    "google": "protobuf",
}


def _owner(module: str) -> str:
    """The layer of a first-party module: "dsd_trt.train.scoring.noise" -> "dsd_trt.train"."""
    return next((x.package for x in LAYERS if f"{module}.".startswith(f"{x.package}.")), module)


def _imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything a module of `package` imports.

    `from a import b` yields both "a" and "a.b": b may be a submodule.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parents, *([module] if module else [])])
                yield node.lineno, base
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def _violations(source: str, layer: Layer, package: str | None = None) -> list[str]:
    """Everything in a file that its layer may not import, as "line: name"."""
    found = []
    for line, name in _imported(ast.parse(source), package or layer.package):
        top = name.partition(".")[0]
        if top == "dsd_trt":
            allowed = _owner(name) == layer.package or _owner(name) in layer.first_party
            # `from dsd_trt import train` also names the parent, which everything below it loads.
            allowed = allowed or name == "dsd_trt"
        else:
            allowed = top in sys.stdlib_module_names or top in layer.third_party
        if not allowed:
            found.append(f"{line}: {name}")
    return found


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _package(path: Path, layer: Layer) -> str:
    return ".".join([layer.package, *path.parent.relative_to(ROOT / layer.folder).parts])


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.folder)
def test_imports_only_what_the_table_allows(layer: Layer) -> None:
    files = _files(layer.folder)
    assert files, f"{layer.folder}/ has no modules: has it moved?"
    found = [
        f"{path.relative_to(ROOT)}:{violation}"
        for path in files
        for violation in _violations(path.read_text("utf-8"), layer, _package(path, layer))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dsd_trt", "import torch"),
        ("dsd_trt", "def f():\n    import torch.nn as nn"),
        ("dsd_trt", "def f():\n    from onnx import helper"),
        ("dsd_trt", "if TYPE_CHECKING:\n    from diffusers import AutoencoderKL"),
        ("dsd_trt", "importlib.import_module('transformers')"),
        ("dsd_trt", "from dsd_trt.train.scoring.noise import FixedNoise"),
        ("dsd_trt", "from dsd_trt import export"),
        ("dsd_trt", "from . import engines"),
        ("dsd_trt", "import requests"),
        ("train", "from dsd_trt.export.commands.export import command"),
        ("train", "from ..engines import plan"),
        ("train", "import onnx"),
        ("export", "import tensorrt"),
        ("engines", "import torch"),
        ("engines", "from dsd_trt.train import noise"),
        ("engines", "from dsd_trt.export.benchmark.macs import count_macs"),
    ],
)
def test_catches_a_planted_import(folder: str, source: str) -> None:
    assert _violations(source, PACKAGES[folder])


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dsd_trt", "from dsd_trt import engine"),
        ("dsd_trt", "from .errors import DsdError"),
        ("dsd_trt", "def f():\n    import onnxruntime as ort"),
        ("train", "from dsd_trt.bundle.manifest import Graph"),
        ("train", "from .shapes import scene"),
        ("export", "from dsd_trt.train import noise"),
        ("export", "from dsd_trt.engines import build"),
        ("engines", "from dsd_trt import bundle"),
    ],
)
def test_lets_a_sound_import_pass(folder: str, source: str) -> None:
    assert _violations(source, PACKAGES[folder]) == []


def test_relative_imports_are_resolved_from_a_subpackage() -> None:
    source = "from ..train import noise\nfrom .onnxruntime import OnnxRuntimeEngine"
    assert _violations(source, PACKAGES["dsd_trt"], "dsd_trt.engine") == [
        "1: dsd_trt.train",
        "1: dsd_trt.train.noise",
    ]


def test_engine_libraries_are_imported_by_engine_modules_only() -> None:
    engines = {"onnxruntime", "openvino", *NVIDIA}
    layer = PACKAGES["dsd_trt"]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in _files("dsd_trt")
        if "engine" not in path.relative_to(ROOT).parts
        for line, name in _imported(ast.parse(path.read_text("utf-8")), _package(path, layer))
        if name.partition(".")[0] in engines
    ]
    assert found == []


def _heavy_names(path: Path) -> list[str]:
    """String constants in a runtime module that name a module of another folder."""
    return [
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and HEAVY_NAME.fullmatch(node.value)
    ]


def test_only_the_command_line_names_heavy_modules() -> None:
    named = {path.relative_to(ROOT) for path in _files("dsd_trt") if _heavy_names(path)}
    assert named == {COMMAND_LINE}


def test_heavy_names_exist() -> None:
    names = _heavy_names(ROOT / COMMAND_LINE)
    assert names
    for name in names:
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        assert not attribute or hasattr(imported, attribute), name


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.folder)
def test_every_library_is_declared_by_an_extra(layer: Layer) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    def declared(requirements: list[str]) -> Iterator[str]:
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)
            assert name
            if name[0] == project["name"]:
                chosen = re.search(r"\[(.*)\]", requirement)
                assert chosen
                for extra in chosen[1].split(","):
                    yield from declared(extras[extra])
            else:
                yield name[0]

    names = set(declared(project["dependencies"]))
    for extra in layer.extras:
        names |= set(declared(extras[extra]))
    assert {DISTRIBUTIONS.get(x, x) for x in layer.third_party - OF_THE_SERVER} <= names


# Rooms: the modules and folders of each of the four folders


def _room(module: str) -> str:
    """Where a module lies: "dsd_trt.engine.openvino.cut" -> "engine"."""
    parts = module.split(".")[1:]
    heavy = parts[:1] != [] and parts[0] in ("train", "export", "engines")
    return ".".join(parts[: 1 + heavy]) or "dsd_trt"


def _arrows() -> dict[str, set[str]]:
    """Rooms, and those that they import from; for type checkers alone counts as well."""
    arrows: dict[str, set[str]] = {}
    modules = {
        ".".join([_package(path, layer), *([path.stem] if path.stem != "__init__" else [])]): path
        for layer in LAYERS
        for path in _files(layer.folder)
    }
    for module, path in modules.items():
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        for _, name in _imported(ast.parse(path.read_text("utf-8")), package):
            imported = name
            while imported and imported not in modules:
                imported = imported.rpartition(".")[0]
            if imported and _room(imported) not in ("dsd_trt", _room(module)):
                arrows.setdefault(_room(module), set()).add(_room(imported))
    return arrows


def test_no_circle_of_rooms() -> None:
    arrows = _arrows()
    assert len(arrows) > 30
    assert {"train.diffusion", "train.run"} <= arrows["train.scoring"] | arrows["train.fewshot"]
    left = dict(arrows)
    while free := {room for room, into in left.items() if not into & left.keys()}:
        left = {room: into for room, into in left.items() if room not in free}
    assert left == {}, "these rooms import from each other"
