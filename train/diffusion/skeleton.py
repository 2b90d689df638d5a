"""The parts of a family as modules without weights."""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dsd_trt.train.diffusion.families import Family, text_config, unet_config, vae_config

_TOWERS = {"text_encoder": 0, "text_encoder_2": 1}


def build_part(family: Family, part: str, tokenizer: CLIPTokenizer | None = None) -> Any:
    """A part's module with parameters on the meta device, which take no memory.

    Args:
        family: family of Stable Diffusion.
        part: name of the part: "unet", "vae", "text_encoder" or "text_encoder_2".
        tokenizer: tokenizer of a text encoder; None for the other parts.
    """
    with init_empty_weights(include_buffers=False):
        if part == "unet":
            return UNet2DConditionModel(**unet_config(family))
        if part == "vae":
            return AutoencoderKL(**vae_config(family))
        assert tokenizer is not None
        tower = family.text[_TOWERS[part]]
        config = CLIPTextConfig(
            **text_config(tower),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return (CLIPTextModelWithProjection if tower.projection else CLIPTextModel)(config)


def build_scheduler(family: Family) -> DDPMScheduler:
    """A family's noise schedule; families differ in its end and in the prediction type."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=family.prediction,
        rescale_betas_zero_snr=family.zero_snr,
        clip_sample=False,
        steps_offset=1,
    )
