from __future__ import annotations

import collections
import copy
import enum
import itertools
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from backends import open_engine
from bundles import (
    FRACTIONS,
    RESOLUTION,
    WEIGHT,
    closed_form,
    denoising_term,
    make_bundle,
    probability,
)
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import (
    Bundle,
    BundleError,
    DsdError,
    EngineError,
    Index,
    InputError,
    Scorer,
    read_bundle,
    write_bundle,
)
from dsd_trt.batching import MAX_BATCH, batch_sizes
from dsd_trt.bundle.method import TokenMask
from dsd_trt.installation import install_command
from dsd_trt.jobs import Scorable

TEXTS = ["a red circle", "dog", "a blue square a blue dog", "some unknown words"]
Pixels = NDArray[np.uint8]


def random_images(count: int) -> list[Pixels]:
    generator = np.random.default_rng(5)
    size = (count, RESOLUTION, RESOLUTION, 3)
    brightness = generator.uniform(0, 1, (count, 1, 1, 3))
    return list((generator.integers(0, 256, size) * brightness).astype(np.uint8))


@pytest.fixture
def scorer(bundle: Bundle, engine: str) -> Scorer:
    return Scorer.load(bundle.folder, engine)


def test_the_matrix_is_the_closed_form(scorer: Scorer) -> None:
    images = random_images(5)
    matrix = scorer.score(images, TEXTS)
    expected = np.array([[closed_form(image, text) for text in TEXTS] for image in images])
    assert matrix.scores.shape == (5, 4)
    assert np.ptp(expected) > 0.1  # the comparison would notice rows or columns changing places
    np.testing.assert_allclose(matrix.scores, expected, atol=1e-6)
    np.testing.assert_allclose(matrix.probabilities, np.vectorize(probability)(expected), atol=1e-6)
    assert matrix.texts == tuple(TEXTS)
    assert matrix.images == tuple(f"image {i}" for i in range(5))
    assert matrix.errors == ()


@pytest.mark.parametrize("token_mask", ["words", "words_eos", "all"])
def test_the_bundles_token_mask_is_used(tmp_path: Path, token_mask: Any) -> None:
    make_bundle(tmp_path, token_mask=token_mask)
    (image,) = random_images(1)
    got = Scorer.load(tmp_path, "onnxruntime").score([image], ["a dog"]).scores
    assert got[0, 0] == pytest.approx(closed_form(image, "a dog", token_mask=token_mask), abs=1e-6)


@pytest.mark.parametrize("levels", [None, [0.8]])
@pytest.mark.parametrize("score", ["denoising", "attention+denoising"])
def test_the_denoising_term_is_measured_against_the_empty_text(
    tmp_path: Path, engine: str, score: Any, levels: list[float] | None
) -> None:
    make_bundle(tmp_path, score=score)
    images, at = random_images(3), (0, 1, 2) if levels is None else (2,)
    d = np.array([[denoising_term(image, text, at) for text in TEXTS] for image in images])
    f = np.array([[closed_form(image, text, at) for text in TEXTS] for image in images])
    expected = d if score == "denoising" else f + WEIGHT * d
    scorer, told = Scorer.load(tmp_path, engine), []
    matrix = scorer.score(images, TEXTS, levels, lambda done, total: told.append((done, total)))
    assert np.ptp(d) > 1e-3
    np.testing.assert_allclose(matrix.scores, expected, atol=1e-6)
    fitted = np.vectorize(probability)(expected) if levels is None else np.full((3, 4), np.nan)
    np.testing.assert_allclose(matrix.probabilities, fitted, atol=1e-6)
    assert told[-1] == (12, 12)  # what the empty text costs is not counted as pairs
    pairs = scorer.score_pairs([(images[2], TEXTS[1]), (images[0], TEXTS[3])], levels)
    np.testing.assert_allclose(pairs.scores, [expected[2, 1], expected[0, 3]], atol=1e-6)


