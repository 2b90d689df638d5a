"""Pruned search in C++ against Python's: the same rule, winners, scores and passes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import FRACTIONS, give_lists
from cpp import ROOT, CppError, CppScorer, clip_bundle
from listed_bundles import measured_on
from numpy.typing import NDArray
from onnx import numpy_helper
from self_checked import add_self_check
from synthetic_lists import COUNT, LEVELS, SLOPE, Candidates, draw, measured
from test_cpp import EMBEDDED, edit, guide, rows
from test_cpp_image import clip_tokenizer

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.folder import read_bundle, write_bundle
from dsd_trt.bundle.lists import RULE, Lists
from dsd_trt.bundle.method import ScoreKind
from dsd_trt.errors import BundleError
from dsd_trt.lists import Rule
from dsd_trt.pruned_search import Found, PrunedSearch
from dsd_trt.search import answered_together

pytest_plugins = ("cpp",)

SOURCES = ROOT / "engines" / "cpp" / "src"
ERROR = 0.05

# The rule, on synthetic candidates


@pytest.fixture(scope="module")
def rule_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed")
    path = tmp_path_factory.mktemp("search") / "search.so"
    command: list[str | Path] = [
        *("c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
        *("-I", SOURCES, "-o", path),
    ]
    command += [Path(__file__).parent / "cpp_search" / "search.cpp"]
    command += [SOURCES / it for it in ("lists.cpp", "pruned_search.cpp", "search.cpp")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    library.search.restype = library.together.restype = ctypes.c_size_t
    return library


def address(numbers: NDArray[Any]) -> ctypes.c_void_p:
    return numbers.ctypes.data_as(ctypes.c_void_p)


OUTCOMES = ["followed", "passed", "failed", None]  # as C++ numbers them


@pytest.mark.parametrize(
    "kind", ["as measured", "not measured", "useless", "useless later", "not finite"]
)
@pytest.mark.parametrize(
    ("best", "batch", "margin"),
    [(1, 1, True), (3, 5, True), (5, 32, True), (5, 200, True), (3, 5, False)],
)
@pytest.mark.filterwarnings("ignore:.*audited lists")
def test_lists_are_followed_audited_and_ended_as_in_python(
    kind: str, best: int, batch: int, margin: bool, rule_library: ctypes.CDLL
) -> None:
    rng = np.random.default_rng(best)
    known = measured(rng, 400, best)
    if not margin:
        known = replace(known, gaps=None)
    lists = list(draw(rng, 150))
    for number, it in enumerate(lists):
        if kind == "useless" or (kind == "useless later" and number >= 60):
            it.estimates = rng.permutation(it.estimates)
        if kind == "not finite":
            it.estimates[rng.random(COUNT) < 0.03] = np.nan
            it.scores[rng.random(COUNT) < 0.1, rng.integers(LEVELS)] = np.nan
        it.scores = it.scores.astype(np.float32).astype(np.float64)  # what C++ is given
        it.estimates = it.estimates.astype(np.float32)
    scores = np.stack([it.scores for it in lists]).astype(np.float32)
    estimates = np.stack([it.estimates for it in lists]).astype(np.float32)

    means = np.empty((len(lists), COUNT), np.float32)
    outcomes, asked = np.empty((2, len(lists)), np.int32)
    turns = np.empty((len(lists) * COUNT, 3), np.int32)
    needs, gaps = np.array(known.needs), np.array(known.gaps or (), np.float64)
    measured_best = 0 if kind == "not measured" else best
    sizes = [ctypes.c_size_t(it) for it in (len(lists), COUNT, LEVELS, best)]
    made = rule_library.search(
        *sizes,
        *(ctypes.c_double(ERROR), ctypes.c_size_t(batch), COUNT, ctypes.c_double(SLOPE)),
        *(ctypes.c_size_t(measured_best), known.count, ctypes.c_size_t(len(needs))),
        *(address(needs), ctypes.c_size_t(len(gaps)), address(gaps)),
        *map(address, (scores, estimates, means, outcomes, asked, turns)),
        ctypes.c_size_t(len(turns)),
    )

    of_texts = {} if kind == "not measured" else {str(best): known}
    as_measured = Lists(0, COUNT, SLOPE, of_texts, {}, RULE)
    rule = Rule.of(as_measured, "texts", best, ERROR)
    search = PrunedSearch(LEVELS, best, ERROR, rule, batch)
    found, answered = search_together(search, lists)
    assert [OUTCOMES[it] for it in outcomes] == [it.outcome for it in found]
    assert asked.tolist() == [it.asked for it in lists]
    assert turns[:made].tolist() == answered
    np.testing.assert_allclose(means, [it.scores for it in found], rtol=1e-6)
    if "useless" in kind:
        assert found[-1].outcome is None  # the audits ended the lists
    if kind not in ("useless", "not measured"):
        assert "followed" in [it.outcome for it in found]
        assert max(searches for searches, _, _ in answered) > 0.6 * min(batch, 32)


def search_together(
    search: PrunedSearch, lists: Sequence[Candidates]
) -> tuple[list[Found], list[list[int]]]:
    """What Python finds, and how many searches and scores each turn answers at which level."""
    found: list[Found] = []
    turns: list[list[int]] = []
    while len(found) < len(lists):
        some = lists[len(found) :][: search.together(COUNT)]

        def score(
            parts: Sequence[tuple[int, NDArray[np.intp]]],
            level: int,
            some: Sequence[Candidates] = some,
        ) -> list[NDArray[np.float64]]:
            turns.append([len(parts), sum(len(it) for _, it in parts), level])
            return [some[number](it, level) for number, it in parts]

        begun = [
            search.steps(turn, COUNT, it.estimates, len(some))
            for turn, it in zip(search.turns([COUNT] * len(some)), some, strict=True)
        ]
        for it in answered_together(begun, score):
            search.note(it.outcome, 0)
            found.append(it)
    return found, turns


@pytest.mark.parametrize("candidates", [0, 1, 31_250, 31_251, 500_000, 10**6, 10**6 + 1])
def test_memory_bounds_the_searches_that_are_made_together(
    candidates: int, rule_library: ctypes.CDLL
) -> None:
    found = rule_library.together(ctypes.c_size_t(candidates))
    search = PrunedSearch(LEVELS, 1, 0.01, Rule(1, 1.0, 0.0, 60), 256)
    for _ in range(40):
        search.note("passed", 60)
    assert found == search.together(candidates)
    assert found == 32 if candidates <= 31_250 else found * candidates <= 10**6 or found == 1


# With a bundle

TEXTS = [f"a {color} {it}" for color in ("red", "green", "blue", "black") for it in "abcdefghij"]
IMAGES = np.random.default_rng(7).integers(0, 256, (60, 1, 1, 3), np.uint8)  # a colour each


def pictures(colors: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return list(np.tile(colors, (1, 8, 8, 1)))


def listed(folder: Path, monkeypatch: pytest.MonkeyPatch, **kind: Any) -> Bundle:
    """A bundle with lists for up to three texts or images."""
    bundle = clip_bundle(folder, clip_tokenizer(), monkeypatch, matrix=True, **kind)
    images = pictures(np.random.default_rng(8).integers(0, 256, (150, 1, 1, 3), np.uint8))
    return give_lists(bundle, measured_on(bundle, images, TEXTS, 3))


@pytest.fixture(scope="module")
def listed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return listed(tmp_path_factory.mktemp("listed"), patch).folder


@pytest.fixture
def opened(cpp_library: ctypes.CDLL) -> Iterator[Any]:
    scorers: list[CppScorer] = []

    def open_scorer(folder: Path, **options: Any) -> CppScorer:
        scorers.append(CppScorer(cpp_library, folder, **options))
        return scorers[-1]

    yield open_scorer
    for it in scorers:
        it.close()


def assert_ranked(found: Any, expected: Any) -> None:
    """C++'s places, scores and probabilities are Python's; of equal scores places may differ."""
    assert [len(it) for it in found] == [len(it) for it in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for (place, score, probability), it in zip(mine, theirs, strict=True):
            assert score == pytest.approx(it.score, abs=1e-5)
            assert probability == pytest.approx(it.probability, abs=1e-5, nan_ok=True)
            assert place == it.index


@pytest.mark.parametrize("score", ["attention", "released"])
def test_each_images_best_texts_are_pythons(
    score: ScoreKind, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(tmp_path, monkeypatch, score=score)
    python, images = Scorer.load(tmp_path, "onnxruntime"), pictures(IMAGES)
    cpp = opened(tmp_path)
    found, took, errors = cpp.best_texts([*images, b"none"], TEXTS, 2, ERROR)
    assert found.pop() == []
    assert [bool(it) for it in errors] == [False] * len(images) + [True]
    assert_ranked(found, python.rank_texts(images, TEXTS, 2, prune=True, error=ERROR))
    matrix = python.score(images, TEXTS, top_k=2, error=ERROR)
    assert (took.passes, took.walks, took.lists) == (matrix.passes, len(images), len(images))
    assert took.audits < took.lists
    assert took.passes < len(images) * len(TEXTS) * len(FRACTIONS) / 2
    assert took.warning == b""
    found, _, _ = cpp.best_images(images, TEXTS, 2, ERROR)
    assert_ranked(found, python.rank(TEXTS, images, 2, prune=True, error=ERROR))


def test_each_texts_best_images_are_pythons(
    opened: Any, listed_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    python, images = Scorer.load(listed_folder, "onnxruntime"), pictures(IMAGES)
    cpp = opened(listed_folder)
    found, took, errors = cpp.best_images([b"none", *images], TEXTS, 3, 0.2)
    assert [bool(it) for it in errors] == [True] + [False] * len(images)
    with caplog.at_level("INFO", "dsd_trt"):
        assert_ranked(found, python.rank(TEXTS, [b"none", *images], 3, prune=True, error=0.2))
    assert took.walks == len(images)
    assert took.lists == len(TEXTS)
    (told,) = [it.message for it in caplog.records if "passes each on average" in it.message]
    assert told.startswith(f"{took.lists} lists of {took.passes / took.lists:.1f} passes each")
    assert f"; {took.audits} audits, of which {took.failed_audits} failed" in told
    found, took, _ = cpp.best_images(images, TEXTS[:1], 3, 0.2)  # a walk would cost as much
    assert took.lists == took.walks == 0
    assert_ranked(found, python.rank(TEXTS[:1], images, 3, prune=True, error=0.2))


def test_lists_are_left_where_they_do_not_apply(opened: Any, listed_folder: Path) -> None:
    python, images = Scorer.load(listed_folder, "onnxruntime"), pictures(IMAGES[:20])
    cpp = opened(listed_folder)
    for texts, top_k, error, levels in (
        (TEXTS, 4, ERROR, ()),  # measured for three
        (TEXTS, 1, ERROR, FRACTIONS[:2]),
        (TEXTS, 1, 1e-4, ()),  # too few lists were measured
        (TEXTS[:6], 1, ERROR, ()),  # all are scored in any case
        ([TEXTS[0], *TEXTS[:3]], 9, ERROR, ()),  # equal texts, and fewer than were asked for
    ):
        found, took, _ = cpp.best_texts(images, texts, top_k, error, levels)
        expected = python.score(images, texts, levels or None, top_k=top_k, error=error)
        assert (took.lists, took.walks, took.passes) == (0, 0, expected.passes)
        ranked = python.rank_texts(images, texts, top_k, levels or None, prune=True, error=error)
        assert_ranked(found, ranked)


def turn_round(folder: Path) -> None:
    """Make the matrix scorer's estimates misleading."""
    bundle = read_bundle(folder)
    path = bundle.path("matrix_scorer.onnx")
    model = onnx.load(path)
    (projection,) = (it for it in model.graph.initializer if it.name == "projection")
    projection.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(projection), "projection"))
    onnx.save(model, path)
    write_bundle(bundle.folder, bundle.manifest)


