"""Numbers that are not finite: each costs its image, text or pair, and nothing else."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import closed_form, make_bundle
from click.testing import CliRunner
from fragile_bundles import BLACK, WHITE, make_fragile_bundle
from PIL import Image
from safetensors.numpy import load_file, save

from dsd_trt import Bundle, Index, Scorer
from dsd_trt.bundle.folder import file_entry
from dsd_trt.commands.main import cli
from dsd_trt.engine import find_backend
from dsd_trt.index.writer import update_index
from dsd_trt.pipeline import finite_rows, precision_advice
from dsd_trt.search import eliminate

NOISE = np.random.default_rng(6).integers(0, 256, (3, 8, 8, 3), np.uint8)
IMAGES = [NOISE[0], WHITE, BLACK, NOISE[1], NOISE[2]]
TEXTS = ["a red circle", "a dog", "a blue circle", "green dog"]
LOST = [[0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def fragile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("fragile")
    return make_fragile_bundle(folder, precision=request.param, matrix=True)


def _expected(mode: Any = "pair") -> np.ndarray[Any, Any]:
    scores = np.array([[closed_form(image, text, mode=mode) for text in TEXTS] for image in IMAGES])
    return np.where(LOST, np.nan, scores)


def _failed(errors: Any) -> list[tuple[str | None, str | None]]:
    return [(failure.image, failure.text) for failure in errors]


@pytest.mark.parametrize("mode", ["pair", "matrix"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_image_a_text_and_a_pair_are_named_and_the_rest_is_scored(
    fragile: Bundle, engine: str, mode: Any
) -> None:
    scorer = Scorer.load(fragile.folder, engine, mode=mode)
    told: list[tuple[int, int | None]] = []
    matrix = scorer.score(IMAGES, TEXTS, progress=lambda *it: told.append(it))
    half = fragile.manifest.precision == "fp16"
    np.testing.assert_allclose(matrix.scores, _expected(mode), atol=4e-3 if half else 1e-6)
    assert np.array_equal(np.isnan(matrix.probabilities), np.array(LOST, bool))
    assert told[-1] == (20, 20)
    assert _failed(matrix.errors) == [
        (None, "a blue circle"),
        ("image 1", None),
        ("image 2", "a dog"),
        ("image 2", "green dog"),
    ]
    wanted = ["text encoder", "image encoder", f"{mode} scorer", f"{mode} scorer"]
    advice = "export --precision fp32" if half else f"dsd-trt ranges {fragile.folder}"
    for failure, part in zip(matrix.errors, wanted, strict=True):
        assert part in failure.reason
        assert engine in failure.reason
        assert failure.reason.endswith(advice)

    places = [(4, 0), (2, 1), (1, 0), (2, 0), (0, 2), (2, 1), (0, 3)]
    pairs = scorer.score_pairs([(IMAGES[i], TEXTS[j]) for i, j in places])
    np.testing.assert_allclose(pairs.scores, [matrix.scores[place] for place in places], atol=1e-6)
    assert pairs.images[1] == pairs.images[3] == pairs.images[5] == "image 1"
    assert _failed(pairs.errors) == [
        (None, "a blue circle"),
        ("image 1", "a dog"),
        ("image 2", None),
    ]


def test_a_search_names_what_it_could_not_score(
    fragile: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer.load(fragile.folder, "onnxruntime")
    found = scorer.score(IMAGES, TEXTS, top_k=1)
    whole = scorer.score(IMAGES, TEXTS)
    assert found.errors == whole.errors
    best = np.nanargmax(whole.scores[[0, 2, 3, 4]], axis=1)
    assert np.array_equal(np.nanargmax(found.scores[[0, 2, 3, 4]], axis=1), best)
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        ranked = scorer.rank("a dog", IMAGES, top_k=2, prune=True)
    places = [place.index for place in ranked]
    assert places == [place.index for place in scorer.rank("a dog", IMAGES, top_k=2)]
    assert set(places) <= {0, 3, 4}
    assert "image 1: the image encoder gave a latent with NaN" in caplog.text
    assert "image 2 and 'a dog': the pair scorer gave a score with NaN" in caplog.text
    caplog.clear()
    assert scorer.rank("a blue circle", IMAGES, top_k=2, prune=True) == []
    assert "'a blue circle': the text encoder gave states with NaN" in caplog.text


def test_elimination_drops_what_has_no_number_and_finds_the_best_of_the_rest() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(60, 1)) + 0.1 * rng.normal(size=(60, 4))
    scores[::7, 0] = np.nan
    scores[::11, 2] = np.nan
    asked = []

    def score_at(candidates: Any, place: int) -> Any:
        asked.append((candidates.tolist(), place))
        return scores[candidates, place]

    found = eliminate(score_at, 60, 4, 3, 0.01)
    means = scores.mean(axis=1)  # NaN where any level is
    assert set(np.argsort(np.nan_to_num(-found, nan=np.inf))[:3]) == set(
        np.argsort(np.nan_to_num(-means, nan=np.inf))[:3]
    )
    assert np.isnan(found[::7]).all()
    assert not any(set(range(0, 60, 7)) & set(candidates) for candidates, place in asked if place)
    assert sum(len(candidates) for candidates, _ in asked) < 240  # it still prunes


def test_all_of_a_damaged_part_is_named(tmp_path: Path) -> None:
    """A text alone and an image alone are no special case."""
    make_fragile_bundle(tmp_path)
    scorer = Scorer.load(tmp_path, "openvino")
    assert _failed(scorer.score([WHITE], ["a dog"]).errors) == [("image 0", None)]
    assert _failed(scorer.score([BLACK], ["a dog"]).errors) == [("image 0", "a dog")]
    assert _failed(scorer.score([BLACK], ["a dog", "dog"]).errors) == [("image 0", None)]
    alone = scorer.score(NOISE[:1], ["blue"])
    assert np.isnan(alone.scores).all()
    assert _failed(alone.errors) == [(None, "blue")]
    assert _failed(scorer.score_pairs([(NOISE[0], "blue"), (WHITE, "dog")]).errors) == [
        (None, "blue"),
        ("image 1", None),
    ]


def test_the_denoising_term_of_an_image_that_has_none(tmp_path: Path) -> None:
    make_fragile_bundle(tmp_path, score="denoising")
    scorer = Scorer.load(tmp_path, "onnxruntime")
    matrix = scorer.score([NOISE[0], BLACK, WHITE], ["a red circle", "a dog"])
    assert np.isnan(matrix.scores).tolist() == [[False, False], [False, True], [True, True]]
    assert _failed(matrix.errors) == [("image 1", "a dog"), ("image 2", None)]


def test_the_command_names_each_and_exits_3(fragile: Bundle, tmp_path: Path) -> None:
    for name, pixels in zip("abcde", IMAGES, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    arguments = ["score", str(tmp_path), str(tmp_path / "texts.txt"), "-f", "json"]
    done = CliRunner().invoke(cli, [*arguments, "--bundle", str(fragile.folder)])
    assert done.exit_code == 3
    rows = json.loads(done.stdout, parse_constant=pytest.fail)
    scored = [(Path(row["image"]).stem, row["text"]) for row in rows]
    pairs = itertools.product("abcde", TEXTS)
    assert scored == [pair for pair, lost in zip(pairs, np.ravel(LOST), strict=True) if not lost]
    assert "images, texts and pairs that could not be scored: 4" in done.stderr
    for what in ("  'a blue circle': ", "b.png: the image", "c.png and 'a dog': the pair"):
        assert what in done.stderr
    check = ("--check-prune", "5")
    pruned = CliRunner().invoke(
        cli,
        [*arguments, "--bundle", str(fragile.folder), "--top-k", "1", "--prune", *check],
    )
    assert pruned.exit_code == 3
    assert "4 of the first 4 that could be read" in pruned.stderr


# Indexes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["pair", "matrix"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_latent_of_an_index_costs_its_image_alone(
    tmp_path: Path, engine: str, mode: Any, value: float
) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    photos = _photos(tmp_path, NOISE)
    folder = tmp_path / "index"
    update_index(folder, photos, bundle.folder, engine="onnxruntime")
    _damage(folder, 1, value)
    scorer = Scorer.load(bundle.folder, engine, mode=mode)
    texts = ["a red circle", "a dog"]
    matrix = scorer.score(folder, texts)
    direct = scorer.score(photos, texts)
    np.testing.assert_allclose(matrix.scores[[0, 2]], direct.scores[[0, 2]], atol=1e-6)
    assert np.isnan(matrix.scores[1]).all()
    (failure,) = matrix.errors
    assert failure.image == str(photos[1])
    assert failure.reason.endswith(f"dsd-trt index IMAGES {folder}")
    index = Index.open(folder)
    pairs = scorer.score_pairs(list(itertools.product(list(index), texts)))
    np.testing.assert_allclose(pairs.scores, matrix.scores.ravel(), atol=1e-6)
    assert pairs.errors == matrix.errors
    for top_k, prune in ((None, False), (2, True)) if mode == "pair" else ((None, False),):
        ranked = scorer.rank("a dog", index, top_k=top_k, prune=prune)
        assert sorted(place.index for place in ranked) == [0, 2]


def test_indexing_again_encodes_a_damaged_latent_again(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    photos = _photos(tmp_path, NOISE)
    folder = tmp_path / "index"
    update_index(folder, photos, bundle.folder)
    _damage(folder, 1, np.nan)
    arguments = ["score", str(folder), "-", "--bundle", str(bundle.folder), "-f", "csv"]
    ended = CliRunner().invoke(cli, arguments, input="a dog\n")
    assert ended.exit_code == 3
    assert len(ended.stdout.splitlines()) == 3
    assert f"{photos[1]}: its latent in the index has NaN" in ended.stderr
    done = update_index(folder, photos, bundle.folder)
    assert (done.images, done.encoded, done.errors) == (3, 1, ())
    assert CliRunner().invoke(cli, arguments, input="a dog\n").exit_code == 0


def test_a_latent_that_is_not_finite_is_not_written(fragile: Bundle, tmp_path: Path) -> None:
    photos = _photos(tmp_path, [NOISE[0], WHITE, NOISE[1]])
    folder = tmp_path / "index"
    arguments = ["index", *map(str, photos), str(folder), "--bundle", str(fragile.folder)]
    for encoded in (2, 0):  # it is tried again each time
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 3, done.output
        assert f"has 2 images: {encoded} encoded" in done.stderr
        assert f"  {photos[1]}: the image encoder gave a latent with NaN" in done.stderr
        (shard,) = folder.glob("*.safetensors")
        assert load_file(shard)["latent"].shape[0] == 2
        assert np.isfinite(load_file(shard)["latent"]).all()
    index = Index.open(folder)
    matrix = Scorer.load(fragile.folder, "onnxruntime").score(index, ["a dog"])
    assert _failed(matrix.errors) == [(str(photos[1]), None)]
    assert np.isfinite(matrix.scores[[0, 2]]).all()


def _photos(folder: Path, images: Any) -> list[Path]:
    photos = [folder / f"{number}.png" for number in range(len(images))]
    for photo, pixels in zip(photos, images, strict=True):
        Image.fromarray(pixels).save(photo)
    return photos


def _damage(folder: Path, row: int, value: float) -> None:
    """Put a number into a latent, as a version that did not look would have written it."""
    (shard,) = folder.glob("*.safetensors")
    latents = load_file(shard)["latent"]
    latents[row, 0, 1, 1] = value
    shard.write_bytes(save({"latent": latents}))
    plain = json.loads((folder / "index.json").read_text("utf-8"))
    entry = file_entry(shard)
    plain["shards"][shard.name] |= {"sha256": entry.sha256, "size": entry.size}
    (folder / "index.json").write_text(json.dumps(plain), "utf-8")


@pytest.mark.parametrize(
    ("engine", "precision", "advice"),
    [
        ("openvino-bf16", "fp32", "Compute in FP32: --engine openvino"),
        ("openvino-bf16", "fp16", "Compute in FP32: --engine openvino"),
        ("tensorrt", "fp16", "Use a bundle in full precision: dsd-trt export --precision fp32"),
        ("onnxruntime", "fp16", "dsd-trt export --precision fp32"),
        ("openvino", "fp32", "To see where it begins: dsd-trt ranges a-bundle"),
    ],
)
def test_advice_fits_the_precision_that_was_used(engine: str, precision: Any, advice: str) -> None:
    assert precision_advice(find_backend(engine), precision, Path("a-bundle")).endswith(advice)


def test_rows_are_finite_as_a_whole() -> None:
    values = np.zeros((4, 2, 3), np.float16)
    values[1, 1, 2], values[2, 0, 0] = np.nan, -np.inf
    assert finite_rows(values).tolist() == [True, False, False, True]
