"""A served graph that computes anything else than its bundle knows answers no score."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from client import Client
from onnx import numpy_helper
from self_checked import add_self_check
from server import Server
from test_engines import IMAGES, TEXTS, replace_backend
from tritonclient.utils import InferenceServerException

from dsd_trt import Bundle, Scorer
from dsd_trt.engines.triton.repository import write_repository

REQUEST = {"images": IMAGES, "texts": TEXTS}
BOTH_NUMBERS = r"self-check of the pair scorer: score\[\d\] is 0\.\d+ instead of 0\.\d+"


def change_graph(repository: Path, version: str = "1") -> None:
    """Change a weight of the pair scorer."""
    path = repository / "dsd_pair_scorer" / version / "pair_scorer.onnx"
    model = onnx.load(path)
    (tensor,) = (it for it in model.graph.initializer if it.name == "projection")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[2] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def written(bundle: Bundle, folder: Path, engine: Any, **options: Any) -> Path:
    repository = write_repository(bundle, folder, engine, max_batch_size=8, **options).folder
    replace_backend(repository)
    return repository


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_self_check(make_bundle(tmp_path_factory.mktemp("checked")))


@pytest.fixture(scope="module")
def expected(checked: Bundle) -> Any:
    return Scorer.load(checked.folder, engine="onnxruntime").score(IMAGES, TEXTS).scores


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Any]:
    """Starts servers, and ends them."""
    started: list[Server] = []

    def start(repository: Path, *arguments: str) -> Server:
        scratch = tmp_path / f"server-{len(started)}"
        scratch.mkdir()
        started.append(Server(repository, scratch, arguments))
        return started[-1]

    yield start
    for it in started:
        it.stop()


def test_what_tritons_own_backends_serve_is_checked_before_it_answers(
    checked: Bundle, expected: Any, servers: Any, tmp_path: Path
) -> None:
    """In whatever order models are loaded: one after another here. What was reloaded is healthy."""
    repository = written(checked, tmp_path / "models", "onnxruntime")
    shutil.copytree(repository / "dsd_pair_scorer" / "1", repository / "dsd_pair_scorer" / "0")
    change_graph(repository)
    one_by_one = ("--model-load-thread-count=1", "--model-control-mode=explicit")
    server = servers(repository, *one_by_one, "--load-model=*")
    with Client(server, "http") as client:
        for _ in range(8):  # of every instance
            with pytest.raises(InferenceServerException, match=BOTH_NUMBERS) as caught:
                client("dsd_score", REQUEST)
            assert "--no-self-check" in str(caught.value)
        (repository / "dsd_pair_scorer" / "0").rename(repository / "dsd_pair_scorer" / "2")
        client.triton.load_model("dsd_pair_scorer")
        for _ in range(8):
            answer = client("dsd_score", REQUEST)
            np.testing.assert_allclose(answer["scores"], expected, atol=1e-5, rtol=0)


def test_what_the_lean_runtime_serves_is_not_loaded(
    checked: Bundle, expected: Any, servers: Any, tmp_path: Path
) -> None:
    repository = written(checked, tmp_path / "models", "python")
    server = servers(repository, "--model-control-mode=explicit", "--load-model=*")
    with Client(server, "http") as client:
        versions = repository / "dsd_pair_scorer"
        for version, changed in (("2", True), ("3", False)):
            shutil.copytree(versions / "1", versions / version)
            if changed:
                change_graph(repository, version)
                with pytest.raises(InferenceServerException, match=BOTH_NUMBERS):
                    client.triton.load_model("dsd_pair_scorer")
            else:
                client.triton.load_model("dsd_pair_scorer")
            # The version before is served on.
            answer = client("dsd_score", REQUEST)
            np.testing.assert_allclose(answer["scores"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["onnxruntime", "python"])
def test_without_the_self_check_it_scores_all_the_same(
    engine: Any, checked: Bundle, expected: Any, servers: Any, tmp_path: Path
) -> None:
    repository = written(checked, tmp_path / "models", engine, self_check=False)
    change_graph(repository)
    with Client(servers(repository), "http") as client:
        scores = client("dsd_score", REQUEST)["scores"]
    assert np.isfinite(scores).all()
    assert np.abs(scores - expected).max() > 1e-3