def test_lists_that_lose_too_much_are_ended_with_a_warning(
    opened: Any, listed_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(listed_folder, tmp_path / "bundle"))
    turn_round(folder)
    edit(
        folder / "bundle.json",
        lambda m: m["matrix"]["lists"].update(texts={"1": {"count": 1000, "needs": [9.0] * 9}}),
    )
    python, images = Scorer.load(folder, "onnxruntime"), pictures(IMAGES)
    expected = python.rank_texts(images, TEXTS, 1, prune=True)
    found, took, _ = opened(folder).best_texts(images, TEXTS, 1)
    assert_ranked(found, expected)
    (warned,) = [it.message for it in caplog.records if "audited lists" in it.message]
    assert took.warning.decode().split(" explains")[0] == warned.split(" explains")[0]
    assert (took.failed_audits, took.audits) == tuple(map(int, re.findall(r"\d+", warned)[:2]))
    assert took.lists < len(images)


def test_the_matrix_scorer_is_opened_and_checked_for_lists_alone(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = listed(tmp_path, monkeypatch)
    add_self_check(bundle)
    images = pictures(IMAGES[:9])
    cpp = opened(tmp_path)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(cpp.best_texts, images, TEXTS, 2, ERROR) for _ in range(3)]
    (first, *others) = [it.result()[0] for it in calls]
    assert_ranked(first, Scorer.load(tmp_path, "onnxruntime").rank_texts(images, TEXTS, 2))
    assert all(it == first for it in others)
    turn_round(tmp_path)
    cpp = opened(tmp_path)
    assert np.isfinite(cpp.score(images, TEXTS)[0]).all()
    for _ in range(2):
        with pytest.raises(CppError, match="self-check of the matrix scorer") as refused:
            cpp.best_texts(images, TEXTS, 2, ERROR)
        assert refused.value.status == 4
    assert opened(tmp_path, self_check=False).best_texts(images, TEXTS, 2, ERROR)[1].lists > 0


