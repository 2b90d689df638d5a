"""A CLIP tokenizer for captions of shapes: each caption word one token, any other text in bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from dsd_trt.train.shapes.caption import words

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the byte-pair merges that make each caption word one token; write the CLIP files.

    The vocabulary starts with all 256 bytes, inside a word and ending one, so no text is unknown.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(words(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

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
