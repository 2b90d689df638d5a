from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch, here or in a subprocess: small models gain nothing from threads,
# and OpenMP's wait by spinning, which on a machine that others use too costs tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from bundles import make_bundle

from dsd_trt import Bundle


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What tests have remembered, subprocesses included, is not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSD_TRT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the stand-in model, whose scores have a closed form (see `bundles`)."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "stand-in")


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")
