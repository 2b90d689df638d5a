"""The real onnxruntime-gpu, on a machine without a GPU; `make test-cuda` installs it.

What the stand-ins of the other tests assume about it is held against it here.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stub_libraries import compile_driver, needs_compiler

from dsd_trt.engine.driver import why_no_driver
from dsd_trt.errors import EngineError

ROOT = Path(__file__).parents[2]
GRAPH = ROOT / "dsd_trt" / "data" / "shapes-bundle" / "pair_scorer.onnx"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not _installed("onnxruntime-gpu"), reason="needs onnxruntime-gpu"),
    pytest.mark.skipif(why_no_driver() is None, reason="is about machines without a GPU"),
]


def score(**environment: str) -> subprocess.CompletedProcess[str]:
    command = ["score", "examples/images", "examples/texts.txt", "--engine", "onnxruntime-cuda"]
    return subprocess.run(
        [sys.executable, "-m", "dsd_trt", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missing_driver() -> None:
    done = score()
    assert done.returncode == 4
    assert "NVIDIA's driver is not installed" in done.stderr
    assert done.stdout == ""


@needs_compiler
def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    compile_driver(tmp_path, version=11080)
    done = score(LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 4
    assert "and NVIDIA's driver runs up to 11.8" in done.stderr


@needs_compiler
def test_missing_libraries(tmp_path: Path) -> None:
    compile_driver(tmp_path, version=99000)
    done = score(LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 4
    assert "libcudnn.so.9 of CUDA" in done.stderr
    assert "Failed to load" not in done.stderr + done.stdout  # what the library prints of its own


def test_a_silent_fall_is_seen() -> None:
    """ONNX Runtime opens a session on the CPU although CUDA alone is asked for."""
    import onnxruntime

    from dsd_trt.engine.onnxruntime.cuda_session import open_session

    plain = onnxruntime.InferenceSession(GRAPH, providers=["CUDAExecutionProvider"])
    assert plain.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match="took \\['CPUExecutionProvider'\\] for CUDA"):
        open_session(onnxruntime, GRAPH, 0, 2**20, recorded=False)


def test_placement_is_read_back() -> None:
    import onnxruntime

    from dsd_trt.engine.onnxruntime.cuda_session import require_placement

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(GRAPH, options, ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"on the processor: .*Conv.*MatMul"):
        require_placement(session.get_provider_graph_assignment_info(), GRAPH)


def test_it_has_what_the_stand_in_has() -> None:
    import onnxruntime
    from fake_ort import FakeBinding, FakeSession

    binding = onnxruntime.IOBinding
    for name in ("bind_input", "bind_output"):
        real = list(inspect.signature(getattr(binding, name)).parameters)[1:]
        assert real == ["name", "device_type", "device_id", "element_type", "shape", "buffer_ptr"]
        assert len(inspect.signature(getattr(FakeBinding, name)).parameters) == len(real) + 1
    for name in (
        "run_with_iobinding",
        "release_captured_graph",
        "get_provider_graph_assignment_info",
    ):
        assert hasattr(onnxruntime.InferenceSession, name)
        assert hasattr(FakeSession, name)
