"""CLIP tokenizers: read and validated, or written from a list of byte-pair merges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from dsd_trt.errors import ModelError, counted
from dsd_trt.files.whole import write_whole
from dsd_trt.train.diffusion.families import TOKENS
from dsd_trt.train.diffusion.weight_files import read_json, require_class

_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(
    folder: Path, merges: Sequence[tuple[str, str]], pad: str = EOS
) -> CLIPTokenizer:
    """Write a tokenizer's files and read them back.

    The vocabulary is all 256 bytes, each inside and at the end of a word, then one token per
    merge, then BOS and EOS. No text is therefore unknown.

    Args:
        folder: folder for the tokenizer's files; created if missing.
        merges: pairs of tokens that are merged into one, highest priority first.
        pad: token that texts are padded with.
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
                "model_max_length": TOKENS,
                "do_lower_case": True,
                **special,
            }
        ),
    }
    for name, text in write.items():
        write_whole(folder / name, text)
    return CLIPTokenizer.from_pretrained(folder)


def read_tokenizer(folder: Path, **special: str) -> CLIPTokenizer:
    """Read a CLIP tokenizer from a folder.

    Args:
        folder: folder of `tokenizer.json`, or of `vocab.json` and `merges.txt`.
        special: special tokens that replace those of the files, such as `pad_token`.

    Raises:
        ModelError: a file is missing or truncated, the files contradict each other, or the
            tokenizer is not CLIP's.
    """
    # Without these files transformers would return a tokenizer with an empty vocabulary.
    lacks = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    whole = (folder / "tokenizer.json").is_file()
    if lacks and not whole:
        raise ModelError(
            f"{folder} holds no tokenizer: it has no {' and no '.join(lacks)} (and no "
            "tokenizer.json): download or save the model again"
        )
    config = folder / "tokenizer_config.json"
    if config.is_file():
        require_class(read_json(config).get("tokenizer_class"), _CLASSES, config, "tokenizer_class")
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, **special
        )
    except Exception as error:  # the libraries raise plain Exception, too
        raise ModelError(f"cannot read the tokenizer in {folder}: {error}") from error
    _require_ids_of_file(folder, tokenizer)
    _require_all_merges(folder, tokenizer)
    return tokenizer


def require_padding(folder: Path) -> None:
    """Refuse a tokenizer whose files do not give the padding token.

    transformers would pad with EOS, but Stable Diffusion 2 and XL were trained with another token.

    Raises:
        ModelError: no file gives the padding token; the message names the files that may.
    """
    names = ("tokenizer_config.json", "special_tokens_map.json")
    if not any(
        read_json(folder / name).get("pad_token") for name in names if (folder / name).is_file()
    ):
        raise ModelError(
            f"{folder}: neither {' nor '.join(names)} says pad_token, what texts are padded with: "
            "download or save the tokenizer again"
        )


def _require_ids_of_file(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Refuse a tokenizer whose ids differ from those in `vocab.json`."""
    path = folder / "vocab.json"
    if not path.is_file():
        return
    read = tokenizer.get_vocab()
    for token, index in read_json(path).items():
        if read.get(token) != index:
            raise ModelError(
                f"{path}: the token {token!r} has the id {index!r}, and was read with "
                f"{read.get(token)}: the tokenizer's files contradict each other, download or save "
                "them again"
            )


def _require_all_merges(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Refuse a truncated list of merges, with which words would silently split into letters."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = model.get("merges", ())  # ["a", "b"], or "a b" of older versions
    made = {
        merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge) for merge in merges
    }
    kept = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    lost = [
        token
        for token in tokenizer.get_vocab()
        if token not in made and token not in kept and len(token.removesuffix("</w>")) > 1
    ]
    if lost:
        first = min(lost, key=tokenizer.get_vocab().__getitem__)
        raise ModelError(
            f"{folder}: no merge makes {first!r} ({counted(len(lost), 'token')} in all), which the "
            "vocabulary lists: merges.txt or tokenizer.json is cut, download or save it again"
        )


def require_embedding(tokenizer: CLIPTokenizer, rows: int, where: str) -> None:
    """Refuse a tokenizer whose tokens do not match the rows of the text encoder's embedding.

    Args:
        tokenizer: tokenizer of the text encoder.
        rows: number of rows of the token embedding.
        where: name of the model and the tokenizer, for the message.

    Raises:
        ModelError: a token has no row, a row no token, or two tokens have the same id.
    """
    vocabulary = tokenizer.get_vocab()
    without = {index: token for token, index in vocabulary.items() if index >= rows}
    if without:
        first = min(without)
        raise ModelError(
            f"{where}: the token {without[first]!r} has the id {first}, and the text encoder's "
            f"embedding has {counted(rows, 'row')}, the tokenizer "
            f"{counted(len(vocabulary), 'token')}: save the text encoder with its enlarged "
            "embedding, or the tokenizer without the token"
        )
    ids = set(vocabulary.values())
    if len(ids) < len(vocabulary):
        twice = sorted(vocabulary, key=vocabulary.__getitem__)
        one, other = next(
            (a, b) for a, b in itertools.pairwise(twice) if vocabulary[a] == vocabulary[b]
        )
        raise ModelError(
            f"{where}: the tokens {one!r} and {other!r} have one id, {vocabulary[one]}: the "
            "vocabulary is damaged, download or save it again"
        )
    if len(vocabulary) < rows:
        raise ModelError(
            f"{where} knows {counted(len(vocabulary), 'token')}, and the text encoder's embedding "
            f"has {counted(rows, 'row')}: the tokenizer's files are incomplete or those of another "
            "model"
        )
