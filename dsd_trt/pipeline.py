"""The graphs of a bundle on one engine, fed in micro-batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import (
    MASK_STEP,
    MAX_TEXTS,
    ON_DEVICE,
    FastestBatch,
    batch_sizes,
    walks_at_once,
)
from dsd_trt.bundle import Bundle, is_large
from dsd_trt.contract import Graph
from dsd_trt.engine import (
    BF16,
    Engine,
    EngineDescription,
    open_engine,
    preferred_engine,
    thread_limit,
)
from dsd_trt.errors import EngineError
from dsd_trt.manifest import Calibration, Mode
from dsd_trt.plan import PLAN_LIBRARIES, graph_hash
from dsd_trt.tokenizer import Tokenizer, Tokens

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

    def __getitem__(self, chosen: NDArray[np.intp]) -> EncodedTexts:
        """Some of them; all in their order are not copied."""
        if np.array_equal(chosen, np.arange(len(self.mask))):
            return self
        return EncodedTexts(self.states[chosen], self.mask[chosen])


class Pipeline:
    """Encodes images and texts once each and scores their combinations.

    Each graph is compiled when it is first needed, or all of them by `compile`.

    Args:
        bundle: a verified bundle.
        engine: one of `ENGINES`, or what opens a graph's file.
        memory_budget_mb: for activations, in MiB, see `batch_sizes`.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str | Callable[[Path, Graph], Engine],
        memory_budget_mb: float,
    ) -> None:
        self._bundle = bundle
        self._manifest = manifest = bundle.manifest
        if engine == "auto":
            engine = preferred_engine()
        self.batch = (
            ON_DEVICE if engine in PLAN_LIBRARIES else batch_sizes(manifest, memory_budget_mb)
        )
        if engine in ("openvino", BF16):
            walks, *_ = walks_at_once(is_large(bundle.folder))
            self.batch = replace(self.batch, matrix=(walks, MAX_TEXTS))
        # Plans are compiled for the batch they are best at; what a stand-in runs on, it knows.
        self._on_cpu = isinstance(engine, str) and engine not in PLAN_LIBRARIES
        if isinstance(engine, str):
            engine = partial(open_engine, engine=engine)
        self._open_graph = engine
        self._tokenize = Tokenizer(
            bundle.path(manifest.tokenizer.file), manifest.tokenizer, manifest.method.token_mask
        )

    def compile(self, mode: Mode = "pair") -> EngineDescription:
        """Compile every graph that a mode needs now.

        Returns:
            What its scorer runs on.

        Raises:
            EngineError: the engine is not installed or refuses the bundle's graphs.
        """
        # One after another: OpenVINO changes the process's locale while it reads and writes what it
        # compiled, and several threads that do so at once leave it changed.
        scorer = self._pair_scorer if mode == "pair" else self._matrix_scorer
        engines = (self._image_encoder, self._text_encoder, scorer)
        return engines[-1].description

    @property
    def image_encoder(self) -> EngineDescription:
        """What images are encoded on; compiles that graph alone."""
        return self._image_encoder.description

    @cached_property
    def _image_encoder(self) -> Engine:
        return self._open("image_encoder")

    @cached_property
    def _text_encoder(self) -> Engine:
        return self._open("text_encoder")

    @cached_property
    def _pair_scorer(self) -> Engine:
        return self._open("pair_scorer")

    @cached_property
    def _matrix_scorer(self) -> Engine:
        return self._open("matrix_scorer")

    @cached_property
    def _triples(self) -> FastestBatch:
        threads = thread_limit() or os.cpu_count()
        key = f"{graph_hash(self._manifest, 'pair_scorer')} {self._pair_scorer.description}"
        key += f", {threads} threads"
        return FastestBatch(self.batch.triples, key if self._on_cpu else None)

    @cached_property
    def _adapter(self) -> dict[str, Array]:
        return adapter_feed(self._bundle)

    def _open(self, name: str) -> Engine:
        graph = self._manifest.graphs[name]
        return self._open_graph(self._bundle.path(graph.file), graph)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise and encode one or more texts.

        Raises:
            InputError: a text without words.
        """
        return self.encode_tokens(self._tokenize(texts))

    def encode_tokens(self, tokens: Tokens) -> EncodedTexts:
        """Encode one or more texts that are tokenised."""
        count, states = len(tokens.input_ids), np.empty(0)
        for rows in _batches(count, self.batch.texts):
            part = self._text_encoder.run({"input_ids": tokens.input_ids[rows]})["text_states"]
            if rows.start == 0:
                states = np.empty((count, *part.shape[1:]), part.dtype)
            states[rows] = part
        return EncodedTexts(states, tokens.mask)

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
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda triples: None,
    ) -> NDArray[np.float32]:
        """Score pairs: attention, denoising term or both, as the bundle's method says.

        Args:
            latent: z of every image, (images, C, h, w).
            texts: every text.
            image_of: each pair's row in `latent`, (pairs,).
            text_of: each pair's row in `texts`, (pairs,).
            levels: noise levels to average over (Eq. 4), indices into the bundle's.
            done: told how many (image, text, level) triples were just scored.

        Returns:
            The pairs' scores, (pairs,).

        Raises:
            EngineError: the engine failed, or a score is not a number.
        """
        method = self._manifest.method
        mean = self._mean_over_levels(latent, texts, image_of, text_of, levels, done)
        score = mean["score"]
        if self._manifest.has_denoising_error:
            # The error without a text is the same for all texts: once for every image in use.
            images, place = np.unique(image_of, return_inverse=True)
            nothing, first = self.encode_tokens(self._tokenize.empty()), np.zeros_like(images)
            without = self._mean_over_levels(latent, nothing, images, first, levels)
            d = without["denoising_error"][place] - mean["denoising_error"]
            score = d if method.score == "denoising" else score + method.denoising_weight * d
        return score.astype(np.float32)

    def score_matrix(
        self,
        latent: Array,
        texts: EncodedTexts,
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda triples: None,
    ) -> NDArray[np.float32]:
        """Score every image against every text in matrix mode.

        Args:
            latent: z of every image, (images, C, h, w).
            texts: every text.
            levels: noise levels to average over, indices into the bundle's.
            done: told how many (image, text, level) triples were just scored.

        Returns:
            (images, texts).

        Raises:
            EngineError: the engine failed, or a score is not a number.
        """
        image, level = np.repeat(np.arange(len(latent)), len(levels)), np.tile(levels, len(latent))
        scores = np.empty((len(level), len(texts.mask)), np.float32)
        walks, matches = self.batch.matrix
        for columns in _batches(len(texts.mask), matches):
            states, mask = texts.states[columns], _narrow(texts.mask[columns])
            for rows in _batches(len(level), walks):
                outputs = self._matrix_scorer.run(
                    {
                        "latent": latent[image[rows]],
                        "level": level[rows],
                        "text_states": states,
                        "token_mask": mask,
                    }
                )
                _require_numbers(self._matrix_scorer, outputs)
                scores[rows, columns] = outputs["score"]
                done(outputs["score"].size)
        by_level = scores.reshape(len(latent), len(levels), -1)
        return by_level.mean(axis=1, dtype=np.float64).astype(np.float32)

    def _mean_over_levels(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda triples: None,
    ) -> dict[str, NDArray[np.float64]]:
        """What the pair scorer says of each pair, averaged over levels: (pairs,) each."""
        image, text = np.repeat(image_of, len(levels)), np.repeat(text_of, len(levels))
        level = np.tile(levels, len(image_of))  # (triples,)
        parts: dict[str, list[Array]] = {"score": [], "denoising_error": []}
        for rows in self._triples.cut(len(level)):
            outputs = self._pair_scorer.run(
                {
                    "latent": latent[image[rows]],
                    "level": level[rows],
                    "text_states": texts.states[text[rows]],
                    "token_mask": texts.mask[text[rows]],
                    **self._adapter,
                }
            )
            _require_numbers(self._pair_scorer, outputs)
            for name in parts.keys() & outputs.keys():
                parts[name].append(outputs[name])
            done(len(level[rows]))
        return {
            name: np.concatenate(values).reshape(-1, len(levels)).mean(axis=1, dtype=np.float64)
            for name, values in parts.items()
            if values
        }


def _narrow(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """A mask without the last tokens, of which none counts in any text."""
    counted = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
    return mask[:, : -(-counted // MASK_STEP) * MASK_STEP]


def _require_numbers(scorer: Engine, outputs: Mapping[str, Array]) -> None:
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise EngineError(
            f"{scorer.description} computed a score that is no finite number. "
            "Compute in full precision: --engine openvino instead of openvino-bf16, or a bundle "
            "exported with --precision fp32"
        )


def match_probability(scores: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float32]:
    """Match probability sigmoid(a s + b), written with tanh, which cannot overflow."""
    probability = np.empty(scores.shape, np.float32)
    flat, out = scores.reshape(-1), probability.reshape(-1)
    for part in _batches(len(flat), 2**16):  # in float64, which is not held for all of them
        logit = calibration.a * flat[part].astype(np.float64) + calibration.b
        out[part] = 0.5 + 0.5 * np.tanh(logit / 2)
    return probability


def adapter_feed(bundle: Bundle) -> dict[str, Array]:
    """What the pair scorer is fed beside the pairs: the adapter, unless it is folded in."""
    if (adapter := bundle.manifest.adapter) is None:
        return {}
    return {"adapter": np.fromfile(bundle.path(adapter.file), "<f4").astype(np.float32)}


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