def test_fp16_bundles_run_on_both_engines(tmp_path: Path, engine: str) -> None:
    make_bundle(tmp_path, precision="fp16")
    images = random_images(3)
    expected = [[closed_form(image, text) for text in TEXTS] for image in images]
    got = Scorer.load(tmp_path, engine).score(images, TEXTS).scores
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("levels", [[0.2], [0.8, 0.2], list(FRACTIONS)])
def test_levels_asked_for_are_averaged(scorer: Scorer, levels: list[float]) -> None:
    (image,) = random_images(1)
    indices = [FRACTIONS.index(level) for level in levels]
    got = scorer.score([image], TEXTS, levels=levels).scores[0]
    np.testing.assert_allclose(got, [closed_form(image, t, indices) for t in TEXTS], atol=1e-6)
    reordered = scorer.score([image], TEXTS, levels=[*reversed(levels), levels[0]]).scores[0]
    assert got.tolist() == reordered.tolist()


@pytest.mark.parametrize("levels", [[0.3], [], [0.2, 2]])
def test_a_level_the_bundle_lacks_is_refused(scorer: Scorer, levels: list[float]) -> None:
    with pytest.raises(InputError, match="noise level"):
        scorer.score(random_images(1), TEXTS, levels=levels)


def test_a_score_does_not_depend_on_its_company(bundle: Bundle, engine: str) -> None:
    images = random_images(7)
    pairs = list(itertools.product(images, TEXTS))
    order = np.random.default_rng(1).permutation(len(pairs))
    by_budget = []
    for budget in (1e-3, 0.05, 1024.0):  # from one triple a batch to all in one
        scorer = Scorer.load(bundle.folder, engine, memory_budget_mb=budget)
        together = scorer.score(images, TEXTS).scores.ravel()
        shuffled = scorer.score_pairs([pairs[i] for i in order]).scores
        alone = [scorer.score_pairs([pair]).scores[0] for pair in pairs]
        np.testing.assert_allclose(shuffled, together[order], atol=1e-6, rtol=0)
        np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)
        by_budget.append(together)
    np.testing.assert_allclose(by_budget, np.broadcast_to(by_budget[0], (3, 28)), atol=1e-6, rtol=0)


def test_pairs_keep_their_order_and_encode_each_image_and_text_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime", text_cache_mb=0)
    seen: dict[str, int] = {"images": 0, "texts": 0}
    pipeline = scorer._pipeline
    encode_images, encode_texts = pipeline.encode_images, pipeline.encode_texts

    def count_images(pixels: Any) -> Any:
        seen["images"] += len(pixels)
        return encode_images(pixels)

    def count_texts(texts: Any) -> Any:
        seen["texts"] += len(texts)
        return encode_texts(texts)

    monkeypatch.setattr(pipeline, "encode_images", count_images)
    monkeypatch.setattr(pipeline, "encode_texts", count_texts)
    first, second = random_images(2)
    pairs = [(first, "dog"), (second, "dog"), (first, "a red dog"), (second, "dog")]
    result = scorer.score_pairs(pairs)
    np.testing.assert_allclose(result.scores, [closed_form(*pair) for pair in pairs], atol=1e-6)
    assert result.texts == ("dog", "dog", "a red dog", "dog")
    assert seen == {"images": 2, "texts": 2}
    scorer.score([first, second], ["dog", "a red dog", "dog"])
    assert seen == {"images": 4, "texts": 4}


def test_an_unreadable_image_costs_nothing_but_itself(scorer: Scorer, tmp_path: Path) -> None:
    good = random_images(3)
    missing = str(tmp_path / "missing.png")
    matrix = scorer.score([good[0], b"garbage", good[1], missing, good[2]], TEXTS)
    expected = np.array([[closed_form(image, text) for text in TEXTS] for image in good])
    np.testing.assert_allclose(matrix.scores[[0, 2, 4]], expected, atol=1e-6)
    assert np.isnan(matrix.scores[[1, 3]]).all()
    assert np.isnan(matrix.probabilities[[1, 3]]).all()
    assert [failure.image for failure in matrix.errors] == ["image 1", missing]
    assert "No such file" in matrix.errors[1].reason

    pairs = scorer.score_pairs([(missing, "dog"), (good[0], "dog"), (missing, "a dog")])
    assert np.isnan(pairs.scores).tolist() == [True, False, True]
    assert [failure.image for failure in pairs.errors] == [missing]

    nothing = scorer.score([b"", b"x"], TEXTS)
    assert np.isnan(nothing.scores).all()
    assert len(nothing.errors) == 2


