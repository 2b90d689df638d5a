"""Checkpoints in one file: every weight at its place, families told apart, the rest refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import write_single_file

from dsd_trt import Scorer
from dsd_trt.errors import ModelError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny, unet_config
from dsd_trt.train.diffusion.folder import ModelFolder
from dsd_trt.train.diffusion.place import count_cross_attention, find_place
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.diffusion.single_file import SingleFile
from dsd_trt.train.diffusion.source import find_model
from dsd_trt.train.scoring.layers import cross_attention_names

FIRST = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family a few channels wide."""
    few = {name: tiny(family) for name, family in FAMILIES.items()}
    monkeypatch.setattr("dsd_trt.train.diffusion.single_file.FAMILIES", few)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, few_words: None) -> Path:
    """A folder and a file of each family, with random weights."""
    root = tmp_path_factory.mktemp("single")
    for name, family in FAMILIES.items():
        folder = write_random_model(root / name, tiny(family), seed=2)
        write_single_file(folder, root / f"{name}.safetensors")
    shutil.copytree(root / "sd15" / "tokenizer", root / "tokenizer")
    return root


@every_family
def test_every_weight_is_that_of_the_folder(root: Path, name: str, tiny_families: None) -> None:
    file, folder = SingleFile(root / f"{name}.safetensors", name), ModelFolder(root / name)
    encoders = ["text_encoder", *(["text_encoder_2"] if len(FAMILIES[name].text) == 2 else [])]
    for part in ("unet", "vae", *encoders):
        ours = file.read(part, torch.float16).state_dict()
        expected = folder.read(part, torch.float16).state_dict()
        assert ours.keys() == expected.keys()
        for key in expected:
            assert torch.equal(ours[key], expected[key]), (part, key)
    assert file.has("text_encoder_2") == (len(FAMILIES[name].text) == 2)
    assert torch.equal(file.scheduler().alphas_cumprod, folder.scheduler().alphas_cumprod)
    assert file.scheduler().config["prediction_type"] == FAMILIES[name].prediction


@every_family
def test_texts_and_pictures_are_encoded_as_by_the_folder(
    root: Path, name: str, tiny_families: None
) -> None:
    file = read_checkpoint(f"{root / name}.safetensors@{name}")
    folder = read_checkpoint(root / name)
    texts = ["a red circle", "ZEBRA 42!", ""]
    for checkpoint in (file, folder):
        assert checkpoint.resolution == 64
    ids = [
        c.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for c in (file, folder)
    ]
    assert torch.equal(*ids)
    with torch.no_grad():
        states = [c.text_encoder(ids[0]) for c in (file, folder)]
        pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
        latents = [c.image_encoder(pixels) for c in (file, folder)]
    assert torch.equal(*states)
    assert torch.equal(*latents)


@pytest.mark.slow  # exports
def test_a_file_is_exported_and_scores_as_its_folder(
    root: Path, tmp_path: Path, tiny_families: None
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scores = []
    for i, model in enumerate((f"{root}/sd21.safetensors@sd21", str(root / "sd21"))):
        settings = ExportSettings(model, levels=(0.4,), verify="quick")
        bundle, _ = export_bundle(settings, tmp_path / str(i))
        scores.append(Scorer(bundle).score([image], ["a dog", "two cats"]).scores)
    np.testing.assert_array_equal(scores[0], scores[1])
    provenance = json.loads((tmp_path / "0" / "bundle.json").read_text("utf-8"))["provenance"]
    assert provenance["base_model"] == "sd21"
    assert provenance["weight_hashes"].keys() == {"sd21.safetensors"}


# Families


def file_of_width(path: Path, width: int) -> Path:
    save_file({FIRST: torch.zeros(4, width)}, path)
    return path


@pytest.mark.parametrize(("width", "family"), [(768, "sd15"), (2048, "sdxl")])
def test_a_family_is_told_by_the_width_of_its_texts(
    tmp_path: Path, width: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {family: FAMILIES[family], "sd21": FAMILIES["sd21"]}  # others may be as wide
    monkeypatch.setattr("dsd_trt.train.diffusion.single_file.FAMILIES", only)
    found = find_model(file_of_width(tmp_path / "model.safetensors", width))
    assert isinstance(found.parts, SingleFile)
    assert found.parts.family is FAMILIES[family]
    assert unet_config(found.parts.family)["cross_attention_dim"] == width
    assert (found.name, found.revision) == ("model", None)


@every_family
def test_cross_attention_is_counted_without_opening_a_model(root: Path, name: str) -> None:
    """Against diffusers' modules, in the folder and in the single file."""
    folder = read_checkpoint(root / name)
    expected = len(cross_attention_names(folder.empty_unet()))
    for place in (root / name, root / f"{name}.safetensors"):
        assert count_cross_attention(find_place(place)) == expected


def test_what_tensors_do_not_tell_has_to_be_said(tmp_path: Path) -> None:
    path = file_of_width(tmp_path / "model.safetensors", 1024)
    with pytest.raises(ModelError, match=r"sd21-base or sd21 or sd-turbo.*model.safetensors@sd21"):
        find_model(path)
    found = find_model(f"{path}@sd21")
    assert isinstance(found.parts, SingleFile)
    assert found.parts.family is FAMILIES["sd21"]


@pytest.mark.parametrize(
    ("width", "suffix", "message"),
    [
        (768, "@sdxl", "is no sdxl: its text states are 768 wide, as those of sd15"),
        (1024, "@sd3", "is no sd3: its text states are 1024 wide, as those of sd21-base or"),
        (1280, "", "of no known family: its text states are 1280 wide"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(
    tmp_path: Path, width: int, suffix: str, message: str
) -> None:
    path = file_of_width(tmp_path / "model.safetensors", width)
    with pytest.raises(ModelError, match=message):
        find_model(f"{path}{suffix}")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down.alpha": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match="is not a Stable Diffusion checkpoint in a single file"):
        find_model(other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(other.read_bytes()[:20])
    with pytest.raises(ModelError, match=r"cannot read .*broken"):
        find_model(broken)
    with pytest.raises(ModelError, match=r"no model .*nowhere"):
        find_model(str(tmp_path / "nowhere.safetensors"))


def test_a_weight_that_is_missing_is_named(root: Path, tmp_path: Path, tiny_families: None) -> None:
    tensors = load_file(root / "sd15.safetensors")
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "sd15.safetensors")
    with pytest.raises(
        ModelError, match=r"read as Stable Diffusion 1.4 and 1.5: unet lacks conv_out.bias"
    ):
        SingleFile(tmp_path / "sd15.safetensors", "sd15").read("unet", torch.float32)


def test_an_inpainting_model_is_refused_by_the_tensor_that_differs(
    root: Path, tmp_path: Path, tiny_families: None
) -> None:
    tensors = load_file(root / "sd15.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = torch.zeros(tensors[name].shape[0], 9, 3, 3)
    save_file(tensors, tmp_path / "inpainting.safetensors")
    with pytest.raises(ModelError, match=r"conv_in.weight"):
        SingleFile(tmp_path / "inpainting.safetensors", "sd15").read("unet", torch.float32)


def test_without_clips_tokenizer_it_is_said_where_it_is_looked_for(
    root: Path, tmp_path: Path, tiny_families: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copy(root / "sd15.safetensors", tmp_path)
    with pytest.raises(ModelError, match=r"put CLIP's into .*tokenizer.*openai/clip-vit-large"):
        read_checkpoint(f"{tmp_path / 'sd15.safetensors'}@sd15")
