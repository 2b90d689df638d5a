"""The scorer: images and texts in, matching scores out."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from dsd_trt.arguments import checked_flag, described
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Calibration, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.bundle.probability import Rounding, calibration_at, why_no_probability
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.choice import require_possible
from dsd_trt.errors import EngineError, ImageError, InputError
from dsd_trt.explained import explained
from dsd_trt.explanation import Explanation
from dsd_trt.failure import Failure
from dsd_trt.image.preprocess import image_identity
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import (
    Given,
    Job,
    Scorable,
    Scored,
    Tally,
    given_alike,
    name_of,
    unique_texts,
)
from dsd_trt.log import get_logger
from dsd_trt.match_probability import match_probability
from dsd_trt.mode import require_mode
from dsd_trt.pruned_search import ERROR
from dsd_trt.ranking import (
    RankedImage,
    RankedText,
    checked_count,
    checked_ids,
)
from dsd_trt.results import (
    PairScores,
    PairStream,
    Progress,
    ScoredImage,
    ScoreMatrix,
    ScoreStream,
)
from dsd_trt.scoring_arguments import (
    checked_error,
    checked_levels,
    checked_pairs,
    checked_text,
    checked_texts,
    former_top_k,
    level_indices,
    open_images,
)
from dsd_trt.session import open_session
from dsd_trt.signature import open_bundle
from dsd_trt.text_cache import DEFAULT_MB, TextCache
from dsd_trt.top_k import best_images, best_texts, search_images
from dsd_trt.words import Word

if TYPE_CHECKING:
    from dsd_trt.journal import Journal

logger = get_logger(__name__)


class Scorer:
    """Scores how well texts describe images, with one bundle on one engine.

    Open one with `Scorer.load`. A score depends only on its image and text, except for its last
    bits (below 1e-6 in FP32): engines round differently at other batch sizes and thread counts. The
    same call gives the same bytes in every run on one machine.

    Threads may share a scorer and get the same scores as a single thread. Runs of an engine take
    turns, because each one uses all cores: the throughput is that of one thread. While one thread
    waits for a run, the others decode images.

    Texts of earlier calls are kept encoded, see `text_cache_mb`.

    Processes cannot share a scorer; a forked child gets an error. Start processes with spawn and
    open a scorer in each.

    Memory and threads are released by `close`, by the end of a `with` block, or with the last
    reference.

    Args:
        bundle: the verified bundle to score with.
        engine: name of the backend; there is no fallback to another one. "auto" is the fastest that
            works here: TensorRT if the bundle has plans for this GPU, else "onnxruntime-cuda", else
            "openvino", else "onnxruntime". "onnxruntime-cuda" computes on an NVIDIA GPU in the
            bundle's precision; "onnxruntime" and "openvino" on the processor in FP32.
            "openvino-bf16" is twice as fast on CPUs with BF16, and refused where it would change
            the best text or image too often. "tensorrt" and "tensorrt-rtx" need plans compiled with
            `dsd-trt build`.
        memory_budget_mb: memory for activations, in MiB, see `batch_sizes`. None is 1024 on a
            processor, and two fifths of the free memory on a GPU. Weights come on top,
            and so do encoded texts of 77 D numbers each: 237 MB per 1,000 texts for Stable
            Diffusion 1.x in FP32. Images only add their results. On a processor, a budget below
            the size of a large bundle's weights also closes an encoder whenever another graph
            runs, and opens it again when it is needed.
        mode: "pair" runs the U-Net once per pair and level, as in the paper. "matrix" runs it once
            per image and level and is faster; its scores are not comparable with pair mode's, and
            the bundle must have a matrix scorer. "auto" is the mode the adapter was trained for,
            or "pair" for both or no adapter.
        tune: whether to find the fastest batch size during the first work, and remember it on this
            machine. Scores before and after differ in their last bits.
        self_check: whether each graph must reproduce the reference outputs stored in the bundle
            when it is opened: one run for a large model, a few for a small one. Without it, forged
            weights, a wrong plan, or a faulty driver or processor go unnoticed.
        device: number of the GPU to compute on, from 0, for engines of GPUs.
        threads: number of threads to compute with, for engines of the processor; None is all cores
            that the process may run on.
        text_cache_mb: memory for the states of texts of earlier calls, in MiB: a text that comes
            again is not encoded again. The last bits of its scores are those of the batch it was
            encoded in. 0 keeps nothing.
        cache_compiled: whether "openvino" and "openvino-bf16" keep the compiled models of a bundle
            with at least 500 MB of weights in the cache of this machine, up to
            `limits.COMPILED_BYTES`. They take gigabytes; later starts are faster, with half of the
            memory in pages of these files. Those of smaller bundles are always kept.

    Raises:
        EngineError: the engine is not installed, refuses the bundle's graphs, or fails the bundle's
            self-check.
        InputError: the bundle or the engine does not have this mode, or the engine no devices or
            threads.

    Attributes:
        bundle: the bundle it scores with.
        mode: the mode it scores in, "pair" or "matrix".
        text_cache: texts of earlier calls, with its hits and misses.
        rounding: what the rounding of "openvino-bf16" does to scores; None for other engines.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        memory_budget_mb: float | None = None,
        mode: Mode | Literal["auto"] = "auto",
        tune: bool = False,
        self_check: bool = True,
        device: int = 0,
        threads: int | None = None,
        text_cache_mb: float = DEFAULT_MB,
        cache_compiled: bool = False,
    ) -> None:
        if not isinstance(bundle, Bundle):
            raise InputError(
                f"Scorer takes an open bundle, got {described(bundle)}: Scorer.load opens one"
            )
        tune, self_check = checked_flag(tune, "tune"), checked_flag(self_check, "self_check")
        cache_compiled = checked_flag(cache_compiled, "cache_compiled")
        self.bundle = bundle
        self.text_cache: TextCache = TextCache(text_cache_mb)
        self._told_no_probability = False
        self._session = session = open_session(
            bundle,
            engine,
            memory_budget_mb,
            mode,
            tune,
            self_check,
            device,
            threads,
            cache_compiled,
        )
        self.mode: Mode = session.mode
        self.rounding: Rounding | None = session.rounding
        self._pipeline = session.pipeline
        self._jobs = JobScorer(session.pipeline, bundle.manifest, self.mode, self.text_cache)

    def close(self) -> None:
        """Release memory and threads, after the runs in progress.

        Closing again has no effect; scoring afterwards raises an EngineError.
        """
        self._pipeline.close()
        self.text_cache.clear()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "a scorer cannot be copied or sent to another process. Start processes with spawn, and "
            "open a Scorer in each"
        )

    def __repr__(self) -> str:
        return f"Scorer({str(self.bundle.folder)!r}: {self.engine}, {self.mode} mode)"

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        memory_budget_mb: float | None = None,
        mode: Mode | Literal["auto"] = "auto",
        tune: bool = False,
        require_signature: str | os.PathLike[str] | None = None,
        self_check: bool = True,
        device: int = 0,
        threads: int | None = None,
        text_cache_mb: float = DEFAULT_MB,
        cache_compiled: bool = False,
    ) -> Scorer:
        """Open a bundle: a folder, a repository on the Hugging Face Hub, or the demonstration's.

        Args:
            bundle: path of a folder, or a repository on the hub as "ORG/NAME" or
                "ORG/NAME@REVISION", downloaded unless it is in the hub's cache. None is the
                demonstration, "shapes".
            engine: name of the backend, as for `Scorer`.
            memory_budget_mb: memory for activations, in MiB, as for `Scorer`.
            mode: "pair", "matrix" or "auto", as for `Scorer`.
            tune: whether to find the fastest batch size, as for `Scorer`.
            require_signature: path of the public key (minisign.pub) that must have signed the
                bundle, see `dsd-trt sign`. None requires no signature.
            self_check: whether graphs must reproduce stored reference outputs, as for `Scorer`.
            device: number of the GPU to compute on, as for `Scorer`.
            threads: number of threads to compute with, as for `Scorer`.
            text_cache_mb: memory for texts of earlier calls, as for `Scorer`.
            cache_compiled: whether compiled models of large bundles are kept, as for `Scorer`.

        Raises:
            BundleError: there is no such bundle, it is damaged, the hub refuses to serve it, or it
                lacks the required signature.
            MissingExtraError: a repository is given without the extra "hub", or a key without the
                extra "sign".
            InputError: the bundle or the engine does not have this mode, or an argument cannot be
                used, as for `Scorer`.
            EngineError: the engine cannot be used, as for `Scorer`.
        """
        require_possible(engine, device, threads)
        require_mode(mode)
        tune, self_check = checked_flag(tune, "tune"), checked_flag(self_check, "self_check")
        opened = open_bundle(bundle_folder(bundle), require_signature)
        return cls(
            opened,
            engine,
            memory_budget_mb,
            mode,
            tune,
            self_check,
            device,
            threads,
            text_cache_mb,
            cache_compiled,
        )

    @property
    def manifest(self) -> Manifest:
        """The bundle's description of itself, from `bundle.json`."""
        return self.bundle.manifest

    @property
    def engine(self) -> EngineDescription:
        """Library, device and precision, as reported by the engine after compiling."""
        return self._session.engine

    @property
    def backend(self) -> str:
        """Name of the backend, such as "openvino"; with engine "auto", of the one chosen."""
        return self._pipeline.backend.name

    @property
    def why_engine(self) -> str:
        """With engine "auto": why faster engines were passed over; empty if it was named."""
        return self._session.why_engine

    @property
    def fingerprint(self) -> str:
        """All that scores depend on besides bundle, mode and inputs, to the last bit."""
        return self._session.fingerprint

    def score(
        self,
        images: str | os.PathLike[str] | Iterable[Scorable],
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        top_k: int | None = None,
        *,
        best: int | None = None,
        error: float = ERROR,
    ) -> ScoreMatrix:
        """Score every image against every text.

        Args:
            images: N paths, encoded bytes, PIL images, uint8 arrays or images of an index; or an
                `Index`, or the folder of one. Later ones are consumed and decoded in the
                background, a batch and two for each core ahead, and at most 256 MiB.
            texts: M descriptions, as a sequence or a 1-D array.
            levels: noise levels to average over, in (0, 1) and among the bundle's; None is all of
                them.
            progress: callback `(done, total)`, in pairs; `total` is None when unknown.
            top_k: number of best texts to find per image; a text that can no longer be among them
                is not scored at further levels, see `dsd_trt.search`. None scores every text.
            best: former name of `top_k`.
            error: accepted probability that an image loses one of its best texts, above 0 and at
                most 0.5; for `top_k`.

        Returns:
            An (N, M) matrix. Whatever cannot be scored has NaN and an error: an image that cannot
            be decoded, or an image, text or pair whose score is not finite. Probabilities are NaN
            where none were fitted to this score, see `calibration`.

        Raises:
            InputError: `texts` is empty or has an element that is not a string; a text has no token
                that counts, see `Tokenizer`; the bundle lacks a level; an index belongs to another
                image encoder; or a limit is exceeded (`dsd_trt.limits`).
            EngineError: the engine failed, the scorer is closed, or this process was forked from
                the one that opened it.
        """
        texts = checked_texts(texts)
        levels = None if levels is None else checked_levels(levels)
        stream = self.stream(images, texts, levels, progress, top_k, best=best, error=error)
        calibration = self.calibration(levels)
        errors, names, passes = list(stream.errors), list[str](), 0
        rows = array("f")  # grows in place: scores are never held twice
        for image in stream.images:
            names.append(image.image)
            errors += image.errors
            passes += image.passes
            rows.frombytes(image.scores.tobytes())
        matrix = np.asarray(rows).reshape(-1, len(texts))
        probabilities = match_probability(matrix, calibration)
        return ScoreMatrix(tuple(names), tuple(texts), matrix, probabilities, tuple(errors), passes)

    def stream(
        self,
        images: str | os.PathLike[str] | Iterable[Scorable],
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        top_k: int | None = None,
        journal: Journal | None = None,
        *,
        best: int | None = None,
        error: float = ERROR,
        tokens: bool = False,
    ) -> ScoreStream:
        """Score every image against every text, and yield the scores of each image when ready.

        Args:
            images: images to score, as for `score`.
            texts: M descriptions, as for `score`.
            levels: noise levels to average over; None is all of the bundle's.
            progress: callback `(done, total)`, in pairs, as for `score`.
            top_k: number of best texts to find per image, as for `score`.
            journal: record of the scores so far; what it already holds is not scored again.
            best: former name of `top_k`.
            error: accepted probability that an image loses one of its best texts, above 0 and at
                most 0.5; for `top_k`.
            tokens: whether to yield the scores of tokens too; in pair mode, without `top_k`.

        Returns:
            The images in order. Memory does not grow with their number.

        Raises:
            InputError: an argument cannot be used, as for `score`; or `tokens` in matrix mode or
                with `top_k`.
            EngineError: the engine cannot compute, as for `score`.
        """
        self._pipeline.require_usable()
        texts = checked_texts(texts)
        images = open_images(images, len(texts))
        total = len(images) * len(texts) if isinstance(images, Sequence) else None
        unique, columns = unique_texts(texts)
        top_k = former_top_k(top_k, best)
        level, search = self._level_indices(levels), None
        error = checked_error(error)
        if self._checked_tokens(tokens) and top_k is not None:
            raise InputError("a search scores no tokens: leave out top_k, or tokens")
        if top_k is not None:
            self._jobs.require_search(top_k)
            search = self._jobs.open_search("texts", level, top_k, error)
        tally = Tally(progress, total, len(level))
        encoded, errors = self._jobs.encode_texts(unique)

        def rows() -> Iterator[ScoredImage]:
            given = given_alike(images, columns)
            results = self._jobs.run(given, encoded, level, tally, search, journal, tokens=tokens)
            for job, it in results:
                failures = tuple(self._jobs.failures(job.name, texts, it.result))
                yield _of_image(job.name, it, len(texts), failures)
            if journal:
                journal.require_used()

        return ScoreStream(tuple(errors), rows())

    def score_pairs(
        self,
        pairs: Iterable[tuple[Scorable, str]],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
    ) -> PairScores:
        """Score given pairs; an image or a text that occurs in several is encoded once.

        Args:
            pairs: P tuples (image, text), with images as for `score`.
            levels: noise levels to average over; None is all of the bundle's.
            progress: callback `(done, total)`, in pairs, as for `score`.

        Returns:
            P scores in the order of the pairs. Whatever cannot be scored has NaN and an error, as
            for `score`; an image has one error however many pairs it is in.

        Raises:
            InputError: an argument cannot be used, as for `score`.
            EngineError: the engine cannot compute, as for `score`.
        """
        pairs = checked_pairs(pairs)
        levels = None if levels is None else checked_levels(levels)
        scores = np.full(len(pairs), np.nan, np.float32)
        stream = self.stream_pairs(pairs, levels, progress)
        calibration = self.calibration(levels)
        errors, names = list(stream.errors), [""] * len(pairs)
        for image, places in stream.images:
            errors += image.errors
            scores[places] = image.scores
            for place in places:
                names[place] = image.image
        texts = tuple(text for _, text in pairs)
        probabilities = match_probability(scores, calibration)
        return PairScores(tuple(names), texts, scores, probabilities, tuple(errors))

    def stream_pairs(
        self,
        pairs: Iterable[tuple[Scorable, str]],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        journal: Journal | None = None,
        *,
        tokens: bool = False,
    ) -> PairStream:
        """Score given pairs, and yield the scores of each image's pairs when ready.

        Args:
            pairs: P tuples (image, text), as for `score_pairs`.
            levels: noise levels to average over; None is all of the bundle's.
            progress: callback `(done, total)`, in pairs, as for `score`.
            journal: record of the scores so far, as for `stream`. Several calls may share one: each
                goes on where the one before it ended.
            tokens: whether to yield the scores of tokens too; in pair mode.

        Returns:
            The images in the order of their first pair, each with the positions of its pairs.

        Raises:
            InputError: an argument cannot be used, as for `score`; or `tokens` in matrix mode.
            EngineError: the engine cannot compute, as for `score`.
        """
        self._pipeline.require_usable()
        pairs = checked_pairs(pairs)
        unique, text_of = unique_texts([text for _, text in pairs])
        places: dict[object, list[int]] = {}  # positions of each image in `pairs`
        for place, (image, _) in enumerate(pairs):
            places.setdefault(image_identity(image), []).append(place)
        level = self._level_indices(levels)
        self._checked_tokens(tokens)
        tally = Tally(progress, len(pairs), len(level))
        encoded, errors = self._jobs.encode_texts(unique)

        def given() -> Iterator[Given]:
            for at in places.values():
                image = pairs[at[0]][0]
                # Errors are found by the image's name, so it is the same in all of its pairs.
                yield Given(image, Job(name_of(image, at[0]), text_of[at]))

        def rows() -> Iterator[tuple[ScoredImage, list[int]]]:
            results = self._jobs.run(given(), encoded, level, tally, journal=journal, tokens=tokens)
            for at, (job, it) in zip(places.values(), results, strict=True):
                of_image = [pairs[i][1] for i in at]
                failures = tuple(self._jobs.failures(job.name, of_image, it.result))
                yield _of_image(job.name, it, len(at), failures), at

        return PairStream(tuple(errors), rows())

    @overload
    def rank(
        self,
        text: str,
        images: str | os.PathLike[str] | Iterable[Scorable],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        prune: bool = False,
        *,
        ids: Sequence[Any] | None = None,
        error: float = ERROR,
    ) -> list[RankedImage]: ...
    @overload
    def rank(
        self,
        text: list[str] | tuple[str, ...] | NDArray[np.str_] | NDArray[np.object_],
        images: str | os.PathLike[str] | Iterable[Scorable],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        prune: bool = False,
        *,
        ids: Sequence[Any] | None = None,
        error: float = ERROR,
    ) -> list[list[RankedImage]]: ...
    def rank(
        self,
        text: str | list[str] | tuple[str, ...] | NDArray[np.str_] | NDArray[np.object_],
        images: str | os.PathLike[str] | Iterable[Scorable],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        prune: bool = False,
        *,
        ids: Sequence[Any] | None = None,
        error: float = ERROR,
    ) -> list[RankedImage] | list[list[RankedImage]]:
        """Order images by how well a text describes them; for several texts, once for each.

        Args:
            text: the description to rank images by, or a list of M descriptions. Images are then
                encoded once for all of them.
            images: images to rank, as for `score`. One that cannot be scored is left out with a
                logged warning.
            top_k: number of images to return per text; None is all. With it, memory does not grow
                with the number of images.
            levels: noise levels to average over; None is all of the bundle's.
            progress: callback `(done, total)`, in pairs, as for `score`.
            prune: whether to stop scoring an image once it can no longer reach the top K, see
                `dsd_trt.search`. All latents are then held in memory.
            ids: names of your own for the images, of any type and one each; None is none.
            error: accepted probability that a text loses one of its best images, above 0 and at
                most 0.5; for `prune`.

        Returns:
            Best image first; equal scores keep the order of the images. For a list of texts, one
            such list for each.

        Raises:
            InputError: an argument cannot be used, as for `score`; `prune` without `top_k`; or
                `ids` of another length than `images`.
            EngineError: the engine cannot compute, as for `score`.
        """
        top_k = self._checked_top_k(top_k, prune)
        error = checked_error(error)
        self._pipeline.require_usable()
        one = isinstance(text, (str, bytes)) or not hasattr(text, "__len__")
        texts = [checked_text(text, "text")] if one else checked_texts(text)
        images = open_images(images, len(texts))
        ids = checked_ids(ids, len(images) if isinstance(images, Sequence) else None, "images")
        levels = None if levels is None else checked_levels(levels)
        if prune and top_k:
            self._jobs.require_search(top_k)
            level, calibration = self._level_indices(levels), self.calibration(levels)
            found = search_images(
                self._jobs, texts, images, top_k, level, error, progress, calibration, ids
            )
        else:
            stream = self.stream(images, texts, levels, progress)
            found = best_images(stream, len(texts), top_k, self.calibration(levels), ids)
        return found[0] if one else found

    def rank_texts(
        self,
        images: str | os.PathLike[str] | Iterable[Scorable],
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        prune: bool = False,
        *,
        ids: Sequence[Any] | None = None,
        error: float = ERROR,
    ) -> list[list[RankedText]]:
        """Order texts by how well they describe an image, for each of the images.

        Args:
            images: N images, as for `score`.
            texts: M descriptions to rank, as for `score`. One that cannot be scored is left out
                with a logged warning.
            top_k: number of texts to return per image; None is all.
            levels: noise levels to average over; None is all of the bundle's.
            progress: callback `(done, total)`, in pairs, as for `score`.
            prune: whether to stop scoring a text once it can no longer reach the top K, see
                `dsd_trt.search`.
            ids: names of your own for the texts, of any type and one each; None is none.
            error: accepted probability that an image loses one of its best texts, as for `score`;
                for `prune`.

        Returns:
            N lists, the best text first; equal scores keep the order of the texts. The list of an
            image that cannot be scored is empty.

        Raises:
            InputError: an argument cannot be used, as for `rank`.
            EngineError: the engine cannot compute, as for `score`.
        """
        top_k = self._checked_top_k(top_k, prune)
        texts = checked_texts(texts)
        ids = checked_ids(ids, len(texts), "texts")
        levels = None if levels is None else checked_levels(levels)
        searched = top_k if prune else None
        stream = self.stream(images, texts, levels, progress, searched, error=error)
        return best_texts(stream, texts, top_k, self.calibration(levels), ids)

    @overload
    def explain(
        self,
        image: Scorable,
        text: str,
        levels: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> Explanation: ...
    @overload
    def explain(
        self,
        image: Scorable,
        text: list[str] | tuple[str, ...] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> list[Explanation]: ...
    def explain(
        self,
        image: Scorable,
        text: str | list[str] | tuple[str, ...] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> Explanation | list[Explanation]:
        """Say which words the score of an image and a text comes from, and where they were found.

        It runs the bundle's graph of attention maps once per level and pools the maps in numpy: the
        score is that of `score`, to 1e-5 in FP32.

        Args:
            image: image, as an element of the images of `score`.
            text: description, or a list of M descriptions of the image, which is then encoded once.
            levels: noise levels to average over; None is all of the bundle's.
            layer: scored layer that heat maps are of, by its index among the U-Net's
                cross-attention layers; None is all of them, weighted as in the score.
            head: head of a layer that heat maps are of; None is all of them.
            level: noise level that heat maps are of; None is the mean over `levels`.

        Returns:
            The explanation; for a list of texts, one for each.

        Raises:
            ImageError: the image cannot be decoded or encoded.
            InputError: an argument cannot be used, the scorer is in matrix mode, or the bundle has
                no maps graph (`dsd-trt export --maps`).
            EngineError: the engine cannot compute, as for `score`, or opens no maps graph.
        """
        one = isinstance(text, (str, bytes)) or not hasattr(text, "__len__")
        texts = [checked_text(text, "text")] if one else checked_texts(text)
        found = []
        for it in self.explain_each(image, texts, levels, layer=layer, head=head, level=level):
            if isinstance(it, Failure):
                raise EngineError(str(it))
            found.append(it)
        return found[0] if one else found

    def explain_each(
        self,
        image: Scorable,
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        level: float | None = None,
    ) -> Iterator[Explanation | Failure]:
        """Explain the texts of an image one by one, so memory holds the maps of one text.

        Args:
            image: image, as for `explain`.
            texts: M descriptions, as for `score`.
            levels: noise levels to average over, as for `explain`.
            layer: scored layer that heat maps are of, as for `explain`.
            head: head that heat maps are of, as for `explain`.
            level: noise level that heat maps are of, as for `explain`.

        Returns:
            An explanation for each text, computed when it is asked for; a failure for a text that
            the text encoder gives no finite states.

        Raises:
            ImageError: the image cannot be decoded or encoded; raised at once.
            InputError: an argument cannot be used, as for `explain`; raised at once.
            EngineError: the engine cannot compute, as for `explain`.
        """
        return explained(
            self._pipeline,
            self._jobs,
            self.bundle,
            self.mode,
            image,
            checked_texts(texts),
            self._level_indices(levels),
            self.calibration(levels),
            {"layer": layer, "head": head, "level": level},
        )

    def words(self, text: str) -> tuple[Word, ...]:
        """Words of a text that count in its score, each with its tokens, in order.

        Tokens of one word are those that the tokenizer split it into.

        Args:
            text: the text, as for `score`.

        Raises:
            InputError: it is no text, or has no token that counts.
        """
        return self._pipeline.words(checked_text(text, "text"))

    def _checked_tokens(self, tokens: bool) -> bool:
        """Whether scores of tokens are asked for, which matrix mode does not have."""
        if checked_flag(tokens, "tokens") and self.mode == "matrix":
            raise InputError(
                "matrix mode computes no scores of tokens: open the scorer with mode 'pair', or "
                "leave out tokens"
            )
        return tokens

    @staticmethod
    def _checked_top_k(top_k: int | None, prune: bool) -> int | None:
        checked_flag(prune, "prune")
        if top_k is not None:
            return checked_count(top_k, "top_k")
        if prune:
            raise InputError("pruning looks for the best: say how many with top_k")
        return None

    def _level_indices(self, levels: Sequence[float] | None) -> NDArray[np.int32]:
        """Indices of the given levels, as for `level_indices`."""
        return level_indices(self.manifest, levels)

    def _levels(self, levels: Sequence[float] | None) -> list[float]:
        """The given levels in the bundle's order, each once."""
        known = self.manifest.method.noise_levels.fractions
        return [known[i] for i in self._level_indices(levels)]

    def probability(
        self, score: NDArray[np.float32], levels: Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Match probability of scores f: sigmoid(a f + b), with the bundle's calibration (a, b).

        Args:
            score: scores of any shape.
            levels: noise levels that the scores are averaged over, as for `score`.

        Returns:
            Probabilities, of the same shape; NaN where none were fitted, see `calibration`.

        Raises:
            InputError: the scores are not numbers, or the bundle lacks a level.
        """
        try:
            scores = np.asarray(score, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"scores must be numbers, got {type(score).__name__}") from None
        return match_probability(scores, self.calibration(levels))

    def calibration(self, levels: Sequence[float] | None = None) -> Calibration | None:
        """The (a, b) of the match probability of this scorer's scores; None if none were fitted.

        (a, b) hold for one mode, and for the mean over all of the bundle's noise levels; in BF16,
        if rounding moves no probability by more than 0.05. A bundle without a few-shot adapter has
        none until `dsd-trt calibrate` fits them. The first call of a scorer that finds none logs a
        warning with the remedy.

        Args:
            levels: noise levels that scores are averaged over, as for `score`; None is all.

        Raises:
            InputError: the bundle lacks a level.
        """
        found = calibration_at(self.manifest, self.mode, self._levels(levels), self.rounding)
        if found is None and not self._told_no_probability:
            self._told_no_probability = True
            logger.warning("%s", self.why_no_probability(levels))
        return found

    def why_no_probability(self, levels: Sequence[float] | None = None) -> str:
        """Why scores have no match probability, and what would give one; "" if they have one.

        Args:
            levels: noise levels that scores are averaged over, as for `score`; None is all.

        Raises:
            InputError: the bundle lacks a level.
        """
        used, folder = self._levels(levels), str(self.bundle.folder)
        return why_no_probability(self.manifest, self.mode, used, folder, self.rounding)


def _of_image(name: str, scored: Scored, texts: int, failures: tuple[Failure, ...]) -> ScoredImage:
    """What a stream yields of one image."""
    tokens = None if isinstance(scored.result, ImageError) else scored.result.tokens
    return ScoredImage(name, _scores(scored, texts), failures, scored.passes, tokens)


def _scores(scored: Scored, texts: int) -> NDArray[np.float32]:
    """Scores of one image's texts, (texts,); NaN if the image has no latent."""
    if isinstance(scored.result, ImageError):
        return np.full(texts, np.nan, np.float32)
    return scored.result.scores
