"""A backend of the user's own that breaks its interface gets an error that names it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, make_bundle
from numpy.typing import NDArray

from dsd_trt import Bundle, EngineDescription, Scorer, engine
from dsd_trt.batching import BatchSizes
from dsd_trt.engine import BACKENDS, Backend, find_backend
from dsd_trt.errors import DsdError, EngineError, InputError
from dsd_trt.mode import choose_mode

Outputs = dict[str, NDArray[Any]]
IMAGE = np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)
HONEST = find_backend("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "matrix", matrix=True)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that adds objects of a module to the table, by their names there."""
    table, module = dict(BACKENDS), ModuleType("own")
    monkeypatch.setattr("dsd_trt.engine.BACKENDS", table)
    monkeypatch.setitem(sys.modules, "own", module)

    def add(name: str, backend: object) -> None:
        setattr(module, name, backend)
        table[name] = f"own:{name}"

    return add


class OwnEngine:
    """ONNX Runtime's engine, with an own description and results changed by a function."""

    def __init__(self, bundle: Bundle, graph: str, change: Callable[[Outputs], Any]) -> None:
        self._engine, self._change = HONEST.open(bundle, graph), change
        self.description = EngineDescription("own 1.0", "CPU", "fp32")

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        return self._change(self._engine.run(feeds))

    def close(self) -> None:
        self._engine.close()


def same(outputs: Outputs) -> Outputs:
    return outputs


@dataclass(frozen=True)
class Own(Backend):
    """A backend whose answers a test chooses."""

    change: Callable[[Outputs], Any] = same
    opened: Callable[[Any], Any] = lambda it: it
    sizes: Any = None

    def open(self, bundle: Bundle, graph: str) -> Any:
        return self.opened(OwnEngine(bundle, graph, self.change))

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> Any:
        return self.sizes or super().batch_sizes(bundle, memory_budget_mb)


PLAIN = Own("own", "an own one", "test", sizes=BatchSizes(4, 4, 4, (4, 4)))


# The table


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("own", "cannot be opened .*MODULE:OBJECT"),
        ("own:", "cannot be opened"),
        (":PLAIN", "cannot be opened"),
        ("own:a:b", "cannot be opened"),
        ("no_such_module:PLAIN", "No module named 'no_such_module'"),
        ("own:NOTHING", "has no attribute 'NOTHING'"),
        ("dsd_trt.engine:AUTO", "is str, expected a Backend"),
        ("dsd_trt.engine:Backend", "expected a Backend"),
        (None, "cannot be opened"),
        ("own:other", "names itself 'other'"),
        ("own:nobody", "keeps the order of 'nowhere', which is no other backend"),
        ("own:itself", "keeps the order of 'entry', which is no other backend"),
    ],
)
def test_an_entry_that_leads_to_no_backend_is_named(
    own: Callable[..., None],
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    entry: Any,
    complaint: str,
) -> None:
    own("other", replace(PLAIN, name="other"))
    own("nobody", replace(PLAIN, name="entry", keeps_order_of="nowhere"))
    own("itself", replace(PLAIN, name="entry", keeps_order_of="entry"))
    monkeypatch.setitem(engine.BACKENDS, "entry", entry)
    with pytest.raises(EngineError, match=rf"the entry 'entry' of BACKENDS, .*{complaint}"):
        Scorer(bundle, "entry")


def test_alternatives_are_listed_without_entries_that_lead_nowhere(
    own: Callable[..., None], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = replace(PLAIN, name="pairs", modes=frozenset(("pair",)))
    own("pairs", pairs)
    own("good", replace(PLAIN, name="good"))
    own("broken", None)
    with pytest.raises(InputError, match=r"use --engine .*openvino, .*good$"):
        choose_mode(bundle.manifest, "matrix", pairs)
    with pytest.raises(InputError, match="choose an engine of a GPU: onnxruntime-cuda, "):
        pairs.on_device(1)


# Engines


def _missing(outputs: Outputs) -> Outputs:
    return {f"other {name}": it for name, it in outputs.items()}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_missing, "and the engine gave .*other "),
        (lambda it: {**it, "more": np.zeros(1)}, "and the engine gave .*more"),
        (lambda it: None, "and the engine gave NoneType"),
        (lambda it: list(it.values()), "and the engine gave list"),
        (lambda it: {k: v.tolist() for k, v in it.items()}, "and the engine gave list"),
        (lambda it: {k: v.astype(np.float64) for k, v in it.items()}, "gave float64"),
        (lambda it: {k: v[:-1] for k, v in it.items()}, r"gave float32 \(0,"),
        (lambda it: {k: np.concatenate([v, v]) for k, v in it.items()}, r"gave float32 \(2,"),
        (lambda it: {k: v[..., None] for k, v in it.items()}, "gave float32"),
        (lambda it: it["nothing"], "own: running .*onnx failed with KeyError: 'nothing'"),
    ],
)
def test_wrong_results_are_refused(
    own: Callable[..., None], bundle: Bundle, change: Callable[[Outputs], Any], complaint: str
) -> None:
    own("own", replace(PLAIN, change=change))
    for self_check in (True, False):
        with pytest.raises(EngineError, match=complaint):
            Scorer(bundle, "own", self_check=self_check).score([IMAGE], ["a dog"])


