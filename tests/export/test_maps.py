"""The maps graph: the pair scorer's own maps, of which its scores are pooled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import make_manifest
from checkpoints import write_adapter
from exported import Exported
from numpy.typing import NDArray
from unets import SIDE, TEXT_WIDTH, TOKENS, random_levels, random_pairs, random_unet

from dsd_trt import Bundle, InputError, read_bundle
from dsd_trt.attention import pooled_tokens
from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.contract import Precision, graph_contract
from dsd_trt.bundle.folder import with_maps
from dsd_trt.bundle.maps import NAME, maps_graph
from dsd_trt.bundle.method import HeadMode, HeadWeights
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.engine import find_backend
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine
from dsd_trt.errors import ModelError
from dsd_trt.export.adapt import replace_adapter
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.maps import add_maps, cut_maps, require_same_score
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.settings import ExportSettings
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

pytest_plugins = ("exported",)

ROWS = 5


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """A copy of a bundle, with a maps graph."""
    shutil.copytree(bundle.folder, folder)
    return add_maps(replace(bundle, folder=folder))


def feeds_of(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Random inputs of the pair scorer: other latents, levels, texts and masks in every row."""
    random = np.random.default_rng(6)
    levels = len(bundle.manifest.method.noise_levels.fractions)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in bundle.manifest.graphs["pair_scorer"].inputs:
        if spec.batched:
            feeds[spec.name] = random.normal(size=spec.of_batch(ROWS)).astype(spec.dtype)
    feeds["level"] = (np.arange(ROWS) % levels).astype(np.int32)
    feeds["token_mask"] = np.zeros((ROWS, 77), np.float32)
    for row in range(ROWS):
        feeds["token_mask"][row, 1 : 4 + row] = 1
    return {**feeds, **adapter_feed(bundle)}


def run(bundle: Bundle, engine: str, name: str) -> Mapping[str, NDArray[Any]]:
    """Outputs of a graph for `feeds_of`."""
    opened = find_backend(engine).open(with_maps(bundle), name)
    try:
        return opened.run(feeds_of(bundle))
    finally:
        opened.close()


def check_pooled(bundle: Bundle, engine: str) -> None:
    """The maps of a bundle, pooled in numpy, are its token scores, and their mean its score."""
    maps, scored = run(bundle, engine, NAME), run(bundle, engine, "pair_scorer")
    mask = feeds_of(bundle)["token_mask"]
    tokens = pooled_tokens(list(maps.values()), bundle.manifest.method, mask)
    assert scored["token_scores"].std() > 1e-3  # or equality would mean little
    np.testing.assert_allclose(tokens, scored["token_scores"], rtol=0, atol=1e-5)
    f = (tokens * mask).sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(f, scored["score"], rtol=0, atol=1e-5)
    for attention in maps.values():  # a softmax over text tokens
        np.testing.assert_allclose(attention.sum(axis=3), 1, atol=1e-5)


def test_the_demonstrations_maps_pool_to_its_scores(engine: str) -> None:
    check_pooled(read_bundle(EMBEDDED), engine)


def test_maps_with_prompts_and_head_weights_pool_to_the_scores(
    exported_fp32: Exported, engine: str, tmp_path: Path
) -> None:
    check_pooled(copied(exported_fp32.bundle, tmp_path / "bundle"), engine)


def test_an_adapter_that_is_an_input_is_an_input_of_the_maps(
    fed_fp32: Bundle, engine: str, tmp_path: Path
) -> None:
    bundle = copied(fed_fp32, tmp_path / "bundle")
    check_pooled(bundle, engine)
    names = [it.name for it in with_maps(bundle).manifest.graphs[NAME].inputs]
    assert "adapter" in names


