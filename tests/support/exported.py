"""A pytest plugin: bundles exported from tiny checkpoints, once for all test processes of a run.

An export takes most of a minute, nearly all of it in PyTorch's tracing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import write_adapter, write_checkpoint

from dsd_trt.bundle.folder import Bundle, read_bundle
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.parity import ParityReport
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.settings import ExportSettings
from dsd_trt.files.schema import from_plain
from dsd_trt.train.scoring.adapter import Adapter


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the FP16 bundle as slow, because it takes another export."""
    for item in items:
        asked = getattr(item, "fixturenames", ())
        chosen = item.callspec.params.get("exported") if hasattr(item, "callspec") else None
        if "exported_fp16" in asked or chosen == "exported_fp16":
            item.add_marker("slow")


@dataclass(frozen=True)
class Exported:
    """An exported bundle, its settings and its parity figures.

    Attributes:
        bundle: the bundle that was exported.
        settings: checkpoint, adapter, precision and score of the export.
        report: agreement of the graphs with the reference.
        hashed: number of times each file was hashed; empty if the command line exported.
        said: stdout and stderr of the command; empty if no command line exported.
    """

    bundle: Bundle
    settings: ExportSettings
    report: ParityReport
    hashed: Mapping[str, int]
    said: tuple[str, str] = ("", "")

    def load(self) -> Recipe:
        """Read the recipe of the export again."""
        return Recipe.read(self.settings)

    def graph(self, name: str) -> onnx.ModelProto:
        """Load one graph with its weights."""
        return onnx.load(self.bundle.path(self.bundle.manifest.graphs[name].file))


@contextmanager
def shared_by_processes(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that the run's processes share: the first one fills it, the others wait."""
    base = factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base  # pytest-xdist's workers
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / name


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with shared_by_processes(tmp_path_factory, "tiny") as folder:
        if not folder.exists():
            # With this seed the best two scores differ by more than FP16's rounding error.
            write_checkpoint(folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path) -> Path:
    with shared_by_processes(tmp_path_factory, "random-adapter") as folder:
        if not folder.exists():
            write_adapter(folder, checkpoint_folder)
    return folder


@pytest.fixture(scope="session")
def pair_settings(checkpoint_folder: Path, adapter_folder: Path) -> ExportSettings:
    """Export settings with all layers and an adapter, in FP32."""
    return ExportSettings(model=str(checkpoint_folder), adapter=adapter_folder, levels=(0.2, 0.8))


@pytest.fixture(scope="session")
def exported_fp32(
    tmp_path_factory: pytest.TempPathFactory, pair_settings: ExportSettings, adapter_folder: Path
) -> Exported:
    """An FP32 export with both modes; its adapter is marked as trained for both."""
    with shared_by_processes(tmp_path_factory, "random-adapter-of-both") as folder:
        if not folder.exists():
            adapter = replace(
                Adapter.load(adapter_folder), mode="both", matrix_a=5.0, matrix_b=-1.0
            )
            adapter.save(folder)
    settings = replace(pair_settings, adapter=folder)
    return export_once(tmp_path_factory, "exported-fp32", settings)


@pytest.fixture(scope="session")
def exported_fp16(
    tmp_path_factory: pytest.TempPathFactory, pair_settings: ExportSettings
) -> Exported:
    """An FP16 export for pair mode, made by the command line."""
    settings = replace(pair_settings, precision="fp16")
    with shared_by_processes(tmp_path_factory, "exported-fp16") as folder:
        said = folder.with_name("exported-fp16.json")
        if not folder.exists():
            done = _run_export(settings, folder)
            said.write_text(json.dumps([done.stdout, done.stderr]))
    return replace(_exported(folder, settings, {}), said=tuple(json.loads(said.read_text())))


def _run_export(settings: ExportSettings, folder: Path) -> subprocess.CompletedProcess[str]:
    assert settings.levels is not None
    command = [str(Path(sys.executable).with_name("dsd-trt")), "export", "--out", str(folder)]
    command += ["--model", settings.model, "--adapter", str(settings.adapter)]
    command += ["--levels", ",".join(map(str, settings.levels)), "--precision", settings.precision]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope="session")
def fed_fp32(tmp_path_factory: pytest.TempPathFactory, pair_settings: ExportSettings) -> Bundle:
    """An FP32 export with the adapter as an input, and with forms for CUDA."""
    settings = replace(pair_settings, verify="quick", adapter_input=True, cuda_form="attention")
    return export_once(tmp_path_factory, "fed-fp32", settings).bundle


@pytest.fixture(scope="session")
def fed_fp16(tmp_path_factory: pytest.TempPathFactory, pair_settings: ExportSettings) -> Bundle:
    """An FP16 export with the adapter as an input."""
    settings = replace(pair_settings, precision="fp16", verify="quick", adapter_input=True)
    return export_once(tmp_path_factory, "fed-fp16", settings).bundle


def export_once(factory: pytest.TempPathFactory, name: str, settings: ExportSettings) -> Exported:
    """Export to a shared folder, or wait for another process that does; read-only for tests."""
    with shared_by_processes(factory, name) as folder:
        counts = folder.with_name(f"{name}.hashed.json")
        if not folder.exists():
            with _hashed_files() as hashed:
                export_bundle(settings, folder)
            counts.write_text(json.dumps(hashed))
    return _exported(folder, settings, json.loads(counts.read_text()))


def _exported(folder: Path, settings: ExportSettings, hashed: Mapping[str, int]) -> Exported:
    bundle = read_bundle(folder)
    report = from_plain(ParityReport, bundle.manifest.parity)
    return Exported(bundle, settings, report, hashed)


@contextmanager
def _hashed_files() -> Iterator[Counter[str]]:
    """Count how often a file of each name is hashed inside the block."""
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(stream: Any, kind: str) -> Any:
        hashed[Path(stream.name).name] += 1
        return digest(stream, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "file_digest", counted)
        yield hashed
