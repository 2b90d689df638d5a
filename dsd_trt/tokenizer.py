"""Texts to the token ids and masks of the graphs' inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import TokenizerSpec
from dsd_trt.bundle.method import TokenMask
from dsd_trt.errors import BundleError, InputError, counted, one_line
from dsd_trt.files.schema import parse_json, read_text
from dsd_trt.log import get_logger
from dsd_trt.words import END, PADDING, START, Token, Word

logger = get_logger(__name__)

_NAMED = 3  # texts of a call that a warning names


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenised texts.

    Attributes:
        input_ids: BOS, words, EOS, then padding, int32 (texts, max_length).
        mask: 1 where a token counts in the average of Eq. 4, float32 (texts, max_length).
    """

    input_ids: NDArray[np.int32]
    mask: NDArray[np.float32]


class Tokenizer:
    """CLIP's tokenizer as stored in a bundle.

    Args:
        path: path of tokenizer.json, in the `tokenizers` library's format.
        spec: sequence length and special token ids.
        token_mask: tokens that count in Eq. 4: "words_eos", "words", or "all" including BOS and
            padding.

    Raises:
        BundleError: the file is not a tokenizer, or has more tokens than the text encoder's
            embedding has rows.
    """

    def __init__(self, path: Path, spec: TokenizerSpec, token_mask: TokenMask) -> None:
        try:
            text = read_text(path)
            parse_json(text)  # of two tokens with one name, the library would use the last
            with _own_errors():
                self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is not a tokenizer: {one_line(error)}") from None
        # The sequence is laid out here; the file's own settings are ignored.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        size = self._tokenizer.get_vocab_size()
        if spec.vocabulary is not None and size > spec.vocabulary:
            raise BundleError(
                f"{path} has {counted(size, 'token')}, and the text encoder's embedding has "
                f"{counted(spec.vocabulary, 'row')}: export the bundle again"
            )
        self._path, self._spec = path, spec
        self._token_mask = token_mask

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts; a text that is too long is cut before EOS.

        A logged warning names each of the first ones that are cut, and the number of others.

        Raises:
            InputError: the token mask leaves no token of a text.
            BundleError: a token has no row in the text encoder's embedding.
        """
        length = self._spec.max_length
        input_ids = np.full((len(texts), length), self._spec.pad_id, np.int64)
        mask = np.zeros((len(texts), length), np.float32)
        try:
            with _own_errors():
                encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except ValueError as error:
            raise BundleError(f"{self._path} cannot read a text: {one_line(error)}") from None
        cut = 0
        for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            words = encoding.ids[: length - 2]  # room for BOS and EOS
            cut += len(encoding.ids) > len(words)
            if len(encoding.ids) > len(words) and cut <= _NAMED:
                logger.warning(
                    "text is too long, only its first %d of %d tokens count: %r",
                    len(words),
                    len(encoding.ids),
                    text if len(text) <= 80 else f"{text[:80]}...",
                )
            end = 1 + len(words)  # position of EOS
            input_ids[row, 0] = self._spec.bos_id
            input_ids[row, 1:end] = words
            input_ids[row, end] = self._spec.eos_id
            # The first EOS ends a text, as in training, even if the text itself spells it.
            first_eos = int(np.argmax(input_ids[row] == self._spec.eos_id))
            mask[row, self._counted(first_eos)] = 1
            if not mask[row].any():
                raise InputError(f"a text has no words to score: {text!r}")
        if cut > _NAMED:
            others = counted(cut - _NAMED, "other text is", "other texts are")
            logger.warning("%s too long as well: their first tokens alone count", others)
        self._require_rows(input_ids)
        return Tokens(input_ids.astype(np.int32), mask)

    def words(self, text: str) -> tuple[Word, ...]:
        """Words of a text that count in its score, each with its tokens, in order.

        Tokens of one word are those that the tokenizer split it into, such as those of a word that
        its vocabulary lacks. Punctuation marks are words of their own.

        Raises:
            InputError: the token mask leaves no token of the text.
            BundleError: under the conditions of calling the tokenizer.
        """
        counted = self([text]).mask[0] > 0
        with _own_errors():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        parts: dict[object, list[int]] = {}  # places of the tokens of each word
        for place in range(min(len(encoding.ids), self._spec.max_length - 2)):
            if counted[place + 1]:
                word = encoding.word_ids[place]
                parts.setdefault(("token", place) if word is None else word, []).append(place)
        words = [
            Word(
                text[encoding.offsets[own[0]][0] : encoding.offsets[own[-1]][1]],
                tuple(Token(encoding.tokens[it], it + 1) for it in own),
            )
            for own in parts.values()
        ]
        end = 1 + min(len(encoding.ids), self._spec.max_length - 2)
        if counted[end]:
            words.append(self._special(END, self._spec.eos_id, [end]))
        if counted[0]:
            words.insert(0, self._special(START, self._spec.bos_id, [0]))
        if padded := [it for it in range(end + 1, len(counted)) if counted[it]]:
            words.append(self._special(PADDING, self._spec.pad_id, padded))
        return tuple(words)

    def _special(self, name: str, token: int, places: Sequence[int]) -> Word:
        text = self._tokenizer.id_to_token(token) or name
        return Word(name, tuple(Token(text, it) for it in places), special=True)

    def _require_rows(self, input_ids: NDArray[np.int64]) -> None:
        """Refuse ids without an embedding row: engines would use zeros or lose the whole batch."""
        rows = self._spec.vocabulary or 2**31  # older bundles lack this number
        if input_ids.size and (highest := int(input_ids.max())) >= rows:
            raise BundleError(
                f"{self._path}: the token {self._tokenizer.id_to_token(highest)!r} has the id "
                f"{highest}, and the text encoder's embedding has {counted(rows, 'row')}: export "
                "the bundle again"
            )

    def empty(self) -> Tokens:
        """The unconditional text, (1, max_length): only BOS and EOS, of which EOS counts."""
        length = self._spec.max_length
        input_ids = np.full((1, length), self._spec.pad_id, np.int32)
        input_ids[0, :2] = self._spec.bos_id, self._spec.eos_id
        mask = np.zeros((1, length), np.float32)
        mask[0, 1] = 1
        return Tokens(input_ids, mask)

    def _counted(self, end: int) -> slice:
        if self._token_mask == "all":
            return slice(None)
        return slice(1, end if self._token_mask == "words" else end + 1)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Convert the library's exceptions to ValueError.

    The library raises plain `Exception`. When its Rust code panics, it raises a BaseException that
    would end the process.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(str(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library gave up: {error}") from None