def test_images_are_taken_lazily(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsd_trt.image.decoding.decoding_threads", lambda: 2)
    scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2)
    assert scorer._pipeline.batch.images < 5
    taken: list[int] = []
    most = 0

    def camera() -> Iterator[Pixels]:
        for i, image in enumerate(random_images(40)):
            taken.append(i)
            yield image

    def progress(done: int, total: int | None) -> None:
        nonlocal most
        assert total is None
        most = max(most, len(taken) - done)

    matrix = scorer.score(camera(), ["dog"], progress=progress)
    assert matrix.scores.shape == (40, 1)
    # A batch is decoded ahead, and two images for each thread.
    assert most <= 2 * scorer._pipeline.batch.images + 4


def test_progress_counts_every_pair(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2)
    reports: list[tuple[int, int | None]] = []
    images: list[Scorable] = [*random_images(6), b"garbage"]
    scorer.score(images, TEXTS, progress=lambda done, total: reports.append((done, total)))
    done = [d for d, _ in reports]
    assert done == sorted(done)
    assert len(done) >= 4
    assert reports[-1] == (28, 28)


def test_ranking_is_best_first_and_skips_the_unreadable(
    scorer: Scorer, caplog: pytest.LogCaptureFixture
) -> None:
    images = random_images(6)
    expected = sorted(range(6), key=lambda i: -closed_form(images[i], "a red dog"))
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        ranking = scorer.rank("a red dog", [*images, b"garbage"])
    assert [place.index for place in ranking] == expected
    assert ranking[0].score == pytest.approx(
        closed_form(images[expected[0]], "a red dog"), abs=1e-6
    )
    assert ranking[0].probability == pytest.approx(probability(ranking[0].score), abs=1e-6)
    assert "image 6" in caplog.text
    assert scorer.rank("a red dog", images, top_k=2) == ranking[:2]


def test_no_images_and_no_pairs_give_empty_results(scorer: Scorer) -> None:
    assert scorer.score([], TEXTS).scores.shape == (0, 4)
    assert scorer.score_pairs([]).scores.shape == (0,)


def test_one_path_in_place_of_a_list_is_refused(scorer: Scorer) -> None:
    with pytest.raises(InputError):
        scorer.score("photo.png", TEXTS)
    with pytest.raises(InputError):
        scorer.score(random_images(1), "a dog")
    with pytest.raises(InputError):
        scorer.score(random_images(1), [])


class Na:
    """What tables put where a cell is empty: it is true of nothing, not even of itself."""

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = object.__hash__


