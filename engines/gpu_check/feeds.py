"""Random inputs of a bundle's graphs, for timing: zeros run faster than images and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.contract import TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import TokenizerSpec

WORDS = 14  # of the longest text, between BOS and EOS: no more than 15 tokens count

Feeds = dict[str, NDArray[Any]]

MATRIX_SIZES = {"I": 32, "T": 256, "L": 16}
"""The timed pass of the matrix scorer: 32 images at one level each, 256 texts of 16 tokens."""


def draw_feeds(bundle: Bundle, graph: str, sizes: Mapping[str, int], seed: int = 0) -> Feeds:
    """Draw inputs of a graph with the values that its contract allows.

    Pixels are noise. Texts have 1 to `WORDS` words, ids are those of the vocabulary, and a mask
    counts words and EOS. Levels take turns. Latents and text states are normal, as the encoders
    make them. An adapter is the bundle's own.

    Args:
        bundle: the verified bundle that holds the graph.
        graph: name of the graph, such as "pair_scorer".
        sizes: sizes of the dynamic dimensions by name, see `graph_contract`.
        seed: seed of the random numbers.

    Returns:
        One array per input, by name.
    """
    manifest, random = bundle.manifest, np.random.default_rng(seed)
    made: Feeds = {}
    for spec in manifest.graphs[graph].inputs:
        shape = spec.of_sizes(sizes)
        if spec.name == "adapter":
            made |= adapter_feed(bundle)
        else:
            levels = len(manifest.method.noise_levels.fractions)
            made[spec.name] = _draw(spec, shape, manifest.tokenizer, levels, random)
    return made


def _draw(
    spec: TensorSpec,
    shape: tuple[int, ...],
    tokenizer: TokenizerSpec,
    levels: int,
    random: np.random.Generator,
) -> NDArray[Any]:
    if spec.name == "pixels":
        return random.integers(0, 256, shape, np.uint8)
    if spec.name == "level":
        return (np.arange(shape[0]) % levels).astype(spec.dtype)
    if spec.name == "input_ids":
        return _ids(shape, tokenizer, random).astype(spec.dtype)
    if spec.name == "token_mask":
        places = np.arange(shape[1])
        ends = _words(shape, random)[:, None] + 1
        return ((places > 0) & (places <= ends)).astype(spec.dtype)
    return random.standard_normal(shape, np.float32).astype(spec.dtype)


def _words(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.int64]:
    """Number of words of each text, (texts,): BOS and EOS fit beside them."""
    return random.integers(1, min(WORDS, shape[1] - 2) + 1, shape[0])


def _ids(
    shape: tuple[int, ...], tokenizer: TokenizerSpec, random: np.random.Generator
) -> NDArray[np.int64]:
    """Ids of BOS, words, EOS and padding, (texts, tokens)."""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    rows = tokenizer.vocabulary or max(special) + 1
    usual = np.array([it for it in range(rows) if it not in special] or [tokenizer.eos_id])
    ids, places = random.choice(usual, shape), np.arange(shape[1])
    ends = _words(shape, random)[:, None] + 1
    ids[:, 0] = tokenizer.bos_id
    ids[places > ends] = tokenizer.pad_id
    ids[places == ends] = tokenizer.eos_id
    return ids
