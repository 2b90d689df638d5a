"""The server's python models report nothing to the makers of their libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from own_network import Ended, own_network, run
from torture import Figures, scaled

from dsd_trt import Bundle

__all__ = ["own_network"]

# The server alone, for some seconds after its models were loaded and warmed up.
SERVE = """
import pathlib, sys, time
tests, repository, seconds = sys.argv[1:]
sys.path.insert(0, tests)
from server import Server
scratch = pathlib.Path("scratch")
scratch.mkdir()
server = Server(pathlib.Path(repository), scratch)
time.sleep(float(seconds))
server.stop()
"""


def serve(repository: Path, folder: Path, value: str, seconds: int = 0) -> Ended:
    """Run the server with a value for ORT_DISABLE_TELEMETRY; empty is what it comes to unset."""
    tests = Path(__file__).parent
    command = [sys.executable, "-c", SERVE, str(tests), str(repository), str(seconds)]
    ended = run(command, folder, {"ORT_DISABLE_TELEMETRY": value})
    assert ended.code == 0, ended.output
    return ended


def test_a_server_leaves_nothing(own_network: None, repository: Path, tmp_path: Path) -> None:
    ended = serve(repository, tmp_path / "x", "")
    assert not ended.asked
    assert not [it for it in ended.files if not it.startswith(".cache/dsd-trt/")]


def test_writing_a_repository_leaves_nothing(
    own_network: None, bundle: Bundle, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dsd_trt", "triton", str(bundle.folder), "models"]
    ended = run(command, tmp_path / "x")
    assert (ended.code, ended.asked, ended.files) == (0, (), ()), ended.output


@pytest.mark.torture
def test_a_server_leaves_nothing_for_long(
    own_network: None, repository: Path, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for("Triton's server, for half a minute in a network of its own", "bytes sent")
    for name in serve(repository, tmp_path / "x", "", scaled(30)).asked:
        figures.fault("bytes sent", name)
    figures.ended()


def test_a_server_reports_for_those_who_let_it(
    own_network: None, repository: Path, tmp_path: Path
) -> None:
    """Or the test above could not fail; onnxruntime before 1.32 reports nothing."""
    written = serve(repository, tmp_path / "x", "0").files
    if not written:
        pytest.skip("this onnxruntime reports nothing")
    assert [it for it in written if it.endswith("onnxruntime/deviceid")]
