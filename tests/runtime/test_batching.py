"""The fastest batch size: found on real work, remembered, and without a trace in the scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, make_bundle

from dsd_trt import Bundle, Scorer
from dsd_trt.batching import FastestBatch
from dsd_trt.engine.onnxruntime.cpu import CPU, OnnxRuntimeEngine
from dsd_trt.pipeline import Pipeline

TRIED = [32, 16, 8, 4] * 4


@pytest.fixture(autouse=True)
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own."""
    folder = tmp_path / "remembered"
    monkeypatch.setenv("DSD_TRT_CACHE", str(folder))
    return folder


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[FastestBatch, int], list[int]]:
    """Works through a count by a clock of its own, on which 8 are fastest.

    The first batch of a size takes longer the smaller it is, as if kernels were set up, and of the
    others some of the larger ones do, as if the machine had been busy.
    """
    now = 0.0
    seen: list[int] = []
    monkeypatch.setattr("dsd_trt.batching.perf_counter", lambda: now)

    def run(batches: FastestBatch, count: int) -> list[int]:
        nonlocal now
        sizes, end = [], 0
        for rows in batches.cut(count):
            assert rows.start == end
            size, end = rows.stop - rows.start, rows.stop
            sizes.append(size)
            now += 4 + size + size**2 / 16 + (0 if size in seen else 1000 / size)
            now += 100 if size >= 8 and seen.count(size) in (1, 3) else 0
            seen.append(size)
        assert end == count
        return sizes

    return run


def test_the_fastest_is_found_on_the_work_itself_and_remembered(work: Any) -> None:
    assert work(FastestBatch(32, "here"), 270) == [*TRIED, 8, 8, 8, 6]
    assert work(FastestBatch(32, "here"), 20) == [8, 8, 4]
    assert work(FastestBatch(32, "elsewhere"), 240) == TRIED
    assert work(FastestBatch(16, "here"), 30) == [16, 8, 4, 2]  # another budget is another question


def test_a_trial_goes_on_where_the_last_work_ended_and_times_whole_batches_alone(work: Any) -> None:
    batches = FastestBatch(32, "here")
    assert work(batches, 31) == [31]
    assert work(batches, 70) == [32, 16, 8, 4, 10]
    assert work(batches, 34) == [32, 2]
    assert work(FastestBatch(32, "here"), 48) == [32, 16]  # nothing is remembered of half a trial
    assert work(batches, 148) == TRIED[5:]
    assert work(batches, 24) == [8, 8, 8]


def test_threads_may_find_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsd_trt.batching.remember", lambda *_: None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(60):
                batches = FastestBatch(32, "here")
                cut = [pool.submit(list[slice], batches.cut(300)) for _ in range(8)]
                for done in cut:
                    assert sum(rows.stop - rows.start for rows in done.result()) == 300
                assert batches.size in TRIED
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(("largest", "key"), [(7, "here"), (1, "here"), (32, None)])
def test_nothing_is_tried_where_there_is_no_choice(
    work: Any, remembered: Path, largest: int, key: str | None
) -> None:
    assert work(FastestBatch(largest, key), 4 * largest) == [largest] * 4
    assert not remembered.exists()


def test_without_a_cache_every_process_tries(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_TRT_CACHE", "")
    for _ in range(2):
        assert work(FastestBatch(32, "here"), 240) == TRIED


def test_what_was_remembered_and_cannot_be_is_not_believed(work: Any, remembered: Path) -> None:
    work(FastestBatch(32, "here"), 240)
    (file,) = remembered.iterdir()
    file.write_text(file.read_text("utf-8").replace("8}", "0}"), "utf-8")
    assert work(FastestBatch(32, "here"), 120)[:4] == TRIED[:4]


# With a bundle


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pair scorer's batches, as ONNX Runtime gets them."""
    sizes: list[int] = []
    run = OnnxRuntimeEngine.run

    def recorded(self: OnnxRuntimeEngine, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if "level" in feeds:
            sizes.append(len(feeds["level"]))
        return run(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", recorded)
    return sizes


def _score(scorer: Scorer) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (30, RESOLUTION, RESOLUTION, 3), "u1"))
    texts = ["a red circle", "dog", "a blue square", "a", "red dog"]
    expected = [[closed_form(image, text) for text in texts] for image in images]
    np.testing.assert_allclose(scorer.score(images, texts).scores, expected, atol=1e-6)


def test_the_first_run_on_a_machine_and_any_later_one_give_the_same_bytes(
    bundle: Bundle, engine: str, batches: list[int], remembered: Path
) -> None:
    """On the embedded model, whose numbers are as any: batches are what they always are."""
    images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    texts = ["a red circle", "a dog", "two blue squares"]
    runs = [Scorer.load(None, engine).score(images, texts).scores.tobytes() for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert not list(remembered.glob("batch-*"))
    batches.clear()
    _score(Scorer.load(bundle.folder, engine))
    assert batches == ([32] * 14 + [2] if engine == "onnxruntime" else [])


def test_other_numbers_of_threads_differ_in_the_last_bits_alone(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))
    texts = ["a red circle", "a dog", "two blue squares", "a large green star in a blue ring"]
    scores = []
    for threads in (1, 2):
        for module in ("onnxruntime.cpu", "openvino.graph"):
            monkeypatch.setattr(f"dsd_trt.engine.{module}.thread_limit", lambda n=threads: n)
        scores.append(Scorer.load(None, engine).score(images, texts).scores)
    assert np.ptp(scores[0]) > 1e-3
    assert np.abs(scores[1] - scores[0]).max() < 1e-6


def test_a_scorer_that_is_to_tune_tries_once_on_a_machine(
    bundle: Bundle, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _score(Scorer.load(bundle.folder, "onnxruntime", tune=True))
    assert batches[:16] == TRIED
    chosen = batches[16]
    assert chosen in TRIED
    batches.clear()
    _score(Scorer.load(bundle.folder, "onnxruntime", tune=True))
    assert set(batches[:-1]) == {chosen}
    batches.clear()
    monkeypatch.setattr("dsd_trt.pipeline.thread_limit", lambda: 77)
    _score(Scorer.load(bundle.folder, "onnxruntime", tune=True))
    assert batches[:16] == TRIED


def test_another_engine_or_graph_is_another_question(bundle: Bundle, tmp_path: Path) -> None:
    keys = set()
    for folder in (bundle.folder, make_bundle(tmp_path / "fp16", precision="fp16").folder):
        for engine in ("onnxruntime", "openvino"):
            keys.add(Scorer.load(folder, engine, tune=True)._pipeline._passes._key)
    assert len(keys) == 4


def test_a_backend_that_knows_its_batches_is_not_tried(
    bundle: Bundle, batches: list[int], remembered: Path
) -> None:
    pipeline = Pipeline(bundle, replace(CPU, tunes_batch=False), 1024, tune=True)
    states = pipeline.encode_texts(["a dog"])
    latent = pipeline.encode_images([np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)])
    zeros = np.zeros(100, np.intp)
    pipeline.score(latent, states, zeros, zeros, np.arange(1, dtype=np.int32))
    assert batches == [32, 32, 32, 4]
    assert not remembered.exists()