class Word(str, enum.Enum):  # noqa: UP042 (what StrEnum replaces is still about)
    DOG = "dog"


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        np.array([TEXTS])[0],
        [np.str_(text) for text in TEXTS],
        collections.deque(TEXTS),
        collections.UserList(TEXTS),
        [TEXTS[0], Word.DOG, *TEXTS[2:]],
    ],
    ids=["tuple", "<U", "object", "row", "numpy.str_", "deque", "list-like", "enumeration"],
)
def test_texts_come_in_any_sequence_and_go_as_strings(scorer: Scorer, texts: Any) -> None:
    (image,) = random_images(1)
    matrix = scorer.score([image], texts)
    assert matrix.texts == tuple(TEXTS)
    assert {type(text) for text in matrix.texts} == {str}
    np.testing.assert_allclose(matrix.scores[0], [closed_form(image, t) for t in TEXTS], atol=1e-6)
    pairs = scorer.score_pairs([(image, text) for text in texts])
    assert pairs.texts == tuple(TEXTS)
    np.testing.assert_allclose(pairs.scores, matrix.scores[0], atol=1e-6)
    assert scorer.rank(texts[1], [image])[0].score == pytest.approx(matrix.scores[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (float("nan"), "got float nan"),
        (None, "got NoneType None"),
        (7, "got int 7"),
        (b"dog", "got bytes b'dog': decode it first"),
        (np.bytes_(b"dog"), ": decode it first"),
        (["dog"], r"got list \['dog'\]"),
        (np.array(["dog"]), r"got an array of <U3 \(1,\)"),
        (np.float32(1), "got float32"),
        (Na(), "got Na "),
        ("a \ud83d dog", "has a surrogate"),
        ("a \0 dog", "has a NUL character"),
    ],
)
def test_what_is_no_text_is_named_by_its_place(scorer: Scorer, text: Any, found: str) -> None:
    (image,) = random_images(1)
    for texts in (["dog", "a", text], ("dog", "a", text)):
        with pytest.raises(InputError, match=rf"^texts\[2\] .*{found}"):
            scorer.score([image], texts)
    with pytest.raises(InputError, match=rf"^the text of pairs\[1\] .*{found}"):
        scorer.score_pairs([(image, "dog"), (image, text)])
    if isinstance(text, (list, np.ndarray)):
        return  # `rank` takes a list of texts too
    for prune in (False, True):
        with pytest.raises(InputError, match=rf"^texts?(\[0\])? .*{found}"):
            scorer.rank(text, [image], top_k=1, prune=prune)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("a dog", "got str 'a dog'"),
        (b"a dog", "got bytes"),
        ([], "texts is empty"),
        (np.array([], str), "texts is empty"),
        (np.array([["a", "dog"]]), r"got an array of <U3 \(1, 2\)"),
        (np.array("dog"), r"got an array of <U3 \(\)"),
        ((text for text in TEXTS), "got generator"),
        ({"dog"}, "got set"),
        ({"dog": 1}, "got dict"),
        (None, "got NoneType"),
        (np.array([b"dog"]), r"^texts\[0\] must be a string"),
        (np.array([1.0, np.nan]), r"^texts\[0\] must be a string"),
        (range(3), r"^texts\[0\] must be a string"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(scorer: Scorer, texts: Any, found: str) -> None:
    with pytest.raises(InputError, match=found):
        scorer.score(random_images(1), texts)


@pytest.mark.parametrize(
    "pair", [("a.png",), ("a.png", "b", "c"), "ab", 7, {"image": 1, "text": 2}]
)
def test_what_is_no_pair_is_named_by_its_place(scorer: Scorer, pair: Any) -> None:
    with pytest.raises(InputError, match=r"^pairs\[1\] must be \(image, text\), got "):
        scorer.score_pairs([(random_images(1)[0], "dog"), pair])


@pytest.mark.parametrize("pairs", [None, 7, "ab", b"ab"])
def test_what_are_no_pairs_is_refused(scorer: Scorer, pairs: Any) -> None:
    with pytest.raises(InputError, match=r"^pairs must be \(image, text\) tuples, got "):
        scorer.score_pairs(pairs)


WRONG: dict[str, list[Any]] = {
    "mode": ["x", "", None, ["pair"], 3, "Pair"],
    "engine": ["x", None, 3, ["onnxruntime"]],
    "memory_budget_mb": ["x", -1, float("nan"), True, [1]],
    "tune": ["no", None, 1, [True], np.zeros(2)],
    "self_check": ["no", None, 0, [], np.ones(2)],
    "device": ["0", -1, True, 1.0, None],
}


@pytest.mark.parametrize(("name", "value"), [(n, it) for n in WRONG for it in WRONG[n]], ids=repr)
def test_an_argument_of_loading_that_cannot_be_used_is_refused(
    bundle: Bundle, name: str, value: Any
) -> None:
    given = {"engine": "onnxruntime", name: value}
    ways: list[tuple[Any, Any]] = [(Scorer.load, bundle.folder), (Scorer, bundle)]
    for open_it, opened in ways:
        with pytest.raises(InputError) as refused:
            open_it(opened, **given)
        assert repr(value)[:3] in str(refused.value) or "array" in str(refused.value)


def test_an_unknown_mode_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mode 'x': there are auto, pair, matrix"):
        Scorer.load(tmp_path / "not read yet", "onnxruntime", mode=cast("Any", "x"))


def test_what_is_no_open_bundle_is_refused(bundle: Bundle) -> None:
    for wrong in (bundle.folder, str(bundle.folder), None, 3):
        with pytest.raises(InputError, match=r"Scorer\.load opens one"):
            Scorer(cast("Any", wrong))
    assert read_bundle(str(bundle.folder)) == bundle
    with pytest.raises(BundleError, match="a path or a string"):
        read_bundle(cast("Any", 3))


@pytest.mark.parametrize("prune", ["no", None, 1, np.zeros(2)])
def test_pruning_is_asked_for_by_true_or_false(scorer: Scorer, prune: Any) -> None:
    images = random_images(2)
    for call in (
        lambda: scorer.rank("dog", images, 1, prune=prune),
        lambda: scorer.rank_texts(images, ["dog"], 1, prune=prune),
    ):
        with pytest.raises(InputError, match="prune must be True or False"):
            call()


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u3000", np.str_("")])
@pytest.mark.parametrize("token_mask", ["words_eos", "words", "all"])
def test_an_empty_text_is_refused_by_its_place(
    tmp_path: Path, blank: str, token_mask: TokenMask
) -> None:
    make_bundle(tmp_path, token_mask=token_mask)
    scorer, (image,) = Scorer.load(tmp_path, "onnxruntime"), random_images(1)
    for call in (scorer.score, scorer.stream):
        with pytest.raises(InputError, match=r"^texts\[1\] is empty"):
            call([image], ["dog", blank])
    for pairs in (scorer.score_pairs, scorer.stream_pairs):
        with pytest.raises(InputError, match=r"^the text of pairs\[1\] is empty"):
            pairs([(image, "dog"), (image, blank)])
    for prune in (False, True):
        with pytest.raises(InputError, match=r"^text is empty"):
            scorer.rank(blank, [image], 1, prune=prune)


def test_paths_are_decoded_and_stretched(scorer: Scorer, tmp_path: Path) -> None:
    image = Image.new("RGB", (50, 20), (200, 30, 90))
    image.save(tmp_path / "flat.png")
    matrix = scorer.score([tmp_path / "flat.png"], ["a dog"])
    flat = np.broadcast_to(np.array([200, 30, 90], np.uint8), (RESOLUTION, RESOLUTION, 3))
    assert matrix.scores[0, 0] == pytest.approx(closed_form(flat, "a dog"), abs=1e-6)
    assert matrix.images == (str(tmp_path / "flat.png"),)


def test_engines_say_what_they_got(scorer: Scorer, engine: str) -> None:
    assert scorer.engine.engine.startswith(engine)
    assert scorer.engine.device.startswith("CPU")
    assert scorer.engine.precision == "fp32"


def test_openvino_computes_in_full_precision(tmp_path: Path) -> None:
    """A product that BF16, which this library prefers where it can, would get wrong by 1e-3."""
    generator = np.random.default_rng(3)
    bundle = make_bundle(tmp_path)
    graph = bundle.manifest.graphs["pair_scorer"]
    latent = generator.uniform(0, 1, (7, 3, 2, 2)).astype(np.float32)
    feeds = {
        "latent": latent,
        "level": np.zeros(7, np.int32),
        "text_states": generator.normal(size=(7, 77, 4)).astype(np.float32),
        "token_mask": np.ones((7, 77), np.float32),
    }
    got = {
        name: open_engine(bundle.path(graph.file), graph, name).run(feeds)
        for name in ("onnxruntime", "openvino")
    }
    for output in ("score", "token_scores"):
        np.testing.assert_allclose(
            got["openvino"][output], got["onnxruntime"][output], atol=1e-6, rtol=0
        )


def test_outputs_belong_to_the_caller(bundle: Bundle, engine: str) -> None:
    graph = bundle.manifest.graphs["image_encoder"]
    encoder = open_engine(bundle.path(graph.file), graph, engine)
    black, white = (np.full((1, RESOLUTION, RESOLUTION, 3), v, np.uint8) for v in (0, 255))
    first = encoder.run({"pixels": black})["latent"]
    encoder.run({"pixels": white})
    assert first.tolist() == np.zeros((1, 3, 2, 2)).tolist()


def test_an_engine_that_is_not_installed_fails_and_names_the_extra(bundle: Bundle) -> None:
    """In a process where neither engine can be imported."""
    for engine, message in (
        ("onnxruntime", install_command("cpu")),
        ("openvino", install_command("openvino")),
        ("auto", install_command("cpu")),
    ):
        script = (
            "import sys, importlib.util as u\n"
            "blocked, find = ('onnxruntime', 'openvino'), u.find_spec\n"
            "for name in blocked: sys.modules[name] = None\n"
            "u.find_spec = lambda name: None if name in blocked else find(name)\n"
            "from dsd_trt import EngineError, Scorer\n"
            f"try: Scorer.load({str(bundle.folder)!r}, {engine!r})\n"
            "except EngineError as error: print(error)\n"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert message in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("blocked", "chosen"), [("nothing", "openvino"), ("openvino", "onnxruntime")]
)
def test_auto_takes_the_fastest_that_works_and_says_why(
    bundle: Bundle, blocked: str, chosen: str
) -> None:
    """In a process that sees no GPU, and in which a library cannot be imported."""
    script = (
        "import sys\n"
        f"sys.modules[{blocked!r}] = None\n"
        "import dsd_trt.engine.driver as driver\n"
        "driver._LIBRARY = 'libcuda.absent.so'\n"
        "from dsd_trt import Scorer\n"
        f"with Scorer.load({str(bundle.folder)!r}) as scorer:\n"
        "    print(scorer.engine.engine, '|', scorer.why_engine)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    engine, _, reasons = run.stdout.partition(" | ")
    assert engine.startswith(chosen), run.stderr
    gpus = "tensorrt, tensorrt-rtx, onnxruntime-cuda: NVIDIA's driver is not installed"
    assert reasons.startswith(gpus)
    assert ("openvino: import of openvino " in reasons) == (blocked == "openvino")
    assert "cannot be used here" not in reasons  # each reason follows its engine's name


def test_a_named_engine_needs_no_reason(bundle: Bundle, engine: str) -> None:
    with Scorer.load(bundle.folder, engine) as scorer:
        assert scorer.why_engine == ""


def test_an_engine_nobody_knows_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="onnxruntime-cuda, openvino"):
        Scorer.load(bundle.folder, "cudnn")


def test_a_graph_that_does_not_match_its_manifest_is_refused(tmp_path: Path, engine: str) -> None:
    bundle = make_bundle(tmp_path)
    path = bundle.path("text_encoder.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, path)
    write_bundle(tmp_path, bundle.manifest)  # hashes are right again
    with pytest.raises(EngineError, match=r"input_ids.*int64"):
        Scorer.load(tmp_path, engine)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, engine: str) -> None:
    bundle = make_bundle(tmp_path)
    bundle.path("pair_scorer.onnx").write_bytes(b"not a graph")
    write_bundle(tmp_path, bundle.manifest)
    with pytest.raises(EngineError, match=r"pair_scorer\.onnx"):
        Scorer.load(tmp_path, engine)


def test_a_scorer_without_a_finite_score_names_every_image(tmp_path: Path, engine: str) -> None:
    bundle = make_bundle(tmp_path)
    path = bundle.path("pair_scorer.onnx")
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if constant.name == "projection":
            overflowing = np.full((3, 4), np.nan, np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(overflowing, "projection"))
    onnx.save(model, path)
    write_bundle(tmp_path, bundle.manifest)
    matrix = Scorer.load(tmp_path, engine).score(random_images(2), ["dog", "a dog"])
    assert np.isnan(matrix.scores).all()
    assert [failure.image for failure in matrix.errors] == ["image 0", "image 1"]
    assert all(f"({engine} " in failure.reason for failure in matrix.errors)


def test_what_is_no_bundle_is_said_not_to_be(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="bundle is a folder"):
        Scorer.load("no-such-folder")
    with pytest.raises(BundleError, match="is not a bundle"):
        Scorer.load(tmp_path)


def test_batches_follow_the_memory_budget(bundle: Bundle) -> None:
    manifest = read_bundle(bundle.folder).manifest
    # By the formula: n (2 H (n + 77) + 16 D) numbers of 4 bytes, n = 4, H = 2, D = 4.
    triple = 4 * 4 * (2 * 2 * (4 + 77) + 16 * 4)
    assert batch_sizes(manifest, 10 * triple / 2**20).passes == 10
    assert batch_sizes(manifest, 10.5 * triple / 2**20).passes == 10
    assert batch_sizes(manifest, 0).passes == 1
    assert batch_sizes(manifest, 1e6).passes == MAX_BATCH


def test_importing_the_package_loads_nothing_heavy(bundle: Bundle) -> None:
    script = (
        "import sys, dsd_trt\n"
        "heavy = {'numpy', 'PIL', 'tokenizers', 'rich', 'click', 'onnxruntime', 'openvino'}\n"
        "assert not heavy & set(sys.modules)\n"
        f"dsd_trt.Scorer.load({str(bundle.folder)!r}).score([b''], ['dog'])\n"
        "assert not {'torch', 'diffusers', 'transformers', 'onnx', 'rich'} & set(sys.modules)\n"
        "assert set(dsd_trt.__all__) <= set(dir(dsd_trt))\n"
        "assert all(getattr(dsd_trt, name) for name in dsd_trt.__all__)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("alone", [Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8), b"x"])
def test_a_picture_alone_is_no_list_of_pictures(bundle: Bundle, alone: Any) -> None:
    with pytest.raises(InputError, match="images must be a list"):
        Scorer(bundle, "onnxruntime").score(alone, ["a dog"])


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        (0.2, "0.2"),
        ("0.2", "'0.2'"),
        ("0.2,0.4", "'0.2,0.4'"),
        (b"0.2", "b'0.2'"),
        (["0.2"], "['0.2']"),
        ((0.2, None), "[0.2, None]"),
        ([[0.2]], "[[0.2]]"),
        ([True], "[True]"),
        ({"0.2": 1}, "['0.2']"),
        (np.array(0.2), "array(0.2)"),
        (np.array([[0.2]]), "array([[0.2]])"),
        (np.array(["0.2"]), "[np.str_('0.2')]"),
    ],
)
def test_what_is_no_list_of_levels_is_refused_as_what_it_is(
    scorer: Scorer, levels: Any, shown: str
) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    unchecked: Any = scorer
    uses: tuple[Callable[[], object], ...] = (
        lambda: unchecked.score([image], ["a dog"], levels=levels),
        lambda: unchecked.rank("a dog", [image], levels=levels),
        lambda: unchecked.score_pairs([(image, "a dog")], levels=levels),
    )
    for use in uses:
        with pytest.raises(InputError) as error:
            use()
        assert str(error.value) == f"levels must be a list such as [0.2, 0.4], got {shown}"