def test_a_bundle_without_lists_is_searched_by_elimination(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch)
    python, cpp, images = Scorer.load(tmp_path, "onnxruntime"), opened(tmp_path), pictures(IMAGES)
    found, took, _ = cpp.best_texts(images, TEXTS, 3)
    assert_ranked(found, python.rank_texts(images, TEXTS, 3, prune=True))
    assert (took.lists, took.walks) == (0, 0)
    assert took.passes == python.score(images, TEXTS, top_k=3).passes
    assert took.passes < len(images) * len(TEXTS) * len(FRACTIONS)


@pytest.mark.parametrize(
    ("top_k", "error", "reason"),
    [
        (0, 0.1, "top_k must be above 0"),
        (1, 0.51, "error must be a probability above 0 and at most 0.5"),
        (1, -0.1, "error must be a probability"),
        (1, float("nan"), "error must be a probability"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    top_k: int, error: float, reason: str, opened: Any
) -> None:
    cpp = opened(EMBEDDED)
    for search in (cpp.best_texts, cpp.best_images):
        with pytest.raises(CppError, match=reason) as refused:
            search(pictures(IMAGES[:1]), TEXTS[:2], top_k, error)
        assert refused.value.status == 1


def test_matrix_mode_has_nothing_to_prune(opened: Any, listed_folder: Path) -> None:
    with pytest.raises(CppError, match="nothing to prune") as refused:
        opened(listed_folder, mode="matrix").best_texts(pictures(IMAGES[:1]), TEXTS, 1)
    assert refused.value.status == 1


# bundle.json


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"level": 3}, "matrix.lists.level' must be an integer from 0 to 2"),
        ({"level": -1}, "matrix.lists.level' must be"),
        ({"level": 0.5}, "matrix.lists.level' must be"),
        ({"candidates": 0}, "matrix.lists.candidates' must be an integer from 1"),
        ({"candidates": 2**30}, "matrix.lists.candidates' must be"),
        ({"slope": None}, "matrix.lists.slope' must be a finite number"),
        ({"rule": 0}, "matrix.lists.rule' must be an integer from 1"),
        ({"texts": []}, "matrix.lists.texts' must be an object"),
        ({"texts": {"0": {"count": 1, "needs": []}}}, "matrix.lists.texts.0' is named by no"),
        ({"texts": {"01": {"count": 1, "needs": []}}}, "matrix.lists.texts.01' is named by no"),
        ({"texts": {"": {"count": 1, "needs": []}}}, "matrix.lists.texts.' is named by no"),
        ({"texts": {"1" * 10: {"count": 1, "needs": []}}}, "is named by no number"),
        ({"images": {"a": {"count": 1, "needs": []}}}, "matrix.lists.images.a' is named by no"),
        ({"texts": {"1": {"count": 1, "needs": [0.0, 1.0]}}}, "needs' has more than 1, its count"),
        ({"texts": {"1": {"count": 0, "needs": []}}}, "matrix.lists.texts.1.count' must be"),
        ({"texts": {"1": {"count": 3, "needs": [1.0, 0.5]}}}, "needs' must be ascending"),
        ({"texts": {"1": {"count": 3, "needs": ["a"]}}}, "needs' must be of finite numbers"),
        ({"texts": {"1": {"count": 1, "needs": [], "gaps": [2, 1]}}}, "gaps' has more than 1, its"),
        ({"texts": {"1": {"count": 3, "needs": [], "gaps": [1, 2]}}}, "gaps' must be descending"),
        ({"texts": {"1": {"count": 3, "needs": [], "gaps": [1, -1]}}}, "must not be negative"),
        ({"texts": {"1": {"count": 3, "needs": [], "gaps": 1}}}, "1.gaps' must be a list"),
        ({"texts": {"1": {"count": 3}}}, "matrix.lists.texts.1.needs' is missing"),
        ({"texts": {"1": {"count": 3, "needs": [], "b": 1}}}, "matrix.lists.texts.1.b' is not kno"),
        ({"more": 1}, "matrix.lists.more' is not known"),
    ],
)
def test_lists_are_read_as_strictly_as_in_python(
    changed: dict[str, Any], named: str, opened: Any, listed_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(listed_folder, tmp_path / "bundle"))
    edit(folder / "bundle.json", lambda m: m["matrix"]["lists"].update(changed))
    with pytest.raises(BundleError, match=r"matrix\.lists"):
        read_bundle(folder)
    with pytest.raises(CppError, match=re.escape(named)) as refused:
        opened(folder)
    assert refused.value.status == 2


