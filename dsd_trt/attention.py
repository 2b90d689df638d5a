"""The method's pooling in numpy: from cross-attention maps to scores, and back to places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.method import Method

Array = NDArray[Any]


def pooled(attention: Array, method: Method) -> NDArray[np.float64]:
    """Pooled attention S of one layer (Eq. 3).

    Args:
        attention: A in [0, 1], (batch, heads, image_tokens, text_tokens).
        method: method of the bundle, with pooling "lse" or "max".

    Returns:
        S in [0, 1], (batch, heads, text_tokens).
    """
    if method.pooling == "max":
        return attention.max(axis=2).astype(np.float64)
    scaled = method.lam * attention.astype(np.float64)
    largest = scaled.max(axis=2, keepdims=True)  # or exp overflows for a large lambda
    mean = np.exp(scaled - largest).mean(axis=2)
    return (largest[:, :, 0] + np.log(mean)) / method.lam


def shares(attention: Array, method: Method) -> NDArray[np.float64]:
    """Share of every place in the pooled attention of a token.

    LogSumExp reads the map as the sum of exp(lambda A) - 1 over places, which is 0 where nothing
    attends: S = log(1 + sum / n) / lambda. A place's share is its part of this sum. The maximum
    reads the first place that has it, and no other.

    Args:
        attention: A in [0, 1], (..., image_tokens, text_tokens).
        method: method of the bundle, with pooling "lse" or "max".

    Returns:
        Shares that sum to 1 over image tokens, in the shape of `attention`.
    """
    if method.pooling == "max":
        first = attention.argmax(axis=-2, keepdims=True)  # (..., 1, text_tokens)
        places = np.arange(attention.shape[-2])[:, None]
        return (places == first).astype(np.float64)
    scaled = method.lam * attention.astype(np.float64)
    # exp(a) - 1 over exp(largest), which cannot overflow.
    largest = scaled.max(axis=-2, keepdims=True)
    read = np.exp(scaled - largest) - np.exp(-largest)
    total = read.sum(axis=-2, keepdims=True)
    even = 1 / attention.shape[-2]  # a map of zeros has no place that is read more than another
    return np.where(total > 0, read / np.where(total > 0, total, 1), even)


def head_weights(
    maps: Sequence[Array], method: Method, token_mask: Array
) -> list[NDArray[np.float64]]:
    """Weights of every head of every scored layer for each pair (Eq. 4 and 7).

    Args:
        maps: A of each scored layer, (batch, heads, image_tokens, text_tokens).
        method: method of the bundle.
        token_mask: 1 where a token counts, else 0, (batch, text_tokens).

    Returns:
        Weights of each layer, (batch, heads), which sum to 1 over all layers.
    """
    batch = len(token_mask)
    given = [np.array(values, np.float64) for values in method.head_weights.values]
    weights = [np.broadcast_to(it, (batch, len(it))) for it in given]
    if method.head_weights.mode != "dynamic":
        return weights
    counted = token_mask.astype(np.float64)[:, None]  # (batch, 1, text_tokens)
    weighted = []
    for attention, weight in zip(maps, weights, strict=True):
        wide = attention.astype(np.float64)
        scaled = method.lam * wide
        gradient = np.exp(scaled - scaled.max(axis=2, keepdims=True))
        gradient /= gradient.sum(axis=2, keepdims=True)  # dS / dA of LogSumExp
        relevance = (wide * gradient).sum(axis=2)  # (batch, heads, text_tokens)
        mean = (relevance * counted).sum(axis=2) / np.maximum(counted.sum(axis=2), 1)
        weighted.append(weight * mean)
    total = sum(it.sum(axis=1, keepdims=True) for it in weighted)
    return [it / total for it in weighted]


def pooled_tokens(maps: Sequence[Array], method: Method, token_mask: Array) -> NDArray[np.float64]:
    """Scores of tokens from maps: what the pair scorer gives as `token_scores`.

    Args:
        maps: A of each scored layer, (batch, heads, image_tokens, text_tokens).
        method: method of the bundle.
        token_mask: 1 where a token counts, else 0, (batch, text_tokens).

    Returns:
        Scores, (batch, text_tokens), of which f is the mean over counted tokens.
    """
    weights = head_weights(maps, method, token_mask)
    parts = [
        (pooled(attention, method) * weight[:, :, None]).sum(axis=1)
        for attention, weight in zip(maps, weights, strict=True)
    ]
    return np.sum(parts, axis=0)


def enlarged(heat: Array, places: tuple[int, int], to: tuple[int, int]) -> NDArray[np.float64]:
    """Heat of a coarse layer on a finer grid; every place keeps its mass, spread over its area.

    Args:
        heat: heat of each place, (..., rows * columns).
        places: rows and columns of the coarse grid.
        to: rows and columns of the fine grid.

    Returns:
        Heat in the fine grid, (..., rows, columns), with the sum of `heat`.
    """
    down, across = (_spread(size, wanted) for size, wanted in zip(places, to, strict=True))
    grid = heat.reshape(*heat.shape[:-1], *places)
    return np.einsum("...rc,yr,xc->...yx", grid, down, across)


def _spread(size: int, to: int) -> NDArray[np.float64]:
    """Part of each of `size` cells that lies in each of `to` cells, (to, size)."""
    edges, cells = np.linspace(0, 1, size + 1), np.linspace(0, 1, to + 1)
    ends = np.minimum(cells[1:, None], edges[None, 1:])
    starts = np.maximum(cells[:-1, None], edges[None, :-1])
    return np.maximum(ends - starts, 0) * size