def test_levels_in_single_precision_are_the_numbers_they_show(scorer: Scorer) -> None:
    levels = scorer.manifest.method.noise_levels.fractions
    image = np.zeros((8, 8, 3), np.uint8)
    single = cast(Any, np.array(levels[:1], np.float32))
    scores = scorer.score([image], ["a dog"], levels=single).scores
    assert scores == scorer.score([image], ["a dog"], levels=levels[:1]).scores


@pytest.mark.parametrize("top_k", [0, -1, 1.0, "1", True])
def test_so_many_best_must_be_a_whole_number(scorer: Scorer, top_k: Any) -> None:
    with pytest.raises(InputError, match="top_k must be a whole number above 0"):
        scorer.rank("dog", [], top_k=top_k)


def test_what_no_type_checker_saw_is_named(bundle: Bundle, scorer: Scorer) -> None:
    unchecked: Any = scorer
    with pytest.raises(InputError, match="images must be a list, got NoneType"):
        unchecked.score(None, ["dog"])
    with pytest.raises(InputError, match="levels must be a list"):
        unchecked.score([], ["dog"], levels=0.2)
    number = np.array(0.2)  # an array, and nothing in it to take
    for use in (
        lambda: unchecked.score([], ["dog"], levels=number),
        lambda: unchecked.score([], ["dog"], levels=number.reshape(1, 1)),
        lambda: unchecked.score(number, ["dog"]),
        lambda: unchecked.score_pairs(number),
        lambda: unchecked.score([], ["dog"], progress=5),
        lambda: Scorer(bundle, cast(Any, np.zeros(2))),
        lambda: Scorer(bundle, "onnxruntime", mode=cast(Any, np.zeros(2))),
        lambda: Index.open(cast(Any, 3)),
        lambda: Scorer.load(require_signature=cast(Any, 3)),
        lambda: Scorer.load("a" * 5000),
    ):
        with pytest.raises(DsdError):
            use()
    for mode, engine, budget, complaint in (
        ("x", "onnxruntime", 1, "no mode 'x': there are auto, pair, matrix"),
        ("pair", None, 1, "no engine named None; choose from auto, "),
        ("pair", "onnxruntime", float("inf"), "memory_budget_mb must be a number of MiB, got inf"),
        ("pair", "onnxruntime", float("nan"), "memory_budget_mb must be a number of MiB, got nan"),
        ("pair", "onnxruntime", "512", "memory_budget_mb must be a number of MiB, got '512'"),
        ("pair", "onnxruntime", -5, "memory_budget_mb must be a number of MiB, got -5"),
    ):
        arguments: Any = (engine, budget, mode)
        with pytest.raises(DsdError, match=complaint):
            Scorer(bundle, *arguments)
    for name in (3, b"/x"):
        with pytest.raises(DsdError, match="a bundle is named by a path or a string"):
            Scorer.load(cast(Any, name))


