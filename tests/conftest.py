from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch, here or in a subprocess: small models gain nothing from threads,
# and OpenMP's wait by spinning, which on a machine that others use too costs tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from advice import watch_errors
from bundles import make_bundle

from dsd_trt import Bundle

if TYPE_CHECKING:
    from dsd_trt.train.shapes.scene import Scene


pytest_plugins = ("torture",)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What tests have remembered, subprocesses included, is not the user's; nor are settings."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in [it for it in os.environ if it.startswith("DSD_TRT_")]:
            patch.delenv(name)
        patch.setenv("DSD_TRT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What torch draws in a test does not depend on the tests before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def advice() -> Iterator[None]:
    """No error of a command names an option that the command lacks."""
    with pytest.MonkeyPatch.context() as patch:
        watch_errors(patch)
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the stand-in model, whose scores have a closed form (see `bundles`)."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "stand-in")


@pytest.fixture(scope="module")
def few_words() -> Iterator[None]:
    """Random models of 4,000 tokens: CLIP's 49,408 take most of the time in which one is read."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("families", "random_model"):
            patch.setattr(f"dsd_trt.train.diffusion.{module}.VOCABULARY", 4000)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions about shapes with grey pictures, in no time: for what is not about the pictures."""
    from dsd_trt.train.shapes import datasets as shapes
    from dsd_trt.train.shapes.render import Drawing

    def grey(scene: Scene, rng: np.random.Generator) -> Drawing:
        masks = np.ones((len(scene.things), 64, 64), np.bool_)
        return Drawing(np.full((64, 64, 3), 128, np.uint8), masks)

    monkeypatch.setattr(shapes, "draw", grey)


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")
