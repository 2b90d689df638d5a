"""A pytest plugin: bundles exported from tiny models, once a session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import pytest
from checkpoints import write_adapter, write_checkpoint

from dsd_trt.bundle import Bundle
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.modules import BuildScoring
from dsd_trt.export.parity import ParityReport
from dsd_trt.export.settings import Settings
from dsd_trt.train.adapter import Adapter
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.model import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class Exported:
    """An exported bundle and what it was made from."""

    bundle: Bundle
    settings: Settings
    report: ParityReport

    def load(self) -> tuple[Checkpoint, BuildScoring]:
        """The model, read anew, and how its scoring U-Net is put together."""
        checkpoint = read_checkpoint(self.settings.model)
        build = partial(
            build_scoring_unet,
            checkpoint,
            None if self.settings.adapter is None else Adapter.load(self.settings.adapter),
            score_layers=self.settings.score_layers,
            levels=self.settings.levels,
        )
        return checkpoint, build

    def graph(self, name: str) -> onnx.ModelProto:
        """One graph, weights inside."""
        return onnx.load(self.bundle.path(self.bundle.manifest.graphs[name].file))


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # This seed leaves the best and the second best further apart than FP16 rounds.
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "random", checkpoint_folder)


@pytest.fixture(scope="session")
def exported_fp32(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, adapter_folder: Path
) -> Exported:
    """All layers, with an adapter."""
    settings = Settings(model=str(checkpoint_folder), adapter=adapter_folder, levels=(0.2, 0.8))
    return _export(settings, tmp_path_factory.mktemp("exported") / "fp32")


@pytest.fixture(scope="session")
def exported_fp16(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, adapter_folder: Path
) -> Exported:
    """The same in FP16."""
    settings = Settings(
        model=str(checkpoint_folder), adapter=adapter_folder, levels=(0.2, 0.8), precision="fp16"
    )
    return _export(settings, tmp_path_factory.mktemp("exported") / "fp16")


def _export(settings: Settings, out: Path) -> Exported:
    bundle, report = export_bundle(settings, out)
    return Exported(bundle, settings, report)