# The guide and the command


def test_the_guides_search_finds_what_python_finds(cpp_build: Path, tmp_path: Path) -> None:
    texts = ["a small red cross", "a large yellow star", "a blue circle"]
    listed_texts = ", ".join(f'"{it}"' for it in texts)
    (tmp_path / "search.cpp").write_text(
        "#include <cstdio>\n#include <dsd/scorer.hpp>\nint main() {\n"
        f'const dsd::Scorer scorer("{EMBEDDED}");\n'
        f"const std::vector<std::string> texts{{{listed_texts}}};\n{guide('cpp')[1]}}}\n"
    )
    image = shutil.copy(ROOT / "examples" / "images" / "lone-star.png", tmp_path / "photo.jpg")
    library = cpp_build / "libdsd.so"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-Wall", "-Werror", "-I", ROOT / "engines" / "cpp" / "include"),
            *("search.cpp", library, f"-Wl,-rpath,{cpp_build}", "-o", "search"),
        ],
        cwd=tmp_path,
        check=True,
    )
    done = subprocess.run(["./search"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (expected,) = Scorer.load(EMBEDDED, "onnxruntime").rank_texts(
        [image], texts, prune=True, top_k=5
    )
    assert done.stdout.splitlines() == [f"{it.text} {it.score:.3f}" for it in expected]


def test_the_example_prints_the_best_that_the_command_prints(
    cpp_build: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "images" / "broken.png").write_bytes(b"none")
    given, best = ["examples/images", "examples/texts.txt"], ["--top-k", "1"]
    python = [str(Path(sys.executable).parent / "dsd-trt"), "score", "--engine", "onnxruntime"]
    program = str(cpp_build / "dsd-score")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    expected = run(*python, "-f", "csv", *given, *best, "--prune", "--error", "0.02")
    got = run(program, *best, "--error", "0.02", str(EMBEDDED), *given)
    assert expected.returncode == got.returncode == 3
    for mine, theirs in zip(rows(got.stdout), rows(expected.stdout), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2:] == pytest.approx(theirs[2:], abs=1e-5)
    passes = re.search(r"passes: (\d+)", expected.stderr)
    assert passes is not None
    walks = len(list((ROOT / "examples" / "images").glob("*.png")))  # one per image that is read
    assert f"passes: {passes[1]}, of which {walks} made lists" in got.stderr
    for options in (["--error", "0.1"], ["--top-k", "0"], ["--top-k", "1.5"]):
        assert run(program, *options, str(EMBEDDED), *given).returncode == 2
