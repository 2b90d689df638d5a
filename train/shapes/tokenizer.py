"""A CLIP tokenizer for captions of shapes: each caption word one token, any other text in bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from dsd_trt.train.shapes.caption import words

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the byte-pair merges that make each caption word one token; write the CLIP files.

    The vocabulary starts with all 256 bytes, inside a word and ending one, so no text is unknown.
    """
    merges = learn_merges(words())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [left + right for left, right in merges] + [_BOS, _EOS]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}

    folder.mkdir(parents=True, exist_ok=True)
    write = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(
            {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": _EOS}
        ),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "do_lower_case": True,
                "bos_token": _BOS,
                "eos_token": _EOS,
                "unk_token": _EOS,
                "pad_token": _EOS,
            }
        ),
    }
    for name, text in write.items():
        (folder / name).write_text(text, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word is one token.

    Among pairs that are equally frequent the last in the alphabet is merged: the trainer of the
    `tokenizers` library leaves their order to chance, and with it the ids.
    """
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        pieces = [_merged(word, merges[-1]) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces with every occurrence of a pair made one."""
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
