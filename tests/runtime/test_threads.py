"""The number of threads of engines of the processor, as their libraries report it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from in_process import Run
from PIL import Image

from dsd_trt import Bundle, Scorer, update_index
from dsd_trt.engine import thread_limit
from dsd_trt.engine.choice import named_backend
from dsd_trt.errors import InputError

PICTURE = np.full((8, 8, 3), 90, np.uint8)
pytest_plugins = ("in_process",)


def threads_of(scorer: Scorer, graph: str) -> int:
    """Threads of a graph's engine, as its library says."""
    engine: Any = scorer._pipeline.engine(graph)
    if scorer.backend == "onnxruntime":
        return int(engine._session.get_session_options().intra_op_num_threads)
    if graph == "matrix_scorer":
        return int(engine._source.threads)
    compiled = engine._requests[1][0].get_compiled_model()
    return int(compiled.get_property("INFERENCE_NUM_THREADS"))


@pytest.mark.parametrize("threads", [1, 2])
def test_every_graph_computes_with_the_threads_asked_for(
    engine: str, threads: int, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, matrix=True)
    for mode, graph in (("pair", "pair_scorer"), ("matrix", "matrix_scorer")):
        with Scorer.load(bundle.folder, engine, mode=mode, threads=threads) as scorer:  # type: ignore[arg-type]
            for it in ("image_encoder", "text_encoder", graph):
                assert threads_of(scorer, it) == threads
            assert f", {threads} threads" in scorer.fingerprint
            one = scorer.score([PICTURE], ["a dog"]).scores
        with Scorer.load(bundle.folder, engine, mode=mode) as scorer:  # type: ignore[arg-type]
            np.testing.assert_allclose(one, scorer.score([PICTURE], ["a dog"]).scores, atol=1e-6)
            assert "threads" not in scorer.fingerprint
            if scorer.backend == "onnxruntime":
                assert threads_of(scorer, graph) == (thread_limit() or 0)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, 2**40])
def test_what_is_no_number_of_threads_is_refused(wrong: Any, bundle: Bundle, engine: str) -> None:
    for name in (engine, "auto"):
        with pytest.raises(InputError, match="threads must be a whole number above 0, got"):
            Scorer.load(bundle.folder, name, threads=wrong)


def test_threads_are_of_the_processor() -> None:
    with pytest.raises(InputError, match="onnxruntime-cuda computes on a GPU: leave threads out"):
        named_backend("onnxruntime-cuda", threads=2)
    assert named_backend("onnxruntime", threads=np.int64(2)).threads == 2  # type: ignore[arg-type]


def test_the_commands_take_them(dsd_trt: Any, bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    (tmp_path / "texts.txt").write_text("a dog")
    scored: list[Run] = [
        dsd_trt("score", "a.png", "texts.txt", "-f", "csv", *threads)
        for threads in ((), ("--threads", "1"))
    ]
    assert [it.code for it in scored] == [0, 0]
    assert len({it.out for it in scored}) == 1
    assert dsd_trt("index", "a.png", "out", "--threads", "1").code == 0
    assert "0 is not in the range" in dsd_trt("score", "a.png", "texts.txt", "--threads", "0").err
    pytest.importorskip("pyarrow")
    done = update_index(
        tmp_path / "again", [tmp_path / "a.png"], bundle.folder, "onnxruntime", threads=1
    )
    assert done.encoded == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_cores_are_those_that_the_process_may_use() -> None:
    program = "from dsd_trt.cores import usable_cores; print(usable_cores())"
    one = min(os.sched_getaffinity(0))
    counted = [
        subprocess.run(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {cores}); {program}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for cores in ({one}, os.sched_getaffinity(0))
    ]
    assert counted == ["1", str(len(os.sched_getaffinity(0)))]
