"""Editions of ONNX Runtime: distributions that install the same files.

The later one overwrites the earlier one, and uninstalling either removes the files of both. Neither
pip nor the library says so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edition:
    """An installed distribution.

    Attributes:
        name: name of the distribution, such as "onnxruntime-gpu".
        version: version of the distribution, such as "1.31.1".
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def package_folder() -> Path | None:
    """Folder that `import onnxruntime` takes; None if there is none."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def installed_editions(package: Path) -> list[Edition]:
    """Editions whose files are in a folder, or should be.

    Args:
        package: folder that `import onnxruntime` takes.
    """
    return sorted(_editions(package.parent), key=lambda it: it.name)


def _editions(site: Path) -> Iterator[Edition]:
    for folder in site.glob("*.dist-info"):
        if not folder.name.startswith(("onnxruntime", "ort_")):
            continue
        found = importlib.metadata.PathDistribution(folder)
        if "onnxruntime/__init__.py" in (found.read_text("RECORD") or ""):
            yield Edition(found.metadata["Name"], found.version)
