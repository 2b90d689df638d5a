"""What parts' configs say: every field is known, followed as diffusers follows it, or refused."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.diffusion.declared import text_fields, unet_fields, vae_fields
from dsd_trt.train.diffusion.encoders import ImageEncoder
from dsd_trt.train.diffusion.families import FAMILIES, tiny, unet_config
from dsd_trt.train.diffusion.fields import TEXT_ENCODER, UNET, VAE, Fields, require_known
from dsd_trt.train.diffusion.kinds import ELSEWHERE
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextConfig}
FIELDS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
every_part = pytest.mark.parametrize("part", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, few_words: None) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("declared")
    return {
        name: write_random_model(root / name, tiny(FAMILIES[name]), seed=3)
        for name in ("sd15", "sdxl")
    }


def changed(folder: Path, to: Path, part: str, **fields: Any) -> Path:
    """A copy, its files linked, whose part says something else; `...` takes a field away."""
    shutil.copytree(folder, to, copy_function=os.link)
    (path,) = (to / part).glob("*config.json")
    config = {**json.loads(path.read_text("utf-8")), **fields}
    path.unlink()
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}), "utf-8")
    return to


def read_changed(folder: Path, to: Path, part: str, **fields: Any) -> Checkpoint:
    return read_checkpoint(changed(folder, to, part, **fields))


# Every field


@every_part
def test_every_field_of_the_library_s_class_is_known(part: str) -> None:
    names = set(inspect.signature(KINDS[part].__init__).parameters) - {"self", "kwargs"}
    if part == "text_encoder":
        names |= {name for name in CLIPTextConfig().to_dict() if not name.startswith("_")}
    assert names <= FIELDS[part].known


@every_part
def test_a_field_is_of_one_kind_alone_and_assumed_by_the_library_too(part: str) -> None:
    fields = FIELDS[part]
    kinds = (fields.read.keys(), fields.assumed.keys(), fields.without_effect.keys())
    assert sum(map(len, kinds)) == len(fields.known)
    for name, parameter in inspect.signature(KINDS[part].__init__).parameters.items():
        if name in fields.assumed:
            default = parameter.default
            each = default if isinstance(default, tuple) else [default]
            assert set(each) <= set(fields.assumed[name]), name


@pytest.mark.parametrize(
    ("part", "field"), [(part, field) for part in FIELDS for field in FIELDS[part].assumed]
)
def test_another_value_than_the_assumed_is_refused_by_name(part: str, field: str) -> None:
    read: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "unet": unet_fields,
        "vae": partial(vae_fields, with_pooled_text=False),
        "text_encoder": text_fields,
    }
    with pytest.raises(ValueError, match=f"^{field} is 'other', expected"):
        read[part]({field: "other"})


def test_a_field_nobody_knows_is_refused_unless_it_is_off() -> None:
    fields = Fields(read={"a": ELSEWHERE}, assumed={}, without_effect={"b": "no effect"})
    require_known({"a": 1, "b": 2, "_bookkeeping": 3, "later": None, "too": False}, fields)
    with pytest.raises(ValueError, match=r"later is 0\.5, an unknown field"):
        require_known({"a": 1, "later": 0.5}, fields)


@pytest.mark.parametrize(
    ("part", "field", "value", "complaint"),
    [
        (
            "unet",
            "block_out_channels",
            None,
            "block_out_channels is None, expected a list",
        ),
        ("unet", "norm_num_groups", 7, r"describes no \w+: "),
        ("unet", "norm_num_groups", -1, "norm_num_groups is -1, expected a whole number above"),
        ("unet", "norm_eps", float("inf"), "norm_eps is inf, expected a finite number above 0"),
        ("unet", "norm_eps", "x", "norm_eps is 'x', expected a finite number above 0"),
        ("unet", "norm_eps", None, "norm_eps is None, expected a finite number above 0"),
        ("unet", "flip_sin_to_cos", "x", "flip_sin_to_cos is 'x', expected true or false"),
        ("unet", "freq_shift", "x", "freq_shift is 'x', expected a finite number"),
        ("unet", "mid_block_scale_factor", 0, "mid_block_scale_factor is 0, expected a finite"),
        ("unet", "downsample_padding", [], r"downsample_padding is \[\], expected 1 or 0"),
        ("unet", "downsample_padding", 2, "downsample_padding is 2, expected 1 or 0"),
        ("unet", "attention_head_dim", -1, "attention_head_dim is -1, expected a whole number"),
        ("vae", "norm_num_groups", -1, "norm_num_groups is -1, expected a whole number above"),
        (
            "text_encoder",
            "layer_norm_eps",
            float("inf"),
            "layer_norm_eps is inf, expected a",
        ),
        ("text_encoder", "num_attention_heads", -1, "num_attention_heads is -1, expected a wh"),
        ("text_encoder", "eos_token_id", [1], r"eos_token_id is \[1\], expected a whole number"),
        ("unet", "act_fn", "nothing", r"describes no \w+: "),
        ("unet", "out_channels", 8, "out_channels is 8, expected the VAE's latent_channels, 4"),
        ("unet", "cross_attention_dim", [32, 32, 16, 32], "expected one width of all blocks"),
        ("unet", "quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config"),
        ("vae", "scaling_factor", None, "scaling_factor is None, expected a finite"),
        ("vae", "scaling_factor", float("nan"), "scaling_factor is nan"),
        ("vae", "shift_factor", 0.1, "shift_factor is 0.1, expected None or 0.0"),
        ("vae", "latents_mean", [0.1] * 4, "latents_mean is .* expected None"),
        ("vae", "latent_channels", 16, "in_channels is 4, expected the VAE's .*, 16"),
        ("text_encoder", "max_position_embeddings", 248, "is 248, expected 77"),
        ("text_encoder", "max_position_embeddings", 64, "is 64, expected 77"),
        ("text_encoder", "use_attention_mask", True, "use_attention_mask is True"),
        ("text_encoder", "hidden_act", "nothing", r"describes no \w+: "),
        ("tokenizer", "model_max_length", 248, "model_max_length is 248, expected 77"),
        ("tokenizer", "padding_side", "left", "padding_side is 'left', expected 'right'"),
        ("tokenizer", "truncation_side", "left", "truncation_side is 'left'"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, part: str, field: str, value: Any, complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        read_changed(folders["sd15"], tmp_path / "model", part, **{field: value})


# What is read


@pytest.mark.parametrize(
    "change",
    [
        {"flip_sin_to_cos": False, "freq_shift": 1},
        {"downsample_padding": 0, "conv_in_kernel": 1, "conv_out_kernel": 5},
        {"mid_block_scale_factor": 2, "norm_eps": 0.5, "norm_num_groups": 4},
        {"act_fn": "gelu", "time_embedding_dim": 24, "timestep_post_act": "mish"},
        {"use_linear_projection": True, "upcast_attention": True, "attention_head_dim": [1, 2]},
        {"layers_per_block": [1, 2], "cross_attention_dim": [16, 16]},
        {"transformer_layers_per_block": [2, 1]},
        {
            "transformer_layers_per_block": [[2], [1]],
            "reverse_transformer_layers_per_block": [[1, 1], [2, 1]],
        },
        {"only_cross_attention": [False, False], "mid_block_only_cross_attention": False},
        {"dropout": 0.5, "addition_embed_type_num_heads": 1, "decay": 0.9},
    ],
    ids=lambda change: ",".join(change),
)
@torch.no_grad()
def test_the_walk_follows_what_the_u_net_is_built_by(change: dict[str, Any]) -> None:
    config = {
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        **change,
    }
    fields = unet_fields(config)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(fields).eval()
    scoring = ScoringUNet(unet, noise_levels(torch.linspace(0.9, 0.1, 9), (4, 8, 8), (0.5,)))
    z, t, states = torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.randn(2, 7, 16)
    walk = scoring.cross_attentions(z, t, states)
    list(walk)
    expected = UNet2DConditionModel.from_config(config).eval()
    expected.load_state_dict(unet.state_dict())
    assert torch.allclose(walk.prediction, expected(z, t, states).sample, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "written"),
    [
        ("0.8.1", 32),
        ("0.6.0.dev0", 48),
        ("0.9.0.dev0", 32),
        ("0.9.0", 32),
        ("0.10.2", 32),
        ("0.8.0", 96),
    ],
)
def test_an_old_sample_size_is_corrected_as_diffusers_pipeline_corrects_it(
    folders: dict[str, Path], tmp_path: Path, version: str, written: int
) -> None:
    says = {"_diffusers_version": version, "sample_size": written}
    folder = changed(folders["sd15"], tmp_path / "model", "unet", **says)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(folder / "unet")
    unet.register_to_config(_diffusers_version=version)
    others = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor"))
    pipeline = StableDiffusionPipeline(
        unet=unet, safety_checker=None, requires_safety_checker=False, **others
    )
    expected = pipeline.unet.config["sample_size"]
    assert expected == (64 if version in ("0.8.1", "0.6.0.dev0") else written)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.latent_shape == (4, expected, expected)
    assert checkpoint.resolution == 8 * expected


def test_a_square_sample_size_may_be_written_as_two(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = read_changed(folders["sd15"], tmp_path / "model", "unet", sample_size=[16, 16])
    assert checkpoint.resolution == 128


@pytest.mark.parametrize("kind", [None, "text_time"])
@pytest.mark.parametrize("written", [None, [64, 96], [64], "64", 64.0, True, 0, -8, 62])
def test_a_sample_size_that_says_nothing_is_refused(kind: str | None, written: Any) -> None:
    config = json.loads(json.dumps(dict(unet_config(tiny(FAMILIES["sdxl" if kind else "sd15"])))))
    with pytest.raises(ValueError, match=r"^sample_size is .*, expected "):
        unet_fields({**config, "sample_size": written})
    with pytest.raises(ValueError, match=r"^sample_size is None"):
        unet_fields({name: value for name, value in config.items() if name != "sample_size"})


def test_what_a_config_does_not_say_is_the_library_s_default(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    without = {"scaling_factor": ..., "force_upcast": ...}
    checkpoint = read_changed(folders["sd15"], tmp_path / "a", "vae", **without)
    assert checkpoint.vae_config["scaling_factor"] == 0.18215
    assert not checkpoint.vae_overflows  # Stable Diffusion's pipeline never looks at it
    checkpoint = read_changed(folders["sdxl"], tmp_path / "b", "vae", **without)
    assert checkpoint.vae_overflows
    unet = {"in_channels": ..., "out_channels": ..., "flip_sin_to_cos": ..., "conv_in_kernel": ...}
    assert read_changed(folders["sd15"], tmp_path / "c", "unet", **unet).latent_shape[0] == 4


@torch.no_grad()
def test_latents_are_normalised_by_a_stable_diffusion_xl_s_means_and_deviations() -> None:
    mean, std = [0.5, -1.0, 0.25, 2.0], [2.0, 0.5, 4.0, 1.5]
    config = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
        "scaling_factor": 0.13,
        "latents_mean": mean,
        "latents_std": std,
    }
    vae = AutoencoderKL.from_config(vae_fields(config, with_pooled_text=True)).eval()
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    latent = ImageEncoder(vae)(pixels)
    # As the pipeline undoes it before it decodes.
    back = latent * torch.tensor(std).view(1, 4, 1, 1) / 0.13 + torch.tensor(mean).view(1, 4, 1, 1)
    images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(back, vae.encode(images).latent_dist.mean, atol=1e-5)
    assert ImageEncoder(vae.half())(pixels).dtype == torch.float16
    for wrong in ({"latents_std": None}, {"latents_mean": [0.1]}, {"latents_std": [1, 0, 1, 1]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            vae_fields({**config, **wrong}, with_pooled_text=True)


@pytest.mark.parametrize("eos", [2, "tokenizer"])
@torch.no_grad()
def test_the_pooled_text_is_taken_where_transformers_takes_it(
    folders: dict[str, Path], tmp_path: Path, eos: Any
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folders["sdxl"] / "tokenizer_2")
    eos_id = 2 if eos == 2 else tokenizer.eos_token_id
    says = {"eos_token_id": eos_id}
    folder = changed(folders["sdxl"], tmp_path / "model", "text_encoder_2", **says)
    texts = ["a red circle", "two dogs and a cat"]
    states, _ = encode_texts(read_checkpoint(folder), texts)
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    model = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").float()
    assert torch.allclose(states[:, 77, :32], model(ids).text_embeds, atol=1e-5)
    assert (states[0, 77] - states[1, 77]).abs().max() > 1e-3


@pytest.mark.parametrize("eos", [3, None, [2]])
def test_a_pooled_text_of_no_token_is_refused(
    folders: dict[str, Path], tmp_path: Path, eos: Any
) -> None:
    with pytest.raises(ModelError, match=r"text_encoder_2: eos_token_id is .*, expected "):
        read_changed(folders["sdxl"], tmp_path / "model", "text_encoder_2", eos_token_id=eos)
    text_fields({"eos_token_id": 3})  # of others nothing is pooled


def test_a_refiner_is_told_by_the_sizes_it_takes(folders: dict[str, Path], tmp_path: Path) -> None:
    five = {"projection_class_embeddings_input_dim": 5 * 8 + 32}
    with pytest.raises(ModelError, match=r"projection_class_embeddings_input_dim is 72, .* 80"):
        read_changed(folders["sdxl"], tmp_path / "model", "unet", **five)


def test_a_config_that_is_no_object_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["sd15"], tmp_path / "model", "vae")
    (folder / "vae" / "config.json").write_text("[1]", "utf-8")
    with pytest.raises(ModelError, match=r"config.json: it holds no JSON object"):
        read_checkpoint(folder)
