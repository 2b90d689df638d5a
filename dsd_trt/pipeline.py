"""The three graphs of a bundle on one engine, fed in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import batch_sizes
from dsd_trt.bundle import Bundle
from dsd_trt.engine import Engine, open_engine, preferred_engine
from dsd_trt.errors import EngineError
from dsd_trt.tokenizer import Tokenizer

Array = NDArray[Any]


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as the pair scorer takes them.

    Attributes:
        states: r_y, (texts, 77, D), in the precision the bundle declares.
        mask: 1 where a token counts, float32 (texts, 77).
    """

    states: Array
    mask: NDArray[np.float32]


class Pipeline:
    """Encodes images and texts once each and scores their combinations.

    Args:
        bundle: a verified bundle.
        engine: "auto", "onnxruntime" or "openvino".
        memory_budget_mb: for activations, in MiB, see `batch_sizes`.

    Raises:
        EngineError: the engine is not installed or refuses the bundle's graphs.
    """

    def __init__(self, bundle: Bundle, engine: str, memory_budget_mb: float) -> None:
        manifest = bundle.manifest
        engine = preferred_engine() if engine == "auto" else engine

        def compile_graph(name: str) -> Engine:
            graph = manifest.graphs[name]
            return open_engine(bundle.path(graph.file), graph, engine)

        self._image_encoder = compile_graph("image_encoder")
        self._text_encoder = compile_graph("text_encoder")
        self._pair_scorer = compile_graph("pair_scorer")
        self._tokenize = Tokenizer(
            bundle.path(manifest.tokenizer.file), manifest.tokenizer, manifest.method.token_mask
        )
        self.batch = batch_sizes(manifest, memory_budget_mb)
        self.description = self._pair_scorer.description

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise and encode one or more texts.

        Raises:
            InputError: a text without words.
        """
        tokens = self._tokenize(texts)
        states = [
            self._text_encoder.run({"input_ids": tokens.input_ids[rows]})["text_states"]
            for rows in _batches(len(texts), self.batch.texts)
        ]
        return EncodedTexts(np.concatenate(states), tokens.mask)

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> Array:
        """Encode one or more images, uint8 (R, R, 3) each, to latents z (images, C, h, w)."""
        latents = [
            self._image_encoder.run({"pixels": np.stack(images[rows])})["latent"]
            for rows in _batches(len(images), self.batch.images)
        ]
        return np.concatenate(latents)

    def score(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        level_of: NDArray[np.int32],
    ) -> Iterator[NDArray[np.float32]]:
        """Score (image, text, level) triples.

        Args:
            latent: z of every image, (images, C, h, w).
            texts: every text.
            image_of: each triple's row in `latent`, (triples,).
            text_of: each triple's row in `texts`, (triples,).
            level_of: each triple's noise level, an index into the bundle's, (triples,).

        Yields:
            The scores of the next micro-batch, float32, in the order of the triples.

        Raises:
            EngineError: the engine failed, or a score is not a number.
        """
        for rows in _batches(len(level_of), self.batch.triples):
            image, text = image_of[rows], text_of[rows]
            score = self._pair_scorer.run(
                {
                    "latent": latent[image],
                    "level": level_of[rows],
                    "text_states": texts.states[text],
                    "token_mask": texts.mask[text],
                }
            )["score"]
            if not np.isfinite(score).all():
                raise EngineError(
                    f"{self.description} computed a score that is not a finite number. "
                    "Export the bundle in full precision: dsd-trt export --precision fp32"
                )
            yield score


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
