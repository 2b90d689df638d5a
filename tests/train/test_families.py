"""Every family at a few channels: the parts against diffusers' own pipelines, then whole."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from full_disk import files_of_at_most
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dsd_trt import Scorer
from dsd_trt.errors import DsdError, InputError, ModelError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny, unet_config
from dsd_trt.train.diffusion.random_model import write_random_model

TEXTS = ["a red circle", "two dogs under a tree, one of them asleep", "", "ZEBRA 42!"]
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, few_words: None) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: write_random_model(root / name, tiny(family), seed=1)
        for name, family in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def checkpoints(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: read_checkpoint(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def exported(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """FP16 bundles; that they are there at all means that they passed the parity check."""
    root = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def of_family(name: str) -> Path:
        model = str(folders[name])
        settings = ExportSettings(model, levels=(0.2, 0.6), precision="fp16", verify="quick")
        export_bundle(settings, root / name)
        return root / name

    return of_family


def test_the_guide_lists_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    table = page.partition("| `--family` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(FAMILIES)


# The parts


def _pipeline_states(folder: Path, texts: list[str]) -> list[tuple[Tensor, Tensor | None]]:
    """Of each text alone its states, and pooled text where there is one, by diffusers' pipeline."""
    encoders = {"text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder")}
    tokenizers = {"tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer")}
    settings: dict[str, Any] = {"device": torch.device("cpu"), "num_images_per_prompt": 1}
    if (folder / "text_encoder_2").exists():
        encoders["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2"
        )
        tokenizers["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        kind, left_out = StableDiffusionXLPipeline, ("vae", "unet", "scheduler")
    else:
        kind, left_out = StableDiffusionPipeline, ("vae", "unet", "scheduler")
        settings |= {"negative_prompt": ""}
    for encoder in encoders.values():
        encoder.float()
    others: dict[str, Any] = dict.fromkeys(left_out)
    if kind is StableDiffusionPipeline:
        others |= {"safety_checker": None, "feature_extractor": None}
        others |= {"requires_safety_checker": False}
    pipeline = kind(**encoders, **tokenizers, **others)
    with torch.no_grad():
        encoded = [
            pipeline.encode_prompt(text, do_classifier_free_guidance=False, **settings)
            for text in texts
        ]
    return [(it[0], it[2] if len(it) == 4 else None) for it in encoded]


@every_family
def test_texts_are_encoded_as_diffusers_pipelines_encode_them(
    folders: dict[str, Path], checkpoints: dict[str, Checkpoint], name: str
) -> None:
    for text, (expected, pooled) in zip(TEXTS, _pipeline_states(folders[name], TEXTS), strict=True):
        states, _ = encode_texts(checkpoints[name], [text])
        assert (pooled is not None) == (len(FAMILIES[name].text) == 2)
        assert torch.allclose(states[:, :77], expected, atol=1e-5), text
        assert states.shape[1] == (77 if pooled is None else 78)
        if pooled is not None:
            width = pooled.shape[1]
            assert torch.allclose(states[:, 77, :width], pooled, atol=1e-5), text
            assert not states[:, 77, width:].any()


def _predict(unet: UNet2DConditionModel, z_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """The U-Net's own forward pass, conditioned as Stable Diffusion XL's pipeline does it."""
    if states.shape[1] == 77:
        sample: Tensor = unet(z_t, t, states).sample
        return sample
    added = {
        "text_embeds": states[:, 77, :32],
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(len(z_t), 1),
    }
    conditioned: Tensor = unet(z_t, t, states[:, :77], added_cond_kwargs=added).sample
    return conditioned


@every_family
@torch.no_grad()
def test_the_walk_predicts_what_the_u_net_predicts(
    checkpoints: dict[str, Checkpoint], name: str
) -> None:
    checkpoint = checkpoints[name]
    assert checkpoint.resolution == 64
    scoring = build_scoring_unet(checkpoint)
    states, _ = encode_texts(checkpoint, TEXTS[:2])
    z_t = torch.randn(2, *checkpoint.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([200, 800])
    walk = scoring.cross_attentions(z_t, t, states)
    assert len(list(walk)) == len(scoring.layer_names)
    expected = _predict(checkpoint.unet, z_t, t, states)
    assert (walk.prediction - expected).abs().max() < 1e-4 * expected.abs().max()


@every_family
@torch.no_grad()
def test_a_pair_scores_in_fp32_alone_as_in_a_batch(
    checkpoints: dict[str, Checkpoint], name: str
) -> None:
    checkpoint = checkpoints[name]
    scoring = build_scoring_unet(checkpoint, levels=(0.2, 0.6))
    states, mask = encode_texts(checkpoint, TEXTS)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, *checkpoint.latent_shape, generator=generator)
    level = torch.tensor([0, 1, 1, 0])
    together = scoring(z, level, states, mask)[0]
    order = torch.tensor([2, 0, 3, 1])
    shuffled = scoring(z[order], level[order], states[order], mask[order])[0]
    alone = torch.cat(
        [
            scoring(z[i : i + 1], level[i : i + 1], states[i : i + 1], mask[i : i + 1])[0]
            for i in order
        ]
    )
    assert (shuffled - together[order]).abs().max() < 1e-6
    assert (alone - shuffled).abs().max() < 1e-6


@torch.no_grad()
def test_stable_diffusion_xl_heeds_the_text_as_a_whole(
    checkpoints: dict[str, Checkpoint],
) -> None:
    checkpoint = checkpoints["sdxl"]
    scoring = build_scoring_unet(checkpoint, levels=(0.5,))
    states, mask = encode_texts(checkpoint, TEXTS[:1])
    other = states.clone()
    other[:, 77, :32] *= -1
    z, level = torch.randn(1, *checkpoint.latent_shape), torch.tensor([0])
    one, another = (scoring(z, level, r, mask)[0].item() for r in (states, other))
    assert abs(one - another) > 1e-4


# Whole bundles


@pytest.mark.slow  # exports
@every_family
def test_a_bundle_of_every_family_passes_its_parity_check(
    exported: Callable[[str], Path], name: str
) -> None:
    manifest = json.loads((exported(name) / "bundle.json").read_text("utf-8"))
    assert manifest["precision"] == "fp16"
    runs = manifest["parity"]["runs"]
    assert (manifest["parity"]["pairs"], manifest["parity"]["levels"]) == (4, 1)
    assert len(runs) == 2  # as the engine computes, and with FP16 rounding emulated
    assert all(run["score"]["spearman"] > 0.999 for run in runs)


@pytest.mark.slow  # exports
@every_family
def test_a_pair_of_every_family_scores_alone_as_among_others(
    exported: Callable[[str], Path], name: str
) -> None:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (3, 64, 64, 3), np.uint8))
    scorer = Scorer.load(exported(name), engine="onnxruntime")
    texts = [text for text in TEXTS if text]  # the unconditional text is no text to score
    together = scorer.score(images, texts).scores
    assert together.std() > 1e-3
    for i, j in np.ndindex(together.shape):
        alone = scorer.score([images[i]], [texts[j]]).scores[0, 0]
        # A batch's FP32 rounding may tip an encoder's output to the FP16 number beside it.
        assert abs(alone - together[i, j]) < 1e-4


