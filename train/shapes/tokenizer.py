"""A CLIP tokenizer for captions of shapes: one token per caption word, bytes for other text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from dsd_trt.train.diffusion.clip_tokenizer import write_tokenizer
from dsd_trt.train.shapes.caption import words


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Build the tokenizer and write its files.

    Args:
        folder: folder for the tokenizer's files.
    """
    return write_tokenizer(folder, learn_merges(words()))


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word is one token.

    Among equally frequent pairs the alphabetically last one is merged. The trainer of the
    `tokenizers` library orders them at random, and with them the ids.
    """
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        pieces = [_merged(word, merges[-1]) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces after merging every occurrence of a pair."""
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
