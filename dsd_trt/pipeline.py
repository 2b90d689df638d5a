"""The graphs of one bundle on one engine, run in batches."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import (
    MASK_STEP,
    BatchSizes,
    FastestBatch,
)
from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.folder import Bundle, is_large, weight_bytes, with_maps
from dsd_trt.bundle.maps import NAME as MAPS
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.engine import (
    Backend,
    Engine,
    EngineDescription,
    thread_limit,
)
from dsd_trt.engine.checked import checked_batch_sizes, open_engine
from dsd_trt.engine.rows import rows_for
from dsd_trt.engine.self_check import SelfCheck
from dsd_trt.engine.shared import CLOSED, require_process
from dsd_trt.errors import EngineError
from dsd_trt.log import get_logger, timed
from dsd_trt.spans import span
from dsd_trt.tokenizer import Tokenizer, Tokens
from dsd_trt.words import Word

logger = get_logger(__name__)

Array = NDArray[Any]

_ENCODERS = ("image_encoder", "text_encoder")


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as inputs of the pair scorer.

    Attributes:
        states: text states r_y, (texts, 77, D), in the bundle's precision.
        mask: 1 where a token counts in Eq. 4, float32 (texts, 77).
    """

    states: Array
    mask: NDArray[np.float32]

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Which texts have finite states and can be scored, bool (texts,)."""
        return finite_rows(self.states)

    def __getitem__(self, chosen: NDArray[np.intp]) -> EncodedTexts:
        """Selected texts; selecting all of them in order makes no copy."""
        if np.array_equal(chosen, np.arange(len(self.mask))):
            return self
        return EncodedTexts(self.states[chosen], self.mask[chosen])


class Pipeline:
    """Encodes each image and text once, and scores their combinations.

    Graphs are compiled on first use, or all at once by `compile`. Threads may share a pipeline.

    Args:
        bundle: the verified bundle to run.
        backend: backend that compiles the graphs.
        memory_budget_mb: memory for activations, in MiB, see `batch_sizes`; None is the backend's
            own choice. On a processor, a budget below the weights of a large bundle also closes an
            encoder when another graph is used; it is opened again when it is needed.
        tune: whether to find the fastest batch size of the pair scorer, see `FastestBatch`. The
            last bits of a score depend on the batch size, so they differ until it is found.
        self_check: the self-check of each compiled graph; True is the bundle's own, False is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory_budget_mb: float | None,
        tune: bool = False,
        self_check: bool | SelfCheck = True,
    ) -> None:
        self._bundle = bundle
        self._manifest = manifest = bundle.manifest
        backend = backend.within(bundle, memory_budget_mb)
        self.backend: Backend = backend
        self.batch: BatchSizes = checked_batch_sizes(backend, bundle, memory_budget_mb)
        logger.info(
            "batches of up to %d images, %d texts, %d passes of the pair scorer; memory for "
            "activations: %s",
            *(self.batch.images, self.batch.texts, self.batch.passes),
            "the engine's own choice" if memory_budget_mb is None else f"{memory_budget_mb:g} MiB",
        )
        self._tune = tune and backend.tunes_batch
        self._process = os.getpid()
        self._opening = threading.RLock()
        self._engines: dict[str, Engine] = {}  # by graph
        self._checked: set[str] = set()  # graphs that passed the self-check
        # Whether encoders are open only while they are in use.
        self._frugal = (
            memory_budget_mb is not None
            and backend.reads_graphs  # not a server's, whose graphs are open elsewhere
            and not backend.on_gpu
            and is_large(bundle.folder)
            and memory_budget_mb * 2**20 < weight_bytes(bundle.folder)
        )
        self._closed = False
        self.self_check: SelfCheck | None = (
            SelfCheck.read(bundle) if self_check is True else self_check or None
        )
        self._tokenize = Tokenizer(
            bundle.path(manifest.tokenizer.file), manifest.tokenizer, manifest.method.token_mask
        )

    def compile(self, mode: Mode = "pair") -> EngineDescription:
        """Compile every graph that a mode needs.

        Returns:
            Engine description of the mode's scorer.

        Raises:
            EngineError: the engine is not installed, or refuses the bundle's graphs.
        """
        scorer = f"{mode}_scorer"
        # Encoders that are closed again go first: the scorer is not in memory beside them then.
        names = (*_ENCODERS, scorer) if self._frugal else (scorer, *_ENCODERS)
        opened = {name: self.engine(name).description for name in names}
        return opened[scorer]

    def require_usable(self) -> None:
        """Raise the error that engines would raise, before any work.

        Raises:
            EngineError: the pipeline is closed, or this process was forked from the one that made
                it.
        """
        require_process(self._process)
        if self._closed:
            raise EngineError(CLOSED)

    def close(self) -> None:
        """Release the engines' memory and threads; closing again has no effect."""
        if self._process != os.getpid():
            return  # in a forked child, a thread that does not exist there may hold the lock
        with self._opening:
            self._closed = True
            for engine in self._engines.values():
                engine.close()

    @property
    def image_encoder(self) -> EngineDescription:
        """Engine description of the image encoder; compiles only that graph."""
        return self._image_encoder.description

    @property
    def _image_encoder(self) -> Engine:
        return self.engine("image_encoder")

    @property
    def _text_encoder(self) -> Engine:
        return self.engine("text_encoder")

    @property
    def _pair_scorer(self) -> Engine:
        return self.engine("pair_scorer")

    @property
    def _matrix_scorer(self) -> Engine:
        return self.engine("matrix_scorer")

    @cached_property
    def _passes(self) -> FastestBatch:
        if not self._tune:
            return FastestBatch(self.batch.passes, None)
        threads = self.backend.threads or thread_limit() or os.cpu_count()
        key = f"{self._manifest.graph_hash('pair_scorer')} {self.backend.name}: "
        key += f"{self._pair_scorer.description}, {threads} threads"
        return FastestBatch(self.batch.passes, key)

    @cached_property
    def _files(self) -> Bundle:
        """The bundle as the backend is to see it."""
        return with_real_files(self._bundle) if self.backend.reads_graphs else self._bundle

    @cached_property
    def _unconditional(self) -> EncodedTexts:
        return self.encode_tokens(self._tokenize.empty())

    @cached_property
    def _adapter(self) -> dict[str, Array]:
        return adapter_feed(self._bundle)

    def engine(self, name: str) -> Engine:
        """The engine of a graph, compiled on first use.

        Args:
            name: name of the graph, such as "pair_scorer".

        Raises:
            EngineError: under the conditions of `compile`, or the self-check fails.
        """
        if not self._frugal and (known := self._engines.get(name)) is not None:
            return known
        with self._opening:
            self.require_usable()
            if self._frugal:
                # A scorer is closed only for the larger encoder, and if it is soon open again.
                alone = name == "text_encoder" and self.backend.cache_compiled
                for other in self._engines.keys() - {name}:
                    if other in _ENCODERS or alone:
                        self._engines.pop(other).close()
                        logger.info("closed the %s, which is not in use", other)
            if name not in self._engines:
                files = with_maps(self._files) if name == MAPS else self._files
                graph = files.manifest.graphs[name]
                opened = f"opened the {name} on {self.backend.name}"
                with timed(logger, opened), span("open", graph=name):
                    engine = open_engine(self.backend, files, name)
                try:
                    if self.self_check and name not in self._checked:
                        checked = f"checked the {name} with stored results"
                        with timed(logger, checked), span("open", "self-check", graph=name):
                            if name == MAPS:
                                method = self._manifest.method
                                self.self_check.require_maps(method, graph, engine, self._adapter)
                            else:
                                self.self_check.require(name, graph, engine, self._adapter)
                except BaseException:
                    engine.close()
                    raise
                self._engines[name] = engine
                self._checked.add(name)
            return self._engines[name]

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise and encode one or more texts.

        Raises:
            InputError: a text has no token that counts.
        """
        return self.encode_tokens(self._tokenize(texts))

    def words(self, text: str) -> tuple[Word, ...]:
        """Words of a text that count in its score; see `Tokenizer.words`."""
        return self._tokenize.words(text)

    def encode_tokens(self, tokens: Tokens) -> EncodedTexts:
        """Encode one or more tokenised texts."""
        count, states = len(tokens.input_ids), np.empty(0)
        for rows in _batches(count, self.batch.texts):
            ids = tokens.input_ids[rows]
            with self._in_use("text_encoder") as engine, span("text encoder", texts=len(ids)):
                part = engine.run({"input_ids": ids})["text_states"]
            if rows.start == 0:
                states = np.empty((count, *part.shape[1:]), part.dtype)
            states[rows] = part
        return EncodedTexts(states, tokens.mask)

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> Array:
        """Encode one or more images, uint8 (R, R, 3) each, to latents z (images, C, h, w)."""
        latents = []
        for rows in _batches(len(images), self.batch.images):
            pixels = np.stack(images[rows])
            with self._in_use("image_encoder") as engine, span("image encoder", images=len(pixels)):
                latents.append(engine.run({"pixels": pixels})["latent"])
        return np.concatenate(latents)

    @contextlib.contextmanager
    def _in_use(self, name: str) -> Iterator[Engine]:
        """The engine of a graph, which no other thread closes during the block."""
        with self._opening if self._frugal else contextlib.nullcontext():
            yield self.engine(name)

    def score(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda passes: None,
    ) -> NDArray[np.float32]:
        """Score pairs: attention, denoising term or both, as the bundle's method says.

        Args:
            latent: latents z, (images, C, h, w).
            texts: encoded texts, T of them.
            image_of: row in `latent` of each pair, (pairs,).
            text_of: row in `texts` of each pair, (pairs,).
            levels: indices of the noise levels to average over (Eq. 4).
            done: callback with the number of passes just computed.

        Returns:
            Scores of the pairs, (pairs,); NaN where the result is not finite.

        Raises:
            EngineError: the engine failed, or the unconditional text has no finite states.
        """
        return _finite_or_nan(
            self._score(latent, texts, image_of, text_of, levels, done, ())["score"]
        )

    def score_tokens(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda passes: None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score pairs and their tokens; arguments and errors are those of `score`.

        Returns:
            Scores of the pairs, (pairs,), and scores of their tokens, of which the attention score
            is the mean over counted tokens, (pairs, 77); NaN where the result is not finite.
        """
        kept = ("token_scores",)
        mean = self._score(latent, texts, image_of, text_of, levels, done, kept)
        return _finite_or_nan(mean["score"]), _finite_or_nan(mean["token_scores"])

    def _score(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        levels: NDArray[np.int32],
        done: Callable[[int], None],
        kept: tuple[str, ...],
    ) -> dict[str, NDArray[np.float64]]:
        """Scores, averaged over levels, with other outputs of the pair scorer that are kept."""
        method = self._manifest.method
        mean = self._mean_over_levels(latent, texts, image_of, text_of, levels, done, kept)
        score = mean["score"]
        if self._manifest.has_denoising_error:
            # The unconditional error does not depend on the text: once per image in use.
            images, place = np.unique(image_of, return_inverse=True)
            unconditional = self._unconditional
            if not unconditional.finite.all():
                raise EngineError(
                    self.complaint("text_encoder", "states of the unconditional text")
                )
            first = np.zeros_like(images)
            without = self._mean_over_levels(latent, unconditional, images, first, levels)
            d = without["denoising_error"][place] - mean["denoising_error"]
            score = d if method.score == "denoising" else score + method.denoising_weight * d
        return {**mean, "score": score}

    def attention_maps(
        self, latent: Array, texts: EncodedTexts, level: int
    ) -> list[NDArray[np.float32]]:
        """Maps that the score of one image and one text is pooled from, at one level.

        Args:
            latent: latent z of the image, (C, h, w).
            texts: states and mask of one text.
            level: index of the noise level.

        Returns:
            A of each scored layer, (heads, image_tokens, 77).

        Raises:
            InputError: the bundle has no maps graph.
            EngineError: the engine has no form of the maps graph, failed, or computed values that
                are not finite.
        """
        if not self.backend.reads_graphs:
            raise EngineError(
                f"{self.backend.name} opens no graph of attention maps: explain with another "
                "engine, such as onnxruntime or openvino"
            )
        with self._in_use(MAPS) as engine:
            feeds = {
                "latent": latent[None],
                "level": np.array([level], np.int32),
                "text_states": texts.states,
                "token_mask": texts.mask,
                **self._adapter,
            }
            with span("U-Net pass", "maps"):
                outputs = engine.run(feeds)
        graph = with_maps(self._bundle).manifest.graphs[MAPS]
        maps = [outputs[spec.name][0] for spec in graph.outputs]
        if not all(np.isfinite(it).all() for it in maps):
            used = engine.description
            advice = precision_advice(self.backend, self._manifest.precision, self._bundle.folder)
            raise EngineError(f"the attention maps have NaN or infinity ({used}). {advice}")
        return maps

    def score_matrix(
        self,
        latent: Array,
        texts: EncodedTexts,
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda scores: None,
        walked: Callable[[int], None] = lambda walks: None,
    ) -> NDArray[np.float32]:
        """Score every image against every text in matrix mode.

        Args:
            latent: latents z, (images, C, h, w).
            texts: encoded texts, T of them.
            levels: indices of the noise levels to average over (Eq. 4).
            done: callback with the number of scores just computed: one per image, text and level.
            walked: callback with the number of walks just made: one per image and level, and again
                for each batch of texts.

        Returns:
            Scores, (images, texts); NaN where the result is not finite.

        Raises:
            EngineError: the engine failed to run the matrix scorer.
        """
        image, level = np.repeat(np.arange(len(latent)), len(levels)), np.tile(levels, len(latent))
        scores = np.empty((len(level), len(texts.mask)), np.float32)
        walks, matches = self.batch.matrix
        for columns in _batches(len(texts.mask), matches):
            places, mask = np.arange(len(texts.mask))[columns], _narrow(texts.mask[columns])
            for rows in _batches(len(level), walks):
                with self._in_use("matrix_scorer") as engine:
                    feeds = {
                        "latent": rows_for(engine, latent, image[rows]),
                        "level": level[rows],
                        "text_states": rows_for(engine, texts.states, places),
                        "token_mask": mask,
                    }
                    with span("U-Net pass", "matrix", walks=len(level[rows]), texts=len(mask)):
                        outputs = engine.run(feeds)
                scores[rows, columns] = outputs["score"]
                done(outputs["score"].size)
                walked(len(level[rows]))
        by_level = scores.reshape(len(latent), len(levels), -1)
        return _finite_or_nan(by_level.mean(axis=1, dtype=np.float64))

    def require_finite(self, scores: NDArray[np.float32], mode: Mode = "pair") -> None:
        """Refuse scores with a NaN, because figures computed from them would be meaningless.

        Raises:
            EngineError: a score is NaN; the message names the engine and the remedy.
        """
        if not np.isfinite(scores).all():
            raise EngineError(self.complaint(f"{mode}_scorer", "a score"))

    def whole_batches(self, levels: int) -> int:
        """Number of pairs at some levels that fill whole batches, large enough for a journal.

        Scored in groups of this size, pairs fall into the same batches as all of them at once.
        """
        largest = self.batch.passes
        pairs = math.lcm(largest, levels) // levels
        # The unconditional denoising error is computed again per image in every part.
        wanted = 256 if self._manifest.has_denoising_error else 64
        return pairs * max(1, wanted // pairs)

    def complaint(self, graph: str, what: str) -> str:
        """Message that a graph computed a value that is not finite, with the remedy.

        Args:
            graph: name of the graph, such as "pair_scorer".
            what: the result that is not finite, such as "a score".
        """
        used: EngineDescription = getattr(self, f"_{graph}").description
        name = graph.replace("_", " ")
        advice = precision_advice(self.backend, self._manifest.precision, self._bundle.folder)
        return f"the {name} gave {what} with NaN or infinity ({used}). {advice}"

    def _mean_over_levels(
        self,
        latent: Array,
        texts: EncodedTexts,
        image_of: NDArray[np.intp],
        text_of: NDArray[np.intp],
        levels: NDArray[np.int32],
        done: Callable[[int], None] = lambda passes: None,
        kept: tuple[str, ...] = (),
    ) -> dict[str, NDArray[np.float64]]:
        """Outputs of the pair scorer, averaged over levels: (pairs,), or (pairs, 77) of tokens.

        Outputs with a number for each pair are all there; others are, if they are to be kept. A
        pair gets NaN if any of its outputs is not finite, token scores included, because engines
        treat NaN differently.
        """
        image, text = np.repeat(image_of, len(levels)), np.repeat(text_of, len(levels))
        level = np.tile(levels, len(image_of))  # (pairs * levels,)
        parts: dict[str, list[Array]] = {it: [] for it in ("score", "denoising_error", *kept)}
        for rows in self._passes.cut(len(level)):
            with self._in_use("pair_scorer") as engine:
                feeds = {
                    "latent": rows_for(engine, latent, image[rows]),
                    "level": level[rows],
                    "text_states": rows_for(engine, texts.states, text[rows]),
                    "token_mask": rows_for(engine, texts.mask, text[rows]),
                    **self._adapter,
                }
                with span("U-Net pass", "pair", passes=len(level[rows])):
                    outputs = engine.run(feeds)
            finite = np.logical_and.reduce([finite_rows(values) for values in outputs.values()])
            for name in parts.keys() & outputs.keys():
                parts[name].append(outputs[name].copy())
                parts[name][-1][~finite] = np.nan
            done(len(level[rows]))
        every = {name: np.concatenate(values) for name, values in parts.items() if values}
        return {
            name: it.reshape(-1, len(levels), *it.shape[1:]).mean(axis=1, dtype=np.float64)
            for name, it in every.items()
        }


def _narrow(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """A mask without the trailing tokens that count in no text."""
    counted = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
    return mask[:, : -(-counted // MASK_STEP) * MASK_STEP]


def finite_rows(values: Array) -> NDArray[np.bool_]:
    """Whether all numbers of each row are finite, bool (rows,)."""
    return np.array([np.isfinite(row).all() for row in values], np.bool_)


def precision_advice(backend: Backend, precision: Precision, bundle: Path) -> str:
    """Remedy for results that are not finite.

    Args:
        backend: backend that computed them.
        precision: precision of the bundle.
        bundle: folder of the bundle, shown in a command.
    """
    if backend.keeps_order_of:
        return f"Compute in FP32: --engine {backend.keeps_order_of}"
    if precision == "fp16":
        return "Use a bundle in full precision: dsd-trt export --precision fp32"
    return f"To see where it begins: dsd-trt ranges {bundle}"


def _finite_or_nan(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    narrow[~np.isfinite(narrow)] = np.nan
    return narrow


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