@pytest.mark.slow  # exports
def test_the_command_scores_with_a_bundle_of_two_text_encoders(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a red circle\na dog\n", "utf-8")
    images = Path(__file__).parents[2] / "examples" / "images"
    picture = str(sorted(images.iterdir())[0])
    command = [sys.executable, "-m", "dsd_trt", "score", picture, str(tmp_path / "texts.txt")]
    done = subprocess.run(
        [*command, "--bundle", str(exported("sdxl")), "-f", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a dog" in done.stdout


# Writing them


def test_a_seed_names_a_model(folders: dict[str, Path], tmp_path: Path) -> None:
    again = write_random_model(tmp_path / "again", tiny(FAMILIES["sdxl"]), seed=1)
    other = write_random_model(tmp_path / "other", tiny(FAMILIES["sdxl"]), seed=2)
    hashes = [read_checkpoint(folder).weight_hashes for folder in (folders["sdxl"], again, other)]
    assert hashes[0] == hashes[1]
    assert set(hashes[0].values()).isdisjoint(hashes[2].values())


def test_whoever_reads_the_config_reads_the_weights(folders: dict[str, Path]) -> None:
    files = [path for path in folders["sdxl"].rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1


def test_a_model_that_finds_the_disk_full_leaves_nothing(tmp_path: Path, few_words: None) -> None:
    for size in (30_000, 700_000):  # within a tokenizer, and within the U-Net
        with (
            files_of_at_most(size),
            pytest.raises(DsdError, match=r"cannot write .*File too large"),
        ):
            write_random_model(tmp_path / "model", tiny(FAMILIES["sd15"]))
        assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine", "utf-8")
    with pytest.raises(InputError, match="not an empty folder"):
        write_random_model(tmp_path, tiny(FAMILIES["sd15"]))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("name", "weights"),
    # Parameters of the published U-Nets in millions, from their model cards and papers.
    [("sd15", 860), ("sd21-base", 866), ("sd21", 866), ("sdxl", 2567), ("sd-turbo", 866)],
)
def test_the_real_sizes_are_those_of_the_published_models(name: str, weights: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(FAMILIES[name]))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == weights


# What is none of them


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("unet", {"in_channels": 9}, "in_channels is 9, expected the VAE's latent_channels, 4"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep', expected N"),
        ("unet", {"cross_attention_dim": 40}, "cross_attention_dim is 40, expected the text"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
    ],
)
def test_a_field_that_is_not_as_expected_is_named(
    folders: dict[str, Path], tmp_path: Path, part: str, change: dict[str, Any], complaint: str
) -> None:
    folder = Path(shutil.copytree(folders["sd15"], tmp_path / "model"))
    (path,) = (folder / part).glob("*config.json")
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ModelError, match=complaint):
        read_checkpoint(folder)


def test_a_part_that_is_missing_or_broken_is_named(tmp_path: Path, few_words: None) -> None:
    folder = write_random_model(tmp_path / "model", tiny(FAMILIES["sdxl"]))
    (folder / "tokenizer_2").rename(folder / "elsewhere")
    with pytest.raises(ModelError, match="without tokenizer_2"):
        read_checkpoint(folder)
    (folder / "elsewhere").rename(folder / "tokenizer_2")
    read_checkpoint(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"cannot read .*unet"):
        read_checkpoint(folder)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    weights.write_text(pointer, "utf-8")
    with pytest.raises(ModelError, match=r"cannot read .*unet.*git lfs pull"):
        read_checkpoint(folder)
