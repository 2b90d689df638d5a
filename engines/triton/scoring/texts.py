"""Encoded texts of a request, or the reasons why there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dsd_trt.errors import InputError
from dsd_trt.pipeline import EncodedTexts
from dsd_trt.text_cache import TextCache
from dsd_trt.tokenizer import Tokenizer, Tokens


class Texts:
    """Encodes the texts of requests, and keeps those of earlier ones. One thread uses it at a time.

    Args:
        encode: function that encodes one or more tokenised texts.
        tokenize: tokenizer of the bundle whose text encoder `encode` runs.
        cache: texts of earlier requests.
        max_characters: limit of one text.
    """

    def __init__(
        self,
        encode: Callable[[Tokens], EncodedTexts],
        tokenize: Tokenizer,
        cache: TextCache,
        max_characters: int,
    ) -> None:
        self._encode, self._tokenize, self._cache = encode, tokenize, cache
        self._max_characters = max_characters

    def encode(self, texts: Sequence[bytes]) -> tuple[EncodedTexts | None, list[str]]:
        """Encode the texts that can be used; each distinct one is encoded once.

        Args:
            texts: texts of a request in UTF-8.

        Returns:
            The usable texts in their order, None without any, and for each text the reason why it
            cannot be used, or "".
        """
        errors: dict[bytes, str] = {}
        readable: dict[bytes, str] = {}
        tokens: dict[str, Tokens] = {}
        for text in dict.fromkeys(texts):
            try:
                decoded = self._decoded(text)
                if decoded not in self._cache:
                    # One by one: of several, one without a token that counts fails all.
                    tokens[decoded] = self._tokenize([decoded])
                readable[text] = decoded
            except InputError as error:
                errors[text] = str(error)
        if not readable:
            return None, [errors[text] for text in texts]

        def encode(new: Sequence[str]) -> EncodedTexts:
            ids = np.concatenate([tokens[text].input_ids for text in new])
            return self._encode(Tokens(ids, np.concatenate([tokens[text].mask for text in new])))

        encoded = self._cache.encode(list(readable.values()), encode)
        row = {text: place for place, text in enumerate(readable)}
        for text, finite in zip(readable, encoded.finite, strict=True):
            errors[text] = "" if finite else "dsd_text_encoder gave NaN or infinity"
        usable = [row[text] for text in texts if not errors[text]]
        chosen = encoded[np.array(usable, np.intp)] if usable else None
        return chosen, [errors[text] for text in texts]

    def _decoded(self, text: bytes) -> str:
        """The text.

        Raises:
            InputError: it is not UTF-8, too long or blank.
        """
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8: {error}") from None
        if len(decoded) > self._max_characters:
            raise InputError(f"more than {self._max_characters} characters")
        if not decoded.strip():
            raise InputError(f"a text has no words to score: {decoded!r}")
        return decoded
