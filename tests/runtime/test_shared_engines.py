"""Scorers among threads and processes, and what they leave behind: nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from backends import open_engine
from bundles import make_bundle
from numpy.typing import NDArray
from torture import Figures, not_in_a_slice, scaled

from dsd_trt import Bundle, DsdError, EngineError, Scorer
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import Engine

ENGINES: list[tuple[str, Mode]] = [
    ("onnxruntime", "pair"),
    ("onnxruntime", "matrix"),
    ("openvino", "pair"),
    ("openvino", "matrix"),
]
TEXTS = ["a red circle", "a dog", "a blue square"]
THREADS = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", matrix=True)


@pytest.fixture(params=ENGINES, ids="-".join)
def scorer(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Scorer]:
    engine, mode = request.param
    with Scorer(bundle, engine, mode=mode) as opened:
        yield opened


@pytest.fixture(params=ENGINES, ids="-".join)
def graph_engine(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[tuple[Engine, Graph]]:
    engine, mode = request.param
    graph = bundle.manifest.graphs[f"{mode}_scorer"]
    opened = open_engine(bundle.path(graph.file), graph, engine)
    yield opened, graph
    opened.close()


def images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, 8, 8, 3), np.uint8))


def feeds_of(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """What the graph takes, of random sizes."""
    sizes = {name: int(rng.integers(1, end)) for name, end in (("I", 5), ("T", 5), ("B", 40))}
    sizes["L"] = 16
    feeds: dict[str, NDArray[Any]] = {}
    for spec in graph.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        feeds[spec.name] = (
            rng.integers(0, 3, shape).astype(spec.dtype)
            if spec.dtype == "int32"
            else rng.normal(size=shape).astype(spec.dtype)
        )
    feeds["token_mask"] = np.ones_like(feeds["token_mask"])
    return feeds


def bad_feeds(graph: Graph, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What it does not take: each with one thing that is wrong."""
    good = feeds_of(graph, rng)
    wrong: list[dict[str, Any]] = [
        {name: values for name, values in good.items() if name != "level"},
        good | {"more": good["level"]},
        good | {"level": good["level"].tolist()},
        good | {"level": good["level"].astype(np.int64)},
        good | {"latent": good["latent"].astype(np.float64)},
        good | {"latent": good["latent"].astype(">f4")},
        good | {"latent": good["latent"][:, :, :1]},
        good | {"latent": good["latent"][0]},
        good | {"level": np.zeros(len(good["level"]) + 1, np.int32)},
        good | {"text_states": good["text_states"][:, :-1]},
        {name: values[:0] for name, values in good.items()},
    ]
    return wrong


# Threads


OF_CALLS = ("wrong", "foreign exceptions", "hung")


def together(calls: int, call: Callable[[int], None], figures: Figures | None = None) -> None:
    """Make calls on several threads; the first error is raised here, or all are counted."""
    with ThreadPoolExecutor(THREADS) as pool:
        for number, done in enumerate([pool.submit(call, number) for number in range(calls)]):
            try:
                done.result(timeout=600)
            except Exception as error:
                if figures is None:
                    raise
                kind = "wrong" if isinstance(error, AssertionError) else "foreign exceptions"
                kind = "hung" if isinstance(error, TimeoutError) else kind
                figures.fault(kind, f"call {number}: {error!r}")
            if figures is not None:
                figures.ended()