def test_levels_may_be_a_generator(scorer: Scorer) -> None:
    levels = scorer.manifest.method.noise_levels.fractions
    picture = np.zeros((8, 8, 3), np.uint8)
    scores = scorer.score([picture], ["dog"], levels=cast(Any, (s for s in levels[:1]))).scores
    assert scores == scorer.score([picture], ["dog"], levels=levels[:1]).scores


def test_what_is_no_image_says_what_would_be(scorer: Scorer) -> None:
    pictures: Any = [None, BytesIO(b"x")]
    errors = scorer.score(pictures, ["dog"]).errors
    assert [failure.reason.split(":")[0] for failure in errors] == [
        "NoneType is no image",
        "BytesIO is no image",
    ]
    torch = pytest.importorskip("torch")
    tensor: Any = torch.zeros(3, 8, 8, dtype=torch.uint8)
    (failure,) = scorer.score([tensor], ["dog"]).errors
    assert failure.reason.endswith("such as x.permute(1, 2, 0).cpu().numpy()")
    assert not scorer.score([tensor.permute(1, 2, 0).cpu().numpy()], ["dog"]).errors


def test_tables_are_no_lists_of_images(scorer: Scorer) -> None:
    """Their elements would be names of columns."""
    pandas = pytest.importorskip("pandas")
    for table in ({"image": ["a.png"]}, pandas.DataFrame({"image": ["a.png"]})):
        unchecked: Any = table
        with pytest.raises(InputError, match=r"give one of its columns, such as table\['image'\]"):
            scorer.score(unchecked, ["dog"])


