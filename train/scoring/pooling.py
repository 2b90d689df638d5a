"""From a cross-attention map to one number per text token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.bundle.contract import LARGEST_LAMBDA

Pooling = Literal["lse", "max", "cosine", "logits"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True)
class CrossAttention:
    """What one cross-attention layer saw and how it attended.

    Attributes:
        layer: its place among the U-Net's cross-attention layers, in order of execution.
        image_states: r_x, the normalised features queries are made of, (batch, image_tokens, C).
        text_states: r_y, the text encoder's output, (batch, text_tokens, D).
        logits: Q K^T / sqrt(d), (batch, heads, image_tokens, text_tokens), FP32.
        attention: A, the same, softmaxed over text tokens.
    """

    layer: int
    image_states: Tensor
    text_states: Tensor
    logits: Tensor
    attention: Tensor


def logsumexp_pool(attention: Tensor, lam: float, dim: int = 2) -> Tensor:
    """Pool cross-attention over image tokens (Eq. 3).

    Args:
        attention: softmaxed map, (batch, heads, image_tokens, ..., text_tokens), FP32.
        lam: sharpness, above 0; towards 0 this is the mean, towards infinity the maximum.
        dim: where the image tokens are.

    Returns:
        S, (batch, heads, ..., text_tokens), each in [0, 1]: the log(n) of the sum is taken off, so
        that layers of different resolution can be averaged (Eq. 4).
    """
    scaled = lam * attention
    if lam <= LARGEST_LAMBDA:  # attention is at most 1: no need to find the largest first
        return scaled.exp().mean(dim=dim).log() / lam
    return (torch.logsumexp(scaled, dim=dim) - math.log(attention.shape[dim])) / lam


def attribution(attention: Tensor, lam: float) -> Tensor:
    """What each head contributes to each token's pooled score (Eq. 7), in closed form.

    Eq. 7 multiplies a head's map with the score's gradient with respect to it. Taken through the
    pooling alone that gradient is known, dS_j / dA_ij = softmax_i(lambda A_ij), so a graph can
    compute it without a backward pass.

    Args:
        attention: as for `logsumexp_pool`.
        lam: as for `logsumexp_pool`.

    Returns:
        sum_i A_ij dS_j / dA_ij, (batch, heads, text_tokens), each in [0, 1].
    """
    return (attention * (lam * attention).softmax(dim=2)).sum(dim=2)


def max_pool(attention: Tensor) -> Tensor:
    """The largest attention any image token pays to a text token; shapes as `logsumexp_pool`."""
    return attention.amax(dim=2)


def cosine_pool(image_states: Tensor, text_states: Tensor) -> Tensor:
    """Cosine similarity in place of attention, the paper's first pooling baseline (section 5.4).

    Image and text features differ in width, so only their shared leading dimensions are compared.

    Args:
        image_states: (batch, image_tokens, C).
        text_states: (batch, text_tokens, D).

    Returns:
        Mean similarity over image tokens, moved from [-1, 1] to [0, 1], (batch, 1, text_tokens).
    """
    shared = min(image_states.shape[-1], text_states.shape[-1])
    image = F.normalize(image_states[..., :shared].float(), dim=-1)
    text = F.normalize(text_states[..., :shared].float(), dim=-1)
    similarity = image @ text.transpose(1, 2)  # (batch, image_tokens, text_tokens)
    return (1 + similarity.mean(dim=1, keepdim=True)) / 2


def logits_pool(logits: Tensor) -> Tensor:
    """What the released research code makes of a layer: LogSumExp of raw logits over the text.

    For every image token the LogSumExp over all text tokens, averaged over image tokens. It is a
    number for the text as a whole, given to every token alike.

    Args:
        logits: (batch, heads, image_tokens, text_tokens).

    Returns:
        (batch, heads, text_tokens), unbounded.
    """
    whole = torch.logsumexp(logits, dim=3).mean(dim=2, keepdim=True)  # (batch, heads, 1)
    return whole.expand(-1, -1, logits.shape[3])


def pool(seen: CrossAttention, pooling: Pooling, lam: float) -> Tensor:
    """Pool one layer: (batch, heads, text_tokens); cosine knows no heads and returns one."""
    if pooling == "lse":
        return logsumexp_pool(seen.attention, lam)
    if pooling == "max":
        return max_pool(seen.attention)
    if pooling == "logits":
        return logits_pool(seen.logits)
    return cosine_pool(seen.image_states, seen.text_states)
