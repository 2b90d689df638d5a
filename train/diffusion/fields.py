"""Fields of the parts' configurations: each is read, checked, or without effect.

Any other field is refused by its name, because it may change results in an unknown way. Fields
that begin with "_" are the libraries' bookkeeping and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_trt.train.diffusion.families import TOKENS
from dsd_trt.train.diffusion.kinds import (
    COUNT,
    COUNT_LIST,
    COUNT_OR_NONE,
    COUNTS,
    COUNTS_OR_NONE,
    ELSEWHERE,
    FLAG,
    FLAG_OR_NONE,
    NAME,
    NAME_OR_NONE,
    NAMES,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    Kind,
)

_TRAINING = "for training alone"
_DECODER = "for the decoder alone, which is not used"
_SAVED_BY = "records how the part was saved"
_GENERATION = "for text generation; older versions of transformers saved it with every model"


@dataclass(frozen=True)
class Fields:
    """The known fields of a part's configuration.

    Attributes:
        read: kind of value of each field that decides how the part is built.
        assumed: supported values of each field that must not differ; the first is the library's
            default.
        without_effect: reason why each of these fields does not affect scores.
    """

    read: Mapping[str, Kind]
    assumed: Mapping[str, tuple[Any, ...]]
    without_effect: Mapping[str, str]

    @property
    def known(self) -> frozenset[str]:
        """Names of all known fields."""
        return frozenset((*self.read, *self.assumed, *self.without_effect))


UNET = Fields(
    read={
        "sample_size": ELSEWHERE,
        "in_channels": COUNT,
        "out_channels": COUNT,
        "flip_sin_to_cos": FLAG,
        "freq_shift": NUMBER,
        "block_out_channels": COUNT_LIST,
        "layers_per_block": COUNTS,
        "mid_block_scale_factor": POSITIVE,
        "act_fn": NAME,
        "norm_num_groups": COUNT,
        "norm_eps": POSITIVE,
        "cross_attention_dim": ELSEWHERE,
        "transformer_layers_per_block": COUNTS,
        "reverse_transformer_layers_per_block": COUNTS_OR_NONE,
        "attention_head_dim": COUNTS,
        "use_linear_projection": FLAG,
        "addition_time_embed_dim": COUNT_OR_NONE,
        "projection_class_embeddings_input_dim": COUNT_OR_NONE,
        "upcast_attention": FLAG_OR_NONE,
        "time_embedding_dim": COUNT_OR_NONE,
        "timestep_post_act": NAME_OR_NONE,
        "conv_in_kernel": COUNT,
        "conv_out_kernel": COUNT,
    },
    assumed={
        "downsample_padding": (1, 0),  # others give sizes that do not match the up blocks
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "num_class_embeds": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,),
        "center_input_sample": (False,),
        "dual_cross_attention": (False,),
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "quantization_config": (None,),
    },
    without_effect={
        "dropout": _TRAINING,
        "addition_embed_type_num_heads": 'for the addition_embed_type "text", which is refused',
        # Written by diffusers' EMAModel.
        **dict.fromkeys(
            (
                *("decay", "min_decay", "optimization_step", "update_after_step"),
                *("use_ema_warmup", "inv_gamma", "power"),
            ),
            _TRAINING,
        ),
    },
)

VAE = Fields(
    read={
        "down_block_types": NAMES,
        "block_out_channels": COUNT_LIST,
        "layers_per_block": COUNT,
        "act_fn": NAME,
        "latent_channels": COUNT,
        "norm_num_groups": COUNT,
        "scaling_factor": POSITIVE,
        "latents_mean": ELSEWHERE,
        "latents_std": ELSEWHERE,
        "force_upcast": FLAG_OR_NONE,
        "use_quant_conv": FLAG,
        "mid_block_add_attention": FLAG,
    },
    assumed={
        "in_channels": (3,),
        "shift_factor": (None, 0.0),
        "quantization_config": (None,),
    },
    without_effect={
        "out_channels": _DECODER,
        "up_block_types": _DECODER,
        "use_post_quant_conv": _DECODER,
        "sample_size": "for tiling, which is not used; the U-Net's configuration gives the size",
    },
)

TEXT_ENCODER = Fields(
    read={
        "vocab_size": COUNT,
        "hidden_size": COUNT,
        "intermediate_size": COUNT,
        "projection_dim": COUNT_OR_NONE,
        "num_hidden_layers": COUNT,
        "num_attention_heads": COUNT,
        "hidden_act": NAME,
        "layer_norm_eps": POSITIVE,
        "eos_token_id": NOT_NEGATIVE,
    },
    assumed={
        "max_position_embeddings": (TOKENS,),
        "use_attention_mask": (False, None),
        "return_dict": (True,),
        "torchscript": (False,),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({},),
        "quantization_config": (None,),
    },
    without_effect={
        "bos_token_id": "the tokenizer adds it; the text encoder does not use it",
        "pad_token_id": "the tokenizer's applies; the text encoder does not use it",
        "attention_dropout": _TRAINING,
        "dropout": _TRAINING,
        "initializer_factor": "weights are read, not initialised",
        "initializer_range": "weights are read, not initialised",
        "output_hidden_states": "requested explicitly where needed",
        "output_attentions": "never used",
        "is_encoder_decoder": "not used by CLIP",
        "chunk_size_feed_forward": "not used by CLIP",
        "tie_word_embeddings": "CLIP has no tied weights",
        "tie_encoder_decoder": "CLIP has no tied weights",
        **dict.fromkeys(
            ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version"),
            _SAVED_BY,
        ),
        **dict.fromkeys(("id2label", "label2id", "problem_type"), "for classifiers alone"),
        **dict.fromkeys(
            (
                *("bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size"),
                *("decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping"),
                *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
                *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id"),
                *("length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
                *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
                *("prefix", "remove_invalid_values", "repetition_penalty"),
                *("return_dict_in_generate", "sep_token_id", "suppress_tokens"),
                *("task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class"),
                *("top_k", "top_p", "typical_p", "use_bfloat16", "use_cache"),
            ),
            _GENERATION,
        ),
    },
)


def require_known(config: Mapping[str, Any], fields: Fields) -> None:
    """Refuse unknown fields and unsupported values.

    Args:
        config: configuration of a part.
        fields: known fields of that part.

    Raises:
        ValueError: a field is unknown or has an unsupported value.
    """
    require_assumed(config, fields.assumed)
    for field, kind in fields.read.items():
        if field in config and not kind.fits(config[field]):
            raise ValueError(f"{field} is {config[field]!r}, expected {kind.expected}")
    for field, value in config.items():
        off = value is None or value is False  # a newer field that is switched off
        if field not in fields.known and not field.startswith("_") and not off:
            raise ValueError(
                f"{field} is {value!r}, an unknown field: remove it from the config if the part's "
                "output does not depend on it"
            )


def require_assumed(config: Mapping[str, Any], assumed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse unsupported values of fields; each element of a list (one per block) is checked.

    Args:
        config: configuration of a part.
        assumed: supported values by field; a missing field has the first of them.

    Raises:
        ValueError: a field has an unsupported value; the message gives the supported ones.
    """
    for field, allowed in assumed.items():
        value = config.get(field, allowed[0])
        values = value if isinstance(value, (list, tuple)) and value else [value]
        if any(one not in allowed for one in values):
            raise ValueError(unexpected(field, value, allowed))


def unexpected(field: str, value: Any, allowed: Sequence[Any]) -> str:
    """Message about a field's unsupported value."""
    return f"{field} is {value!r}, expected {' or '.join(map(repr, allowed))}"
