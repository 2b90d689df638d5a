"""Families of Stable Diffusion checkpoints and their differences.

Sizes are those of the published `config.json` files. What is not listed here is the same in all
families, see `unet_config`, `vae_config` and `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Prediction = Literal["epsilon", "v_prediction"]
TOKENS = 77  # length of a padded text in all families
LEGACY_EOS = 2  # eos_token_id of older configs, which transformers reads as "the highest id"
VOCABULARY = 49_408  # tokens of CLIP's tokenizer


@dataclass(frozen=True)
class TextTower:
    """Sizes of one CLIP text encoder.

    Attributes:
        width: number of features of a text state.
        layers: number of transformer layers.
        heads: number of attention heads per layer.
        activation: activation function of the MLPs, by its name in transformers.
        projection: width of the pooled text; None if the U-Net does not use it.
        pad: token that texts are padded with.
    """

    width: int
    layers: int
    heads: int
    activation: str
    projection: int | None = None
    pad: str = "!"


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        about: names of the checkpoints in the family.
        resolution: side of the training images, in pixels.
        prediction: training target of the U-Net.
        text: sizes of each text encoder.
        unet: fields of the U-Net's configuration that differ between families.
        encoder_layer: layer of the text encoders whose output is r_y, counted from the last as 1.
        zero_snr: whether the noise schedule is rescaled to end without signal.
        scaling_factor: factor from the VAE's posterior mean to the latent z.
        force_upcast: whether the VAE overflows in FP16 and has to stay in FP32.
        vae_channels: number of channels of each VAE block, from the image inwards.
    """

    about: str
    resolution: int
    prediction: Prediction
    text: tuple[TextTower, ...]
    unet: Mapping[str, Any]
    encoder_layer: int = 1
    zero_snr: bool = False
    scaling_factor: float = 0.18215
    force_upcast: bool = False
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)


_CLIP_L = TextTower(width=768, layers=12, heads=12, activation="quick_gelu", pad="<|endoftext|>")
# Its last layer is unused, and is missing from published checkpoints.
_CLIP_H = TextTower(width=1024, layers=23, heads=16, activation="gelu")
_CLIP_G = TextTower(width=1280, layers=32, heads=20, activation="gelu", projection=1280)
_SD1 = {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
_SD2 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

FAMILIES: Mapping[str, Family] = {
    "sd15": Family("Stable Diffusion 1.4 and 1.5", 512, "epsilon", (_CLIP_L,), _SD1),
    "sd21-base": Family(
        "Stable Diffusion 2.0 and 2.1 base", 512, "epsilon", (_CLIP_H,), _SD2, encoder_layer=2
    ),
    "sd21": Family(
        "Stable Diffusion 2.0 and 2.1",
        768,
        "v_prediction",
        (_CLIP_H,),
        {**_SD2, "upcast_attention": True},
        encoder_layer=2,
    ),
    "sdxl": Family(
        "Stable Diffusion XL base",
        1024,
        "epsilon",
        (_CLIP_L, _CLIP_G),
        _SDXL,
        encoder_layer=2,
        scaling_factor=0.13025,
        force_upcast=True,
    ),
    "sd-turbo": Family("SD-Turbo", 512, "epsilon", (_CLIP_H,), _SD2, encoder_layer=2),
}


def unet_config(family: Family) -> dict[str, Any]:
    """Arguments of diffusers' `UNet2DConditionModel`."""
    return {
        "sample_size": family.resolution // 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "use_linear_projection": True,
        **family.unet,
    }


def vae_config(family: Family) -> dict[str, Any]:
    """Arguments of diffusers' `AutoencoderKL`."""
    return {
        "sample_size": family.resolution,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": family.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": family.scaling_factor,
        "force_upcast": family.force_upcast,
    }


def text_config(tower: TextTower) -> dict[str, Any]:
    """Arguments of transformers' `CLIPTextConfig`, without the ids of special tokens."""
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": TOKENS,
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "projection_dim": tower.projection or 512,
    }


def tiny(family: Family) -> Family:
    """A family with the same layers and a few channels each, for tests."""
    blocks = len(unet_config(family)["block_out_channels"])
    text = tuple(
        replace(tower, width=32, layers=2, heads=2, projection=tower.projection and 32)
        for tower in family.text
    )
    unet = {
        **family.unet,
        "block_out_channels": tuple(32 * min(2**i, 2) for i in range(blocks)),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": sum(tower.width for tower in text),
        "attention_head_dim": 2
        if isinstance(family.unet["attention_head_dim"], int)
        else tuple(min(2**i, 4) for i in range(blocks)),
    }
    if "transformer_layers_per_block" in unet:
        unet["transformer_layers_per_block"] = (1, 1, 2)
    if "addition_time_embed_dim" in unet:  # embeddings of six sizes, then the pooled text
        unet["addition_time_embed_dim"] = 8
        unet["projection_class_embeddings_input_dim"] = 6 * 8 + 32
    return replace(family, resolution=64, text=text, unet=unet, vae_channels=(32, 32, 64, 64))