def _without(name: str) -> Callable[[Any], Any]:
    def opened(engine: Any) -> Any:
        setattr(engine, name, None)
        return engine

    return opened


def _raise(engine: Any) -> Any:
    raise ValueError("no licence")


@pytest.mark.parametrize(
    ("opened", "complaint"),
    [
        (lambda engine: None, r"own: open gave NoneType for \w+\.onnx"),
        (lambda engine: "engine", "own: open gave str"),
        (_without("description"), "its description is missing or of another type"),
        (_without("run"), "its run is missing"),
        (_without("close"), "its close is missing"),
        (_raise, r"own: opening \w+\.onnx failed with ValueError: no licence"),
    ],
)
def test_what_is_no_engine_is_refused(
    own: Callable[..., None], bundle: Bundle, opened: Callable[[Any], Any], complaint: str
) -> None:
    own("own", replace(PLAIN, opened=opened))
    with pytest.raises(EngineError, match=complaint):
        Scorer(bundle, "own")


@pytest.mark.parametrize(
    "sizes",
    [
        "many",
        (1, 1, 1, (1, 1)),
        BatchSizes(0, 1, 1, (1, 1)),
        BatchSizes(1, 1, -1, (1, 1)),
        BatchSizes(1, 1, 1, (1, 0)),
        BatchSizes(1, 1, 1, (1,)),  # type: ignore[arg-type]
        BatchSizes(1, 1, 1, 1),  # type: ignore[arg-type]
        BatchSizes(1, 2.0, 1, (1, 1)),  # type: ignore[arg-type]
    ],
)
def test_batch_sizes_that_cannot_be_are_refused(
    own: Callable[..., None], bundle: Bundle, sizes: Any
) -> None:
    own("own", replace(PLAIN, sizes=sizes))
    with pytest.raises(EngineError, match="own: batch"):
        Scorer(bundle, "own")


# What is remembered belongs to one backend


def test_two_backends_of_one_library_share_nothing_that_is_remembered(
    own: Callable[..., None], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path))
    own("own", replace(PLAIN, sizes=BatchSizes(8, 8, 8, (8, 8))))
    own("fast", replace(PLAIN, name="fast", sizes=BatchSizes(8, 8, 8, (8, 8))))
    prints = set()
    for number, name in enumerate(("own", "fast"), 1):
        scorer = Scorer(bundle, name, tune=True)
        prints.add(scorer.fingerprint)
        assert scorer.backend == name
        scorer.score([IMAGE] * 8, ["a dog", "a cat", "red", "a star"] * 4)
        assert len(list(tmp_path.glob("batch-*"))) == number
    assert len(prints) == 2


def test_a_comparison_holds_for_its_backend_and_its_reference(
    own: Callable[..., None], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path))
    own("own", PLAIN)
    own("fast", replace(PLAIN, name="fast", keeps_order_of="own"))
    own("faster", replace(PLAIN, name="faster", keeps_order_of="own"))
    for number, name in enumerate(("fast", "faster", "fast"), 1):
        Scorer(bundle, name)
        assert len(list(tmp_path.glob("bf16-winner-*.json"))) == min(number, 2)
    own("fast", replace(PLAIN, name="fast", keeps_order_of="onnxruntime"))
    Scorer(bundle, "fast")
    assert len(list(tmp_path.glob("bf16-winner-*.json"))) == 3
    own("circular", replace(PLAIN, name="circular", keeps_order_of="fast"))
    with pytest.raises(DsdError, match="name the reference, onnxruntime"):
        Scorer(bundle, "circular")