def test_an_adapted_bundle_explains_with_its_new_adapter(
    fed_fp32: Bundle, checkpoint_folder: Path, tmp_path: Path
) -> None:
    other = write_adapter(tmp_path / "other", checkpoint_folder, seed=2)
    before = copied(fed_fp32, tmp_path / "bundle")
    bundle = replace_adapter(before, other, tmp_path / "adapted")
    check_pooled(bundle, "onnxruntime")
    old, new = (run(it, "onnxruntime", NAME)["attention_0"] for it in (before, bundle))
    assert np.abs(old - new).max() > 1e-2


@torch.no_grad()
def test_the_maps_are_those_of_pytorch(exported_fp32: Exported, tmp_path: Path) -> None:
    bundle = copied(exported_fp32.bundle, tmp_path / "bundle")
    recipe, feeds = exported_fp32.load(), feeds_of(bundle)
    scoring = recipe.build_scoring(recipe.checkpoint.read_unet(torch.float32)).eval()
    latent, level, states = (
        torch.from_numpy(feeds[name]) for name in ("latent", "level", "text_states")
    )
    pi = None if scoring.prompts is None else scoring.prompts.pi(latent)
    assert pi is not None
    z_t = scoring.add_noise(latent, level.long())
    steps = scoring.cross_attentions(z_t, scoring.timesteps[level.long()], states, pi)
    expected = {f"attention_{seen.layer}": seen.attention.numpy() for seen in steps}
    got = run(bundle, "onnxruntime", NAME)
    assert got.keys() == expected.keys()
    for name, attention in expected.items():
        np.testing.assert_allclose(got[name], attention, rtol=0, atol=1e-4, err_msg=name)


def test_the_graph_has_no_weights_of_its_own(exported_fp32: Exported, tmp_path: Path) -> None:
    """And no file but bundle.json changes."""
    before = {it.name: it.read_bytes() for it in exported_fp32.bundle.folder.iterdir()}
    bundle = copied(exported_fp32.bundle, tmp_path / "bundle")
    after = {it.name: it.read_bytes() for it in bundle.folder.iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"maps.onnx", "bundle.json"}

    def stored(file: str) -> set[tuple[str, ...]]:
        graph = load_graph(bundle.path(file)).graph
        return {tuple(it.value for it in t.external_data) for t in graph.initializer} - {()}

    assert stored("maps.onnx") <= stored("pair_scorer.onnx")
    onnx.checker.check_model(bundle.path("maps.onnx"))
    graph = bundle.manifest.graph_hash("pair_scorer")
    assert graph == exported_fp32.bundle.manifest.graph_hash("pair_scorer")  # plans stay valid
    assert read_bundle(bundle.folder).manifest == bundle.manifest


def test_the_export_writes_the_layers_that_are_scored_alone(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(
        str(checkpoint_folder), score_layers="last:2", levels=(0.4,), verify="none", maps=True
    )
    bundle, _ = export_bundle(settings, tmp_path / "bundle")
    outputs = with_maps(bundle).manifest.graphs[NAME].outputs
    layers = bundle.manifest.method.score_layers
    assert [it.name for it in outputs] == [f"attention_{layer}" for layer in layers]
    assert len(outputs) == 2
    check_pooled(bundle, "onnxruntime")
    names = {entry.key for entry in load_graph(bundle.path("pair_scorer.onnx")).metadata_props}
    assert "dsd_trt.maps" not in names  # the other graphs are what they would be without


def test_what_pools_to_other_scores_is_refused(exported_fp32: Exported, tmp_path: Path) -> None:
    bundle = copied(exported_fp32.bundle, tmp_path / "bundle")
    method = replace(bundle.manifest.method, lam=10.0)
    other = replace(bundle, manifest=replace(bundle.manifest, method=method))
    with pytest.raises(ModelError, match="would explain another score"):
        require_same_score(other)
    require_same_score(bundle)
    weights = replace(method.head_weights, values=method.head_weights.values[1:])
    fewer = replace(bundle.manifest, method=replace(method, head_weights=weights))
    model = load_graph(bundle.path("pair_scorer.onnx"))
    with pytest.raises(ModelError, match="export without --maps"):
        cut_maps(model, fewer)


def contents(folder: Path) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in folder.iterdir()}