@pytest.mark.parametrize(
    ("name", "other"), [(b"text_states", b"text\xc6states"), (b"Gather", b"\xc6ather")]
)
def test_names_that_are_no_utf8_are_refused_and_standard_output_left_alone(
    bundle: Bundle,
    tmp_path: Path,
    engine: str,
    capfd: pytest.CaptureFixture[str],
    name: bytes,
    other: bytes,
) -> None:
    """ONNX Runtime 1.32 tells there, of some graphs, that it tries the same again."""
    graph = bundle.manifest.graphs["text_encoder"]
    content = bundle.path(graph.file).read_bytes()
    path = tmp_path / "graph.onnx"
    assert name in content
    path.write_bytes(content.replace(name, other))
    with pytest.raises(EngineError, match=f"{engine} refuses"):
        open_engine(path, graph, engine)
    assert capfd.readouterr().out == ""


def test_a_scorer_is_not_sent_to_another_process(scorer: Scorer) -> None:
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(EngineError, match="spawn, and open a Scorer in each"):
            send(scorer)


def test_a_scorer_shows_what_it_is(bundle: Bundle) -> None:
    with Scorer(bundle, "onnxruntime") as opened:
        shown = repr(opened)
    assert str(bundle.folder) in shown
    assert "onnxruntime" in shown
    assert "pair mode" in shown
