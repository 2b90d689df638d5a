"""What a single file says of itself beside its weights: believed, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from torch import Tensor
from transformers import CLIPTextModel

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.diffusion.single_file import SingleFile
from dsd_trt.train.diffusion.skeleton import build_scheduler

FIRST = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
WIDTHS = {"sd15": 768, "sd21-base": 1024, "sd21": 1024, "sd-turbo": 1024, "sdxl": 2048}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = (1 - BETAS).cumprod(0)
SIGMAS = ((1 - ABAR) / ABAR).sqrt()


def rescaled() -> Tensor:
    """The schedule ending without signal."""
    root = ABAR.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def file(
    folder: Path,
    width: int,
    tensors: dict[str, Tensor] | None = None,
    **metadata: str,
) -> Path:
    """A file of one weight, whose texts are `width` wide; several families may be."""
    path = folder / "model.safetensors"
    said = {
        field if field.startswith("ss_") else f"modelspec.{field}": value
        for field, value in metadata.items()
    }
    save_file({FIRST: torch.zeros(4, width), **(tensors or {})}, path, said or None)
    return path


def markers(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(0) for name in names}


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "at_800"),
    [
        ({}, {}, "epsilon", 0.0369),
        (markers("v_pred"), {}, "v_prediction", 0.0369),
        (markers("v_pred", "ztsnr"), {}, "v_prediction", 0.0176),
        (markers("ztsnr"), {"prediction_type": "v"}, "v_prediction", 0.0176),
        ({}, {"prediction_type": "v"}, "v_prediction", 0.0369),
        ({}, {"predict_key": "v"}, "v_prediction", 0.0369),
        ({}, {"ss_v_parameterization": "True"}, "v_prediction", 0.0369),
        ({}, {"ss_zero_terminal_snr": "True", "prediction_type": "v"}, "v_prediction", 0.0176),
        ({}, {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None"}, "epsilon", 0.0369),
        ({}, {"timestep_range": "0,999"}, "epsilon", 0.0369),
        ({}, {"prediction_type": "epsilon", "predict_key": "epsilon"}, "epsilon", 0.0369),
        ({"alphas_cumprod": ABAR}, {}, "epsilon", 0.0369),
        ({"alphas_cumprod": rescaled().half()}, {}, "epsilon", 0.0176),
        ({"alphas_cumprod": torch.zeros(1000)}, {}, "epsilon", 0.0369),  # a buffer never filled
        ({"alphas_cumprod": ABAR, **markers("v_pred", "ztsnr")}, {}, "v_prediction", 0.0176),
        ({"denoiser.sigmas": SIGMAS.float()}, {}, "epsilon", 0.0369),
        ({"denoiser.sigmas": SIGMAS.flip(0)}, {}, "epsilon", 0.0369),
    ],
)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_prediction_and_schedule_are_as_the_file_says(
    tmp_path: Path,
    family: str,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    prediction: str,
    at_800: float,
) -> None:
    path = file(tmp_path, WIDTHS[family], tensors, **metadata)
    scheduler = SingleFile(path, family).scheduler()
    assert scheduler.config["prediction_type"] == prediction
    assert round(float(scheduler.alphas_cumprod[800]), 4) == at_800


@pytest.mark.parametrize(
    ("tensors", "metadata", "complaint"),
    [
        (markers("edm_mean", "edm_std"), {}, "the tensor 'edm_mean', which says .* EDM"),
        (markers("edm_vpred.sigma_max", "v_pred"), {}, r"the tensor 'edm_vpred.sigma_max'"),
        (markers("v_pred"), {"prediction_type": "epsilon"}, "it contradicts itself: .*v_pred"),
        ({}, {"prediction_type": "v", "predict_key": "epsilon"}, "it contradicts itself"),
        ({}, {"prediction_type": "sample"}, "prediction_type is 'sample', expected 'epsilon'"),
        ({"alphas_cumprod": ABAR * 0.7}, {}, r"its noise schedule \(alphas_cumprod or"),
        ({"alphas_cumprod": ABAR[:500]}, {}, "its noise schedule"),
        ({"denoiser.sigmas": SIGMAS * 2}, {}, "its noise schedule"),
        ({}, {"architecture": "stable-diffusion-v1"}, "says that it is sd15 .*2048 wide"),
        ({}, {"architecture": "stable-diffusion-xl-v1-base/lora"}, "architecture is 'stable"),
        ({}, {"architecture": "stable-diffusion-xl-v1-refiner"}, "architecture is 'stable"),
        ({}, {"architecture": "flux-1-dev"}, "architecture is 'flux-1-dev', expected a text-to"),
        ({}, {"resolution": "832x1216"}, "resolution is '832x1216', expected a square such"),
        ({}, {"resolution": "large"}, "resolution is 'large'"),
        ({}, {"resolution": "1000x1000"}, "resolution is '1000x1000', expected a multiple"),
        ({}, {"resolution": "0x0"}, "resolution is '0x0'"),
        ({}, {"encoder_layer": "1"}, "encoder_layer is '1', expected '2'"),
        ({}, {"timestep_range": "0,500"}, "timestep_range is '0,500', expected '0,999'"),
        ({}, {"ss_v_parameterization": "yes"}, "ss_v_parameterization is 'yes', expected"),
        ({}, {"ss_v_parameterization": "True", "prediction_type": "epsilon"}, "it contradicts"),
        (markers("V_PRED"), {}, "it holds the empty tensor 'V_PRED', whose meaning is unknown"),
        (markers("zsnr", "v_pred"), {}, "it holds the empty tensor 'zsnr'"),
        (markers("alphas_cumprod"), {}, "it holds the empty tensor 'alphas_cumprod'"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ModelError, match=rf"model\.safetensors.*{complaint}"):
        SingleFile(file(tmp_path, WIDTHS["sdxl"], tensors, **metadata), "sdxl")


@pytest.mark.parametrize(
    ("architecture", "name", "family"),
    [
        ("stable-diffusion-v1", None, "sd15"),
        ("stable-diffusion-xl-v1-base", None, "sdxl"),
        ("stable-diffusion-v2-768-v", None, "sd21"),
        ("stable-diffusion-v2-512", "sd-turbo", "sd-turbo"),
        ("stable-diffusion-v2-512", "sd21-base", "sd21-base"),
    ],
)
def test_an_architecture_tells_the_family(
    tmp_path: Path, architecture: str, name: str | None, family: str
) -> None:
    path = file(tmp_path, WIDTHS[family], architecture=architecture)
    assert SingleFile(path, name).family is FAMILIES[family]


def test_a_family_the_file_is_not_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, 1024, architecture="stable-diffusion-v2-768-v")
    with pytest.raises(ModelError, match="is no sd-turbo: it says that it is sd21 "):
        SingleFile(path, "sd-turbo")


def test_a_file_that_names_an_architecture_is_of_its_families_alone(tmp_path: Path) -> None:
    path = file(tmp_path, 1024, architecture="stable-diffusion-v2-512")
    with pytest.raises(
        ModelError,
        match=r"can be sd21-base or sd-turbo, whose .*as in model\.safetensors@sd21-base$",
    ):
        SingleFile(path)


@pytest.mark.parametrize("written", ["768x768", "768", "768, 768"])
def test_pictures_are_of_the_resolution_the_file_says(tmp_path: Path, written: str) -> None:
    path = file(tmp_path, WIDTHS["sd15"], resolution=written)
    assert SingleFile(path, "sd15").config("unet")["sample_size"] == 96


@pytest.fixture
def tiny_families(monkeypatch: pytest.MonkeyPatch, few_words: None) -> None:
    few = {name: tiny(family) for name, family in FAMILIES.items()}
    monkeypatch.setattr("dsd_trt.train.diffusion.single_file.FAMILIES", few)


@pytest.mark.parametrize("layer", ["1", "2"])
@torch.no_grad()
def test_texts_are_the_states_of_the_layer_the_file_names(
    tmp_path: Path, layer: str, tiny_families: Any
) -> None:
    folder = write_random_model(tmp_path / "folder", tiny(FAMILIES["sd15"]))
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    said = {"modelspec.encoder_layer": layer}
    path = write_single_file(folder, tmp_path / "model.safetensors", metadata=said)
    checkpoint = read_checkpoint(f"{path}@sd15")
    texts = ["a red circle", "two dogs"]
    states, _ = encode_texts(checkpoint, texts)
    # As diffusers' pipelines do with clip_skip.
    ids = checkpoint.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    model = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    hidden = model(ids, output_hidden_states=True).hidden_states[-int(layer)]
    norm = getattr(model, "text_model", model).final_layer_norm
    assert torch.allclose(states, norm(hidden), atol=1e-5)


def test_a_file_with_markers_is_read_as_the_folder_it_stands_for(
    tmp_path: Path, tiny_families: Any
) -> None:
    folder = write_random_model(tmp_path / "folder", tiny(FAMILIES["sdxl"]))
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    path = write_single_file(folder, tmp_path / "xl.safetensors", markers=("v_pred", "ztsnr"))
    scheduler = build_scheduler(FAMILIES["sdxl"])
    scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler.save_pretrained(folder / "scheduler")
    one, other = read_checkpoint(f"{path}@sdxl"), read_checkpoint(folder)
    assert one.prediction == other.prediction == "v_prediction"
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod)
    assert load_file(path)["v_pred"].shape == (0,)
