"""Pooling: from a cross-attention map to one number per head and text token (Eq. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.bundle.contract import LARGEST_LAMBDA

Pooling = Literal["lse", "max", "cosine", "logits"]


@dataclass(frozen=True)
class CrossAttention:
    """Inputs and attention maps of one cross-attention layer in one forward pass.

    Attributes:
        layer: index among the U-Net's cross-attention layers, in order of execution.
        image_states: r_x, normalised input of the query projection, (batch, image_tokens, C).
        text_states: r_y, output of the text encoder, (batch, text_tokens, D).
        logits: Q K^T / sqrt(d), FP32 (batch, heads, image_tokens, text_tokens).
        attention: A, softmax of `logits` over text tokens, same shape.
    """

    layer: int
    image_states: Tensor
    text_states: Tensor
    logits: Tensor
    attention: Tensor


def logsumexp_pool(attention: Tensor, lam: float, dim: int = 2) -> Tensor:
    """Pool cross-attention over image tokens with LogSumExp (Eq. 3).

    Args:
        attention: A, FP32 in [0, 1], (batch, heads, image_tokens, ..., text_tokens).
        lam: sharpness lambda, above 0; the pooled value tends to the mean as it approaches 0 and
            to the maximum as it grows.
        dim: axis of the image tokens.

    Returns:
        S in [0, 1], (batch, heads, ..., text_tokens). log(image_tokens) is subtracted from the
        LogSumExp, so that layers of different resolution can be averaged (Eq. 4).
    """
    scaled = lam * attention
    # A is at most 1, so exp cannot overflow and the maximum need not be subtracted first.
    if lam <= LARGEST_LAMBDA:
        return scaled.exp().mean(dim=dim).log() / lam  # (batch, heads, ..., text_tokens)
    return (torch.logsumexp(scaled, dim=dim) - math.log(attention.shape[dim])) / lam


def attribution(attention: Tensor, lam: float) -> Tensor:
    """Attribution of each head to each token's pooled score (Eq. 7), in closed form.

    Eq. 7 multiplies a head's map by the gradient of the score with respect to that map. Through
    the pooling alone the gradient is dS_j / dA_ij = softmax_i(lambda A_ij). An exported graph
    computes it without a backward pass.

    Args:
        attention: A, FP32 (batch, heads, image_tokens, text_tokens).
        lam: sharpness lambda of the pooling, above 0.

    Returns:
        sum_i A_ij dS_j / dA_ij, in [0, 1], (batch, heads, text_tokens).
    """
    return (attention * (lam * attention).softmax(dim=2)).sum(dim=2)


def max_pool(attention: Tensor) -> Tensor:
    """Maximum over image tokens; shapes as in `logsumexp_pool`."""
    return attention.amax(dim=2)


def cosine_pool(image_states: Tensor, text_states: Tensor) -> Tensor:
    """Cosine similarity of image and text features, the paper's first baseline (section 5.4).

    Image and text features differ in width, so only their shared leading dimensions are compared.

    Args:
        image_states: r_x, (batch, image_tokens, C).
        text_states: r_y, (batch, text_tokens, D).

    Returns:
        Mean similarity over image tokens, rescaled from [-1, 1] to [0, 1],
        (batch, 1, text_tokens).
    """
    shared = min(image_states.shape[-1], text_states.shape[-1])
    image = F.normalize(image_states[..., :shared].float(), dim=-1)
    text = F.normalize(text_states[..., :shared].float(), dim=-1)
    similarity = image @ text.transpose(1, 2)  # (batch, image_tokens, text_tokens)
    return (1 + similarity.mean(dim=1, keepdim=True)) / 2


def logits_pool(logits: Tensor) -> Tensor:
    """Pooling of the released research code: LogSumExp of the raw logits over text tokens.

    The LogSumExp over all text tokens is averaged over image tokens. The result describes the
    text as a whole and is repeated for every token.

    Args:
        logits: Q K^T / sqrt(d), (batch, heads, image_tokens, text_tokens).

    Returns:
        Unbounded score, equal for all tokens of a text, (batch, heads, text_tokens).
    """
    whole = torch.logsumexp(logits, dim=3).mean(dim=2, keepdim=True)  # (batch, heads, 1)
    return whole.expand(-1, -1, logits.shape[3])


def pool(seen: CrossAttention, pooling: Pooling, lam: float) -> Tensor:
    """Pool one layer over its image tokens.

    Args:
        seen: inputs and attention maps of the layer.
        pooling: kind of pooling: "lse" (Eq. 3), "max", "cosine" or "logits".
        lam: sharpness lambda, which only "lse" uses.

    Returns:
        One number per head and token, FP32 (batch, heads, text_tokens); "cosine" has one head.
    """
    if pooling == "lse":
        return logsumexp_pool(seen.attention, lam)
    if pooling == "max":
        return max_pool(seen.attention)
    if pooling == "logits":
        return logits_pool(seen.logits)
    return cosine_pool(seen.image_states, seen.text_states)