def check_engine(engine: Engine, graph: Graph, calls: int, figures: Figures | None = None) -> None:
    """Good and bad calls of several threads: each gets what it would get alone."""
    rng = np.random.default_rng(1)
    good = [feeds_of(graph, rng) for _ in range(16)]
    wanted = [engine.run(feeds) for feeds in good]
    bad = bad_feeds(graph, rng)

    def call(number: int) -> None:
        if number % 5 == 4:
            with pytest.raises(EngineError, match=graph.file):
                engine.run(bad[number // 5 % len(bad)])
            return
        found = engine.run(good[number % len(good)])
        for name, values in wanted[number % len(good)].items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)

    together(calls, call, figures)


def check_scorer(scorer: Scorer, calls: int, figures: Figures | None = None) -> None:
    pictures = images(16)
    wanted = scorer.score(pictures, TEXTS).scores
    assert len(np.unique(wanted)) == wanted.size  # a score that is another's would be seen

    def call(number: int) -> None:
        place, text = number % len(pictures), number % len(TEXTS)
        if number % 5 == 4:
            odd: list[Any] = [b"no image", np.zeros((8, 8, 7), np.uint8), pictures[place]]
            result = scorer.score(odd, [TEXTS[text]])
            assert np.isnan(result.scores[:2]).all()
            assert abs(result.scores[2, 0] - wanted[place, text]) < 1e-6
            with pytest.raises(DsdError):
                scorer.score([pictures[place]], [TEXTS[text]], levels=[0.123])
        elif number % 5 == 3:
            pairs = scorer.score_pairs([(pictures[place], TEXTS[text])]).scores
            assert abs(pairs[0] - wanted[place, text]) < 1e-6
        else:
            chosen = [place, (place + 5) % len(pictures)]
            found = scorer.score([pictures[it] for it in chosen], TEXTS).scores
            np.testing.assert_allclose(found, wanted[chosen], rtol=0, atol=1e-6)

    together(calls, call, figures)


def test_threads_share_an_engine(graph_engine: tuple[Engine, Graph]) -> None:
    check_engine(*graph_engine, 200)


def test_threads_share_a_scorer(scorer: Scorer) -> None:
    check_scorer(scorer, 80)


@pytest.mark.torture
def test_threads_share_an_engine_for_long(
    graph_engine: tuple[Engine, Graph], figures: Figures
) -> None:
    figures.look_for("calls of 8 threads on one engine, every fifth bad", *OF_CALLS)
    check_engine(*graph_engine, scaled(THREADS * 2000), figures)


@pytest.mark.torture
def test_threads_share_a_scorer_for_long(scorer: Scorer, figures: Figures) -> None:
    figures.look_for("calls of 8 threads on one scorer, every fifth bad", *OF_CALLS)
    check_scorer(scorer, scaled(THREADS * 2000), figures)


@pytest.mark.torture
@not_in_a_slice
def test_threads_are_no_slower_than_one(scorer: Scorer, figures: Figures) -> None:
    """Twice the time would be allowed: the machine has other things to do."""
    figures.look_for("throughput of 8 threads on one scorer against one thread's", "wrong")
    pictures = images(32)

    def seconds(threads: int) -> float:
        begin = perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: scorer.score(pictures, TEXTS * 4), range(16)))
        return perf_counter() - begin

    seconds(1)
    alone, shared = (min(seconds(threads) for _ in range(3)) for threads in (1, THREADS))
    figures.measured["8 threads / 1 thread"] = round(alone / shared, 2)
    figures.ended()
    if shared > 2 * alone:
        figures.fault("wrong", f"{shared:.2f} s instead of {alone:.2f} s")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_threads_open_scorers_at_once(bundle: Bundle, engine: str) -> None:
    picture = images(1)
    wanted = Scorer(bundle, engine).score(picture, TEXTS).scores

    def call(number: int) -> None:
        with Scorer(bundle, engine) as scorer:
            np.testing.assert_allclose(scorer.score(picture, TEXTS).scores, wanted, atol=1e-6)

    together(2 * THREADS, call)


def test_what_a_graph_does_not_take_is_refused_before_it_runs(
    graph_engine: tuple[Engine, Graph],
) -> None:
    engine, graph = graph_engine
    rng = np.random.default_rng(2)
    good = feeds_of(graph, rng)
    wanted = engine.run(good)["score"]
    for _ in range(3):  # of each as many as there are slots, and one more
        for feeds in bad_feeds(graph, rng):
            with pytest.raises(EngineError, match=graph.file):
                engine.run(feeds)
    np.testing.assert_allclose(engine.run(good)["score"], wanted, rtol=0, atol=1e-6)


# Closing


def test_a_scorer_is_closed_once_and_for_all(bundle: Bundle) -> None:
    picture = images(1)[0]
    uses: tuple[Callable[[Scorer], object], ...] = (
        lambda it: it.score([picture], TEXTS),
        lambda it: it.score_pairs([(picture, "a dog")]),
        lambda it: it.rank("a dog", [picture]),
    )
    for engine, mode in ENGINES:
        with Scorer(bundle, engine, mode=mode) as scorer:
            assert np.isfinite(scorer.score([picture], TEXTS).scores).all()
        scorer.close()
        scorer.close()
        for use in uses:
            with pytest.raises(EngineError, match="closed; open another"):
                use(scorer)
        assert scorer.engine.device.startswith("CPU")  # what it was can still be asked


def test_closing_waits_for_the_pass_that_is_under_way(scorer: Scorer) -> None:
    """Other threads get whole results, or are told; none hangs."""
    wanted = scorer.score(images(4), TEXTS).scores
    outcomes: list[object] = []

    def use() -> None:
        try:
            while True:
                found = scorer.score(images(4), TEXTS).scores
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        except EngineError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    scorer.score(images(4), TEXTS)
    scorer.close()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 4
    assert all("closed" in str(outcome) for outcome in outcomes)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_handler_in_the_middle_of_a_pass_is_told(
    graph_engine: tuple[Engine, Graph],
) -> None:
    """It neither hangs nor disturbs the pass, whether it scores or closes."""
    engine, graph = graph_engine
    feeds = feeds_of(graph, np.random.default_rng(1))
    wanted = engine.run(feeds)["score"]
    told: list[str] = []

    def run(*_: object) -> None:
        try:
            np.testing.assert_array_equal(engine.run(feeds)["score"], wanted)
        except EngineError as error:
            told.append(str(error))
            engine.close()

    def run_until_closed() -> None:
        for place in range(100_000):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 * (1 + place % 20))
            np.testing.assert_array_equal(engine.run(feeds)["score"], wanted)

    before = signal.signal(signal.SIGALRM, run)
    try:
        with pytest.raises(EngineError, match="closed"):
            run_until_closed()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "in the middle of a run" in told[0]


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals here")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_signal_reaches_a_thread_whose_scorer_another_one_closed(
    bundle: Bundle, engine: str
) -> None:
    code = textwrap.dedent(f"""
        import signal, threading
        from dsd_trt import Scorer

        scorers = [Scorer.load({str(bundle.folder)!r}, {engine!r})]
        thread = threading.Thread(target=lambda: scorers.pop().close())
        thread.start()
        thread.join()
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
        signal.raise_signal(signal.SIGTERM)
        print(heard)
    """)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "[1]\n"), ended.stderr


