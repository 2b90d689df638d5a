"""Run commands where importing the training stack fails: python without_training.py COMMANDS.json.

The libraries are found, so that a command believes them installed. Their import ends it with an
error that no command knows. The outcome of each command is a line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

TRAINING = ("torch", "diffusers", "transformers", "accelerate", "onnx", "matplotlib")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
"""Libraries that take most of a second, or more, to import."""


class ImportedError(Exception):
    """A library was imported that may not be."""


class _Refusing(Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        raise ImportedError(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        raise ImportedError(module.__name__)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in TRAINING + ENGINES:
            return None
        return importlib.machinery.ModuleSpec(name, _Refusing())


def _files() -> list[str]:
    return sorted(str(it) for it in Path().rglob("*") if it.name != "__pycache__")


def main() -> None:
    """Run the commands of a file, each from the same folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", type=Path, help="JSON list of lists of arguments")
    commands = json.loads(parser.parse_args().commands.read_text("utf-8"))
    sys.meta_path.insert(0, _Finder())
    from click.testing import CliRunner

    from dsd_trt.commands.main import cli

    for arguments in commands:
        before = _files()
        done = CliRunner().invoke(cli, arguments)
        error = done.exception
        found = {
            "code": done.exit_code,
            "output": " ".join(done.output.split()),
            "error": None if isinstance(error, SystemExit) else repr(error),
            "left": sorted(set(_files()) ^ set(before)),
        }
        sys.stdout.write(json.dumps(found) + os.linesep)


if __name__ == "__main__":
    main()
