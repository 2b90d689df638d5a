"""A CLIP tokenizer's files from a list of byte-pair merges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(
    folder: Path, merges: Sequence[tuple[str, str]], pad: str = EOS
) -> CLIPTokenizer:
    """Write the files and read them back.

    The vocabulary starts with all 256 bytes, inside a word and ending one, so no text is unknown;
    then one token a merge, then BOS and EOS.

    Args:
        folder: for the files.
        merges: pairs of tokens that become one, most urgent first.
        pad: the token texts are padded with.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [left + right for left, right in merges] + [BOS, EOS]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}

    folder.mkdir(parents=True, exist_ok=True)
    write = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "do_lower_case": True,
                **special,
            }
        ),
    }
    for name, text in write.items():
        (folder / name).write_text(text, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