def test_a_refused_graph_leaves_no_file(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    (folder / "maps.onnx").unlink()
    files = {**(whole := read_bundle(EMBEDDED).manifest).files}
    del files["maps.onnx"]
    manifest, before = replace(whole, maps=None, files=files), contents(folder)
    other = replace(manifest, method=replace(manifest.method, lam=10.0))
    with pytest.raises(ModelError, match="would explain another score"):
        add_maps(Bundle(folder, other))
    assert contents(folder) == before
    unchecked = replace(manifest, self_check=None)
    with pytest.raises(ModelError, match=r"no self-check.*dsd-trt export --maps"):
        add_maps(Bundle(folder, unchecked))
    assert contents(folder) == before
    add_maps(Bundle(folder, manifest))
    assert contents(folder).keys() == before.keys() | {"maps.onnx"}


@pytest.mark.parametrize("score", ["denoising", "attention+denoising", "released"])
def test_scores_that_no_map_shows_are_refused_before_the_work(score: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --maps"):
        export_bundle(ExportSettings(score=score, maps=True), tmp_path / "bundle")


@pytest.mark.slow  # traces
@pytest.mark.parametrize(
    ("family", "precision", "kind"),
    [
        ("sd 1", "fp32", {"score_layers": [1], "dynamic_heads": True}),
        ("sd 2", "fp32", {"lam": 100.0}),  # another form of Eq. 3
        ("sd 2", "fp16", {}),
        ("sdxl", "fp32", {"score_layers": "last:1", "pooling": "max"}),
        ("sdxl, convolutions", "fp32", {"dynamic_heads": True}),
    ],
)
def test_every_family(
    family: str, precision: Precision, kind: dict[str, Any], tmp_path: Path
) -> None:
    """Blocks of several transformers, heads that differ, layers that are not scored."""
    unet = random_unet(family)
    scoring = ScoringUNet(unet.half() if precision == "fp16" else unet, random_levels(), **kind)
    contract = graph_contract(precision, 64, (4, SIDE, SIDE), TEXT_WIDTH, TOKENS)
    manifest = make_manifest(contract, precision)
    weights = scoring.head_weights.split(scoring.heads)
    mode: HeadMode = "dynamic" if scoring.dynamic_heads else "uniform"
    method = replace(
        manifest.method,
        score_layers=scoring.score_layers,
        pooling=scoring.pooling,
        lam=scoring.lam,
        head_weights=HeadWeights(mode, tuple(tuple(it.tolist()) for it in weights)),
    )
    length = replace(manifest.tokenizer, max_length=TOKENS)
    manifest = replace(manifest, method=method, tokenizer=length)
    graph = contract["pair_scorer"]
    with WeightFile(tmp_path) as file:
        model = trace(scoring.eval(), graph, file)
    save_graph(model, tmp_path / graph.file)
    made, maps = cut_maps(model, manifest)
    save_graph(made, tmp_path / maps.file)

    pairs = random_pairs(ROWS)
    feeds = {
        spec.name: it.numpy().astype(spec.dtype)
        for spec, it in zip(graph.inputs, pairs, strict=True)
    }
    scored = OnnxRuntimeEngine(tmp_path / graph.file, graph).run(feeds)
    signature = maps_graph(maps, method, graph)
    found = OnnxRuntimeEngine(tmp_path / maps.file, signature).run(feeds)
    in_order = [found[spec.name] for spec in signature.outputs]
    pooled = pooled_tokens(in_order, method, feeds["token_mask"])
    assert scored["token_scores"].std() > 1e-3
    np.testing.assert_allclose(pooled, scored["token_scores"], rtol=0, atol=1e-5)


def test_half_precision(exported_fp16: Exported, engine: str, tmp_path: Path) -> None:
    bundle = copied(exported_fp16.bundle, tmp_path / "bundle")
    check_pooled(bundle, engine)
