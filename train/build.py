"""Construction of the scoring U-Net from a checkpoint and an adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel

from dsd_trt.bundle.method import ScoreKind
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.diffusion.weights import check_names
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import (
    DEFAULT_LEVELS,
    PromptConfig,
    require_score,
    select_layers,
)
from dsd_trt.train.scoring.layers import (
    cross_attention_names,
    inner_widths,
    last_of_each_stage,
    text_width,
)
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.pooling import Pooling
from dsd_trt.train.scoring.prompts import AttentionPrompts
from dsd_trt.train.scoring.relations import Relations
from dsd_trt.train.scoring.scoring_unet import ScoringUNet
from dsd_trt.train.scoring.token_heads import TokenHeads


def build_scoring_unet(
    checkpoint: Checkpoint,
    adapter: Adapter | None = None,
    *,
    score_layers: str | Sequence[int] = "all",
    levels: tuple[float, ...] | None = None,
    noise_seed: int = 0,
    pooling: Pooling = "lse",
    lam: float = 20.0,
    score: ScoreKind | None = None,
    unet: UNet2DConditionModel | None = None,
) -> ScoringUNet:
    """Build the scoring U-Net of a checkpoint, with an adapter or without.

    Args:
        checkpoint: base model, whose weights may not be read yet.
        adapter: few-shot adapter; None builds the zero-shot score.
        score_layers: selection of the cross-attention layers that are scored, see `select_layers`.
        levels: noise levels s, each in (0, 1); None is the adapter's, or 0.2, 0.4, 0.6, 0.8.
        noise_seed: random seed of the fixed noise tensors.
        pooling: pooling over image tokens, see `ScoringUNet`; "released" always uses "logits".
        lam: sharpness lambda of LogSumExp pooling.
        score: kind of score; None is the adapter's, or "attention" without an adapter.
            "released" scores the last cross-attention layer of each block.
        unet: the checkpoint's U-Net as read by the caller, on the CPU or on the meta device; an
            adapter's low-rank updates are merged into it in place. None takes the checkpoint's
            cached one.

    Raises:
        ModelError: the adapter was trained on other weights, for another score, or with head
            weights for other layers.
        ValueError: a layer or a noise level does not exist.
    """
    score = score or (adapter.score if adapter else "attention")
    levels = levels or (adapter.levels if adapter else ()) or DEFAULT_LEVELS
    prompts, given = None, unet is not None
    if unet is not None:  # before the weights are hashed
        select_layers(score_layers, len(cross_attention_names(unet)))
    if adapter is not None:
        adapter.require_base(checkpoint.weight_hashes)
        require_score(adapter.score, score, "name an adapter that was trained for it")
        if adapter.merged:
            unet = unet or checkpoint.read_unet()
            adapter.merge_into(unet)
        if adapter.prompt_config is not None:
            prompts = build_prompts(unet or checkpoint.unet, adapter, adapter.prompt_config)
    unet = unet or checkpoint.unet
    if score == "released":
        if score_layers != "all":
            raise ValueError('the score "released" has layers of its own: omit --score-layers')
        pooling, score_layers = "logits", last_of_each_stage(unet)
    scoring = ScoringUNet(
        unet,
        noise_levels(checkpoint.alphas_cumprod, checkpoint.latent_shape, levels, noise_seed),
        score_layers=score_layers,
        pooling=pooling,
        lam=lam,
        prompts=prompts,
        dynamic_heads=adapter is not None and adapter.head_mode == "dynamic",
        denoising=score != "attention",
        prediction=checkpoint.prediction,
        resolution=checkpoint.resolution,
    )
    if score == "released":
        each = [torch.full((heads,), 1 / heads) for heads in scoring.heads]
        scoring.head_weights.copy_(torch.cat(each) / len(each))  # every layer counts the same
    elif adapter is not None:
        weights = adapter.weights_of(scoring.score_layers, scoring.heads)
        scoring.head_weights.copy_(torch.cat(weights))
    if not given:  # tensors on the meta device cannot be moved
        scoring.to(checkpoint.device)
    return scoring.eval()


def build_token_heads(scoring: ScoringUNet, adapter: Adapter | None) -> TokenHeads | None:
    """The adapter's token heads; None if it has none, or if not all layers are scored.

    Raises:
        ModelError: they are of another model.
    """
    if adapter is None or not adapter.token_heads or not _every_layer(scoring):
        return None
    heads = TokenHeads.of(adapter.token_heads, sum(scoring.heads), text_width(scoring.unet))
    return heads.to(scoring.head_weights.device)


def build_relations(scoring: ScoringUNet, adapter: Adapter | None) -> Relations | None:
    """The adapter's relations; None if it has none, or if not all layers are scored.

    Raises:
        ModelError: they are of another model.
    """
    if adapter is None or not adapter.relations or not _every_layer(scoring):
        return None
    relations = Relations.of(adapter.relations, scoring.heads[0], text_width(scoring.unet))
    return relations.to(scoring.head_weights.device)


def _every_layer(scoring: ScoringUNet) -> bool:
    return len(scoring.score_layers) == len(scoring.layer_names)


def build_prompts(
    unet: UNet2DConditionModel, adapter: Adapter, config: PromptConfig
) -> AttentionPrompts:
    """The adapter's prompts for a U-Net, with their learned parameters, frozen.

    Args:
        unet: U-Net of the base model, for the sizes of its key and value matrices.
        adapter: adapter with the prompts' parameters.
        config: sizes of the prompts.

    Raises:
        ModelError: the adapter's prompts have other names or sizes than this U-Net's.
    """
    prompts = AttentionPrompts(inner_widths(unet), text_width(unet), config)
    check_names(prompts, adapter.prompt_state, "the adapter", "set of prompts")
    prompts.load_state_dict(adapter.prompt_state)
    return prompts.requires_grad_(False)
