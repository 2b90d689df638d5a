"""Memory: weights that are pages of a file, a limit they fit into, encoders that are closed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from memory_limit import NoGroupError, run_limited
from onnx import helper, numpy_helper

from dsd_trt import Bundle, Engine, Scorer, read_bundle, update_index
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.engine.checked import open_engine
from dsd_trt.engine.self_check import SelfCheck

PRODUCTS, SIDE = 4, 2048
WEIGHTS = PRODUCTS * 4 * SIDE * SIDE / 2**20  # MiB of FP32

OPEN = """
import pickle, sys
from dataclasses import replace
import dsd_trt.bundle.folder
from dsd_trt.engine.openvino.backend import FP32
dsd_trt.bundle.folder.LARGE_BYTES = 0
with open(sys.argv[1], "rb") as file:
    bundle = pickle.load(file)
engine = replace(FP32, cache_compiled=sys.argv[2] == "kept").open(bundle, "heavy")
import numpy
found = engine.run({"x0": numpy.ones((1, 2048), numpy.float32)})["x4"]
sizes = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(*(int(sizes[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmData")))
print(float(found[0, 0]))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph of products of FP16 weights, pickled."""
    folder = tmp_path_factory.mktemp("heavy")
    bundle = make_bundle(folder / "bundle")
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for it in range(PRODUCTS):
        numbers = rng.normal(scale=SIDE**-0.5, size=(SIDE, SIDE)).astype(np.float16)
        weights.append(numpy_helper.from_array(numbers, f"w{it}"))
        nodes.append(helper.make_node("Cast", [f"w{it}"], [f"v{it}"], to=1))
        nodes.append(helper.make_node("MatMul", [f"x{it}", f"v{it}"], [f"x{it + 1}"]))
    ends = ("x0", f"x{PRODUCTS}")
    values = ([helper.make_tensor_value_info(name, 1, ["B", SIDE])] for name in ends)
    model = helper.make_model(
        helper.make_graph(nodes, "heavy", *values, weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, bundle.folder / "heavy.onnx")
    first, last = (TensorSpec(name, "float32", ("B", SIDE)) for name in ends)
    graphs = {"heavy": Graph("heavy.onnx", (first,), (last,))}
    bundle = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    (folder / "heavy.pickle").write_bytes(pickle.dumps(bundle))
    return folder / "heavy.pickle"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(heavy: Path, form: str) -> tuple[dict[str, float], str]:
    """Memory in MiB of a process that opened the heavy graph and ran it once, and its result."""
    command = [sys.executable, "-c", OPEN, str(heavy), form]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes, result = run.stdout.splitlines()
    return dict(zip(("private", "mapped", "data"), map(float, sizes.split()), strict=True)), result


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_weights_that_are_kept_are_mapped(cache: Path, heavy: Path) -> None:
    """In the first process already; and the result has the same bits."""
    plain, result = opened(heavy, "plain")
    for _ in range(2):
        kept, again = opened(heavy, "kept")
        assert again == result
        assert kept["private"] < plain["private"] - 0.75 * WEIGHTS
        assert kept["mapped"] > plain["mapped"] + 0.75 * WEIGHTS


@linux
@pytest.mark.parametrize("group", [True, False])
def test_weights_that_are_kept_fit_into_less_memory(cache: Path, heavy: Path, group: bool) -> None:
    plain, _ = opened(heavy, "plain")
    opened(heavy, "kept")
    kept, result = opened(heavy, "kept")
    of = "private" if group else "data"
    assert plain[of] - kept[of] > 0.75 * WEIGHTS
    limit = int((plain[of] + kept[of]) / 2 * 2**20)
    runs = {}
    for form in ("kept", "plain"):
        command = [sys.executable, "-c", OPEN, str(heavy), form]
        try:
            runs[form] = run_limited(command, limit, group=group)
        except NoGroupError as error:
            pytest.skip(f"no control groups here: {error}")
    assert runs["kept"].returncode == 0, runs["kept"].stderr
    assert runs["kept"].stdout.splitlines()[1] == result
    assert runs["plain"].returncode != 0


# Encoders that are closed while they are not in use


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each graph is opened, and each is checked (+ "check")."""
    found: Counter[str] = Counter()
    before, require = open_engine, SelfCheck.require

    def counting(backend: Any, bundle: Bundle, name: str) -> Engine:
        found[name] += 1
        return before(backend, bundle, name)

    def checking(self: SelfCheck, name: str, *rest: Any) -> None:
        found[f"{name} check"] += 1
        require(self, name, *rest)

    monkeypatch.setattr("dsd_trt.pipeline.open_engine", counting)
    monkeypatch.setattr(SelfCheck, "require", checking)
    monkeypatch.setattr("dsd_trt.bundle.folder.LARGE_BYTES", 0)
    return found


PICTURES = [np.full((64, 64, 3), 40 * it, np.uint8) for it in range(3)]
SMALL = np.full((8, 8, 3), 90, np.uint8)
TEXTS = ["a red circle", "a blue dog"]


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_is_open_beside_the_text_encoder_if_it_is_soon_open_again(
    kept: bool,
    bundle: Bundle,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    opens: Counter[str],
) -> None:
    monkeypatch.setattr("dsd_trt.pipeline.weight_bytes", lambda folder: 2**20)
    with Scorer(bundle, "openvino", 0, cache_compiled=kept) as scorer:
        assert _open(scorer) == {"pair_scorer"}
        scorer._pipeline.encode_texts(TEXTS)
        assert _open(scorer) == ({"text_encoder"} if kept else {"text_encoder", "pair_scorer"})
        scorer._pipeline.encode_images([SMALL])
        assert _open(scorer) == ({"image_encoder"} if kept else {"image_encoder", "pair_scorer"})
        scores = scorer.score([SMALL], TEXTS).scores
        assert _open(scorer) == {"pair_scorer"}
    with Scorer(bundle, "openvino") as scorer:
        np.testing.assert_allclose(scorer.score([SMALL], TEXTS).scores, scores, atol=1e-5)


def _open(scorer: Scorer) -> set[str]:
    return set(scorer._pipeline._engines)


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_a_small_budget_closes_encoders_that_are_not_in_use(
    mode: Any, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: Counter[str]
) -> None:
    bundle = make_bundle(tmp_path, matrix=True)
    monkeypatch.setattr("dsd_trt.pipeline.weight_bytes", lambda folder: 2**20)
    names, scorer_name = {"image_encoder", "text_encoder"}, f"{mode}_scorer"
    scores = {}
    for budget in (None, 4096, 0.5):
        opens.clear()
        with Scorer(bundle, engine, budget, mode) as scorer:
            small = budget == 0.5
            wanted = {scorer_name} if small else {*names, scorer_name}
            assert _open(scorer) == wanted
            scores[budget] = [scorer.score(PICTURES, TEXTS).scores for _ in range(2)]
            assert _open(scorer) == wanted
        assert opens[scorer_name] == 1
        assert opens["text_encoder"] == (2 if small else 1)  # later it finds the texts encoded
        assert opens["image_encoder"] == (3 if small else 1)
    for found in scores[0.5]:
        np.testing.assert_allclose(found, scores[None][0], atol=1e-5)
    np.testing.assert_array_equal(scores[0.5][0], scores[0.5][1])


def test_an_encoder_that_is_opened_again_is_not_checked_again(opens: Counter[str]) -> None:
    with Scorer(read_bundle(bundle_folder(None)), "onnxruntime", 0) as scorer:
        assert _open(scorer) == {"pair_scorer"}
        scorer.score(PICTURES[:1], TEXTS)
    assert opens == {
        **{f"{it}_encoder": 2 for it in ("image", "text")},
        **{f"{it} check": 1 for it in ("image_encoder", "text_encoder", "pair_scorer")},
        "pair_scorer": 1,
    }


def test_an_index_keeps_its_encoder_open(tmp_path: Path, engine: str, opens: Counter[str]) -> None:
    pytest.importorskip("pyarrow")
    from PIL import Image

    for place, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{place}.png")
    files = sorted(tmp_path.glob("*.png"))
    done = update_index(tmp_path / "index", files, engine=engine, memory_budget_mb=0)
    assert done.encoded == 3
    assert opens["image_encoder"] == 1


def test_threads_share_graphs_that_come_and_go(
    bundle: Bundle,
    engine: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    opens: Counter[str],
) -> None:
    monkeypatch.setattr("dsd_trt.pipeline.weight_bytes", lambda folder: 2**20)
    texts = [f"a {colour} circle" for colour in ("red", "green", "blue", "white")]
    found: dict[str, Any] = {}
    with Scorer(bundle, engine, 0, text_cache_mb=0, cache_compiled=True) as scorer:
        wanted = {text: scorer.score(PICTURES[:1], [text]).scores for text in texts}

        def work(text: str) -> None:
            try:
                found[text] = [scorer.score(PICTURES[:1], [text]).scores for _ in range(3)]
            except Exception as error:
                found[text] = error

        threads = [threading.Thread(target=work, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for text in texts:
        assert isinstance(found[text], list), found[text]
        assert np.isfinite(wanted[text]).all()
        for scores in found[text]:
            np.testing.assert_array_equal(scores, wanted[text])