# What is left behind


def leaks(bundle: Bundle, folder: Path, *arguments: str) -> list[dict[str, float]]:
    """What a process holds after a tenth of its scorers, and after all."""
    copy = make_bundle(folder / "bundle", matrix=True)
    script = Path(__file__).parents[1] / "support" / "leaks.py"
    command = [sys.executable, str(script), str(copy.folder), *arguments]
    environment = {**os.environ, "DSD_TRT_CACHE": str(folder / "cache")}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert not ran.returncode, ran.stderr
    found: list[dict[str, float]] = json.loads(ran.stdout)
    return found


def check_flat(
    bundle: Bundle, folder: Path, *arguments: str
) -> tuple[dict[str, float], dict[str, float]]:
    early, late = leaks(bundle, folder, *arguments)
    assert late["threads"] <= early["threads"]
    assert late["files"] <= early["files"]
    assert late["mib"] < early["mib"] + 20  # a scorer that stayed would hold 2 to 4 MiB
    return early, late


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("engine", "mode"), [ENGINES[0], *ENGINES[2:]])
def test_scorers_that_are_dropped_leave_nothing(
    bundle: Bundle, tmp_path: Path, engine: str, mode: str, broken: bool
) -> None:
    check_flat(bundle, tmp_path, engine, mode, "10", *["broken"] * broken)


@pytest.mark.torture
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("engine", "mode"), ENGINES)
def test_many_scorers_that_are_dropped_leave_nothing(
    bundle: Bundle, tmp_path: Path, engine: str, mode: str, broken: bool, figures: Figures
) -> None:
    figures.look_for("scorers opened and dropped, half of them broken", "left behind")
    count = scaled(200, 20)
    with figures.attempt("left behind", f"{engine} {mode}"):
        early, late = check_flat(bundle, tmp_path, engine, mode, str(count), *["broken"] * broken)
        for name, unit in (("mib", "MiB"), ("threads", "threads"), ("files", "open files")):
            figures.measured[f"more {unit} after the last than after a tenth"] = round(
                late[name] - early[name], 1
            )
    figures.ended(count=count - 1)


# Processes

FORKED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from dsd_trt import EngineError, Scorer, read_bundle

    bundle, engine, mode = read_bundle(Path(sys.argv[1])), *sys.argv[2:]
    picture = [np.zeros((8, 8, 3), np.uint8)]
    scorer = Scorer(bundle, engine, mode=mode)
    scorer.score(picture * 40, ["a dog"])
    if (child := os.fork()):
        status = os.waitpid(child, 0)[1]
        print("ended by", status)
        scorer.score(picture, ["a dog"])  # the parent's goes on
    else:
        signal.alarm(30)
        for use in (
            lambda: scorer.score(picture, ["a dog"]),
            lambda: scorer.score_pairs([(picture[0], "a dog")]),
            lambda: scorer.rank("a dog", picture),
        ):
            try:
                use()
            except EngineError as error:
                print("refused" if "'spawn'" in str(error) else error, flush=True)
        try:
            with scorer:
                pass
            Scorer(bundle, engine, mode=mode).score(picture, ["a dog"])
        except EngineError as error:
            assert "'spawn'" in str(error), error
"""


def check_fork(bundle: Bundle, engine: str, mode: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED), str(bundle.folder), engine, mode],
        capture_output=True,
        text=True,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},  # its thread would hang any child
        timeout=120,
    )
    assert not ran.returncode, ran.stderr
    assert ran.stdout.split("\n") == ["refused"] * 3 + ["ended by 0", ""]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("engine", "mode"), ENGINES)
def test_a_forked_child_is_told_to_spawn_and_ends(bundle: Bundle, engine: str, mode: str) -> None:
    check_fork(bundle, engine, mode)


@pytest.mark.torture
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("engine", "mode"), ENGINES)
def test_many_forked_children_end(bundle: Bundle, engine: str, mode: str, figures: Figures) -> None:
    figures.look_for("processes forked with a scorer open", "hung")
    for number in range(scaled(25)):
        with figures.attempt("hung", f"{engine} {mode}, {number}"):
            check_fork(bundle, engine, mode)


def _score_in_child(folder: Path, engine: str) -> float:
    with Scorer.load(folder, engine) as scorer:
        return float(scorer.score(images(1), ["a dog"]).scores[0, 0])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_spawned_children_score(bundle: Bundle, engine: str) -> None:
    wanted = _score_in_child(bundle.folder, engine)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_score_in_child, (bundle.folder, engine))
    assert abs(found - wanted) < 1e-6
