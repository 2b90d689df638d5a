from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from client import PROTOCOLS, Client
from inputs import LIMITS
from server import Server

from dsd_trt import Bundle
from dsd_trt.engines.triton.repository import write_repository


@pytest.fixture(scope="session")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    return write_repository(bundle, folder, "python", max_batch_size=16, limits=LIMITS).folder


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    started = Server(repository, tmp_path_factory.mktemp("server"), explicit)
    yield started
    started.stop()


@pytest.fixture(params=PROTOCOLS)
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(server, request.param) as opened:
        yield opened
