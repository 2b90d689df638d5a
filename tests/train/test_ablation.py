"""Ablations read off collected maps equal the scores of models built that way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_adapter, write_checkpoint
from click.testing import CliRunner
from numpy.typing import NDArray
from page_parts import PageParts

from dsd_trt.commands.main import cli
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, read_checkpoint
from dsd_trt.train.evaluation.ablation import LEVELS, Maps, ablate, as_text, collect, score
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.shapes.datasets import shapes_comvg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return read_checkpoint(folder)


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return Adapter.load(write_adapter(tmp_path_factory.mktemp("adapter"), folder))


@pytest.fixture(scope="module")
def examples(checkpoint: Checkpoint) -> Examples:
    return encode_questions(checkpoint, list(shapes_comvg(6, 1)))


@pytest.fixture(scope="module")
def maps(checkpoint: Checkpoint, adapter: Adapter, examples: Examples) -> Maps:
    return collect(build_scoring_unet(checkpoint, adapter, levels=LEVELS), examples)


def _weights(checkpoint: Checkpoint, adapter: Adapter | None) -> NDArray[np.float64]:
    return build_scoring_unet(checkpoint, adapter).head_weights.double().numpy()


@torch.no_grad()
def _served(
    checkpoint: Checkpoint, adapter: Adapter, examples: Examples, **settings: Any
) -> NDArray[np.float64]:
    """Scores of the model as it would be exported, averaged over the paper's levels or others."""
    scoring = build_scoring_unet(checkpoint, adapter, **{"levels": DEFAULT_LEVELS, **settings})
    images, texts = examples.images, examples.texts
    at_levels = [
        scoring(
            examples.latents[images],
            torch.full((len(images),), level),
            examples.text_states[texts],
            examples.token_masks[texts],
        )[0]
        for level in range(len(scoring.timesteps))
    ]
    return torch.stack(at_levels).mean(dim=0).double().numpy()


def test_the_whole_score_is_the_models(
    checkpoint: Checkpoint, adapter: Adapter, examples: Examples, maps: Maps
) -> None:
    w = _weights(checkpoint, adapter)
    expected = _served(checkpoint, adapter, examples)
    np.testing.assert_allclose(score(maps, maps.pooled["lse 20"], w), expected, atol=1e-6)


@pytest.mark.parametrize("levels", [(0.4,), (0.2, 0.8), LEVELS])
def test_levels_are_left_out_as_a_bundle_would(
    checkpoint: Checkpoint,
    adapter: Adapter,
    examples: Examples,
    maps: Maps,
    levels: tuple[float, ...],
) -> None:
    w = _weights(checkpoint, adapter)
    expected = _served(checkpoint, adapter, examples, levels=levels)
    got = score(maps, maps.pooled["lse 20"], w, levels=levels)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lse 1", {"lam": 1.0}),
        ("lse 100", {"lam": 100.0}),
        ("max", {"pooling": "max"}),
    ],
)
def test_poolings_are_those_of_a_model_built_with_them(
    checkpoint: Checkpoint,
    adapter: Adapter,
    examples: Examples,
    maps: Maps,
    name: str,
    settings: dict[str, Any],
) -> None:
    w = _weights(checkpoint, adapter)
    expected = _served(checkpoint, adapter, examples, **settings)
    np.testing.assert_allclose(score(maps, maps.pooled[name], w), expected, atol=1e-6)


@pytest.mark.parametrize("last", [1, 3])
def test_layers_are_left_out_as_a_bundle_would(
    checkpoint: Checkpoint, adapter: Adapter, examples: Examples, maps: Maps, last: int
) -> None:
    w = _weights(checkpoint, adapter)
    w[: sum(maps.heads[: len(maps.heads) - last])] = 0
    expected = _served(checkpoint, adapter, examples, score_layers=f"last:{last}")
    np.testing.assert_allclose(score(maps, maps.pooled["lse 20"], w), expected, atol=1e-6)


def test_dynamic_weights_are_those_of_a_dynamic_model(
    checkpoint: Checkpoint, examples: Examples, folder: Path, tmp_path: Path
) -> None:
    dynamic = Adapter.load(write_adapter(tmp_path, folder, head_mode="dynamic"))
    maps = collect(build_scoring_unet(checkpoint, dynamic, levels=LEVELS), examples)
    w = _weights(checkpoint, dynamic)
    got = score(maps, maps.pooled["lse 20"], w, maps.relevance)
    np.testing.assert_allclose(got, _served(checkpoint, dynamic, examples), atol=1e-6)


def test_every_figure_has_its_settings(
    checkpoint: Checkpoint, adapter: Adapter, examples: Examples, maps: Maps
) -> None:
    ablations = ablate(maps, _weights(checkpoint, adapter), examples)
    settings = {name: [point.setting for point in points] for name, points in ablations.items()}
    assert settings == {
        "Figure 3: layers used": ["last 1", "last 2", "all 6"],
        "Figure 4: heads used": ["1 averaged", "1 dynamic", "2 averaged", "2 dynamic"],
        "Figure 5: pooling": ["lse 1", "lse 5", "lse 20", "lse 100", "max", "cosine"],
        "Figure 6: noise levels": [
            "0.2", "0.4", "0.6", "0.8", "1 level", "2 levels", "4 levels", "8 levels",
        ],
    }  # fmt: skip
    whole = examples.right_answers(
        torch.from_numpy(score(maps, maps.pooled["lse 20"], _weights(checkpoint, adapter)))
    )
    for figure, setting in (
        ("Figure 3: layers used", "all 6"),
        ("Figure 5: pooling", "lse 20"),
        ("Figure 6: noise levels", "4 levels"),
    ):
        (point,) = [p for p in ablations[figure] if p.setting == setting]
        assert point.accuracy == pytest.approx(100 * np.mean(whole))
    assert as_text(ablations).count("|---|---:|") == 4


def test_command_writes_tables_and_a_plot(folder: Path, tmp_path: Path) -> None:
    arguments = ["ablate", "--model", str(folder), "--data", "shapes-comvg", "--limit", "4"]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path), "-o", str(page)])
    assert done.exit_code == 0, done.output
    parts = PageParts(page.read_text("utf-8"))
    figures = json.loads((tmp_path / "ablation.json").read_text("utf-8"))["figures"]
    assert [it.text for it in parts.all("caption")] == list(figures)
    shown = [it.attributes["width"] for it in parts.all("rect")]
    points = [point["accuracy"] for points in figures.values() for point in points]
    assert list(map(float, map(str, shown))) == pytest.approx(points, abs=0.01)
    assert (tmp_path / "ablation.md").read_text("utf-8") == done.stdout
    assert len(json.loads((tmp_path / "ablation.json").read_text("utf-8"))["figures"]) == 4
    assert (tmp_path / "ablation.png").stat().st_size > 5000
