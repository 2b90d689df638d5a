"""The scorer: images and texts in, matching scores out."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle import Bundle, bundle_folder, read_bundle
from dsd_trt.engine import BF16, EngineDescription, require_engine
from dsd_trt.errors import ImageError, InputError
from dsd_trt.image import image_identity
from dsd_trt.jobs import (
    Job,
    Progress,
    Scorable,
    Tally,
    checked_pairs,
    checked_text,
    checked_texts,
    decoded_ahead,
    name_of,
    open_images,
    unique_texts,
)
from dsd_trt.manifest import Manifest, Mode
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import EncodedTexts, Pipeline, match_probability
from dsd_trt.results import Failure, PairScores, RankedImage, ScoreMatrix
from dsd_trt.search import eliminate

logger = logging.getLogger(__name__)


class Scorer:
    """Scores how well texts describe images, with one bundle on one engine.

    `Scorer.load` opens one. A score depends on its image and text alone, not on what else is
    scored along with them.

    Args:
        bundle: a verified bundle.
        engine: "auto" (OpenVINO where it is installed, else ONNX Runtime), "onnxruntime",
            "openvino", "openvino-bf16" (twice as fast where the processor has it; refused where
            scores change their order), or, with plans that `dsd-trt build` compiled, "tensorrt" or
            "tensorrt-rtx". The one that is asked for is used, or this fails.
        memory_budget_mb: for activations, in MiB, see `batch_sizes`. Weights come on top, and so
            do the encoded texts, 77 D numbers each: 237 MB for 1,000 of Stable Diffusion 1.x in
            FP32. How many images there are costs nothing but the results.
        mode: "pair", one pass of the U-Net a pair, as the paper has it; "matrix", one an image,
            another and faster score, where the bundle has it; or "auto", the one the adapter
            was trained for, "pair" if for both or none.

    Raises:
        EngineError: the engine is not installed or refuses the bundle's graphs.
        InputError: the bundle or the engine has no such mode.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        memory_budget_mb: float = 1024,
        mode: Mode | Literal["auto"] = "auto",
    ) -> None:
        self.bundle = bundle
        self.mode = choose_mode(bundle.manifest, mode, engine)
        self._pipeline = Pipeline(bundle, engine, memory_budget_mb)
        if engine == BF16:
            from dsd_trt.bfloat16 import guarded  # draws; no other engine has to wait for that

            self._engine = guarded(bundle, self.mode, self._pipeline, memory_budget_mb)
        else:
            self._engine = self._pipeline.compile(self.mode)

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        memory_budget_mb: float = 1024,
        mode: Mode | Literal["auto"] = "auto",
    ) -> Scorer:
        """Open a bundle's folder, or the bundle that comes with the package.

        Args:
            bundle: the folder; None is the embedded "shapes" demonstration.
            engine: as for `Scorer`.
            memory_budget_mb: as for `Scorer`.
            mode: as for `Scorer`.

        Raises:
            BundleError: no bundle there, or it is damaged.
            InputError: as for `Scorer`.
            EngineError: the engine is not installed or refuses the bundle's graphs.
        """
        require_engine(engine)
        return cls(read_bundle(bundle_folder(bundle)), engine, memory_budget_mb, mode)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def engine(self) -> EngineDescription:
        """Library, device and precision that scoring really got."""
        return self._engine

    def score(
        self,
        images: str | os.PathLike[str] | Iterable[Scorable],
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        best: int | None = None,
    ) -> ScoreMatrix:
        """Score every image against every text.

        Args:
            images: N paths, encoded bytes, PIL images, uint8 arrays or images of an index; taken
                batch by batch, the next of which is decoded in the background. Or an `Index`, or
                the folder of one.
            texts: M descriptions, in a sequence or a 1-D array.
            levels: noise levels to average over, among the bundle's; None is all of them.
            progress: told as pairs are done.
            best: look for so many best texts of each image, and give up on texts that will not be
                among them after as few levels as possible, see `dsd_trt.search`; None scores all.

        Returns:
            The (N, M) matrix; an image that cannot be decoded has a row of NaN and an error.

        Raises:
            InputError: no texts; something that is no string, by its place; a text in which no
                token counts (a blank one, where words alone count, see `Tokenizer`); a level the
                bundle lacks; or an index of another image encoder.
        """
        texts = checked_texts(texts)
        images = open_images(images)
        total = len(images) * len(texts) if isinstance(images, Sequence) else None
        unique, columns = unique_texts(texts)
        jobs = (Job(image, columns) for image in images)
        names: list[str] = []
        rows = array("f")  # grows in place: nothing is held twice, however many images there are
        errors: list[Failure] = []
        if best is not None:
            self._require_search(best)
        tally = Tally(progress, total, len(self._level_indices(levels)))
        for job, scores in self._run(jobs, unique, levels, tally, best):
            names.append(name_of(job.image, len(names)))
            if isinstance(scores, ImageError):
                errors.append(Failure(names[-1], str(scores)))
                scores = np.full(len(texts), np.nan, np.float32)
            rows.frombytes(scores.tobytes())
        matrix = np.asarray(rows).reshape(-1, len(texts))
        return ScoreMatrix(
            tuple(names),
            tuple(texts),
            matrix,
            self._probability(matrix),
            tuple(errors),
            tally.passes,
        )

    def score_pairs(
        self,
        pairs: Iterable[tuple[Scorable, str]],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
    ) -> PairScores:
        """Score chosen pairs; an image or a text that occurs in several is encoded once.

        Args:
            pairs: P images, each with a text.
            levels: as for `score`.
            progress: as for `score`.

        Returns:
            The (P,) scores in the order of the pairs; an image that cannot be decoded has NaN in
            all of its pairs and one error.

        Raises:
            InputError: as for `score`.
        """
        pairs = checked_pairs(pairs)
        unique, text_of = unique_texts([text for _, text in pairs])
        names = [name_of(image, place) for place, (image, _) in enumerate(pairs)]
        places: dict[object, list[int]] = {}  # where in `pairs` each image occurs
        for place, (image, _) in enumerate(pairs):
            places.setdefault(image_identity(image), []).append(place)
        jobs = (Job(pairs[at[0]][0], text_of[at]) for at in places.values())
        scores = np.full(len(pairs), np.nan, np.float32)
        errors: list[Failure] = []
        tally = Tally(progress, len(pairs), len(self._level_indices(levels)))
        results = self._run(jobs, unique, levels, tally)
        for at, (_, result) in zip(places.values(), results, strict=True):
            if isinstance(result, ImageError):
                errors.append(Failure(names[at[0]], str(result)))
            else:
                scores[at] = result
        texts = tuple(text for _, text in pairs)
        return PairScores(tuple(names), texts, scores, self._probability(scores), tuple(errors))

    def rank(
        self,
        text: str,
        images: str | os.PathLike[str] | Iterable[Scorable],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        prune: bool = False,
    ) -> list[RankedImage]:
        """Order images by how well a text describes them.

        Args:
            text: the description.
            images: as for `score`; one that cannot be decoded is left out with a logged warning.
            top_k: how many to return; None is all.
            levels: as for `score`.
            progress: as for `score`.
            prune: give up on images that will not be among the `top_k` after as few levels as
                possible, see `dsd_trt.search`. All latents are held in memory.

        Returns:
            Best first; equal scores in the order of the images.

        Raises:
            InputError: as for `score`.
        """
        if prune and top_k is None:
            raise InputError("pruning looks for the best: say how many with top_k")
        text = checked_text(text, "text")
        if prune and top_k:
            matrix = self._search_images(text, images, top_k, levels, progress)
        else:
            matrix = self.score(images, [text], levels, progress)
        for failure in matrix.errors:
            logger.warning("%s is left out of the ranking: %s", failure.image, failure.reason)
        scores, probabilities = matrix.scores[:, 0], matrix.probabilities[:, 0]
        order = [i for i in np.argsort(-scores, kind="stable").tolist() if not np.isnan(scores[i])]
        return [
            RankedImage(i, matrix.images[i], float(scores[i]), float(probabilities[i]))
            for i in order[:top_k]
        ]

    def _search_images(
        self,
        text: str,
        images: str | os.PathLike[str] | Iterable[Scorable],
        best: int,
        levels: Sequence[float] | None,
        progress: Progress | None,
    ) -> ScoreMatrix:
        """Scores of the best images, and of others that came close; NaN for the rest."""
        self._require_search(best)
        level = self._level_indices(levels)
        names: list[str] = []
        errors: list[Failure] = []
        places: list[int] = []
        latents: list[NDArray[np.generic]] = []
        jobs = (Job(image, np.zeros(1, np.intp)) for image in open_images(images))
        for chunk in decoded_ahead(jobs, self.manifest, self._pipeline.batch.images):
            readable = []
            for job, pixels in chunk:
                names.append(name_of(job.image, len(names)))
                if isinstance(pixels, ImageError):
                    errors.append(Failure(names[-1], str(pixels)))
                else:
                    readable.append(pixels)
                    places.append(len(names) - 1)
            if readable:
                latents.extend(self._latents(readable))
        scores = np.full(len(names), np.nan, np.float32)
        tally = Tally(progress, len(names), len(level))
        if latents:
            encoded = self._pipeline.encode_texts([text])
            scores[places] = self._search(np.stack(latents), encoded, level, tally, best)
        matrix = scores[:, None]
        return ScoreMatrix(
            tuple(names), (text,), matrix, self._probability(matrix), tuple(errors), tally.passes
        )

    def _run(
        self,
        jobs: Iterable[Job],
        texts: Sequence[str],
        levels: Sequence[float] | None,
        tally: Tally,
        best: int | None = None,
    ) -> Iterator[tuple[Job, NDArray[np.float32] | ImageError]]:
        """Score each job's image against its texts, a batch of images at a time.

        Yields:
            Every job in order, with f for each of its texts or why its image cannot be decoded.
        """
        if not texts:
            return
        level = self._level_indices(levels)
        encoded = self._pipeline.encode_texts(texts)
        for chunk in decoded_ahead(jobs, self.manifest, self._pipeline.batch.images):
            readable = [(job, it) for job, it in chunk if not isinstance(it, ImageError)]
            scores = iter(self._score_readable(readable, encoded, level, tally, best))
            for job, pixels in chunk:
                if isinstance(pixels, ImageError):
                    tally.skip(len(job.texts) * len(level))
                    yield job, pixels
                else:
                    yield job, next(scores)

    def _score_readable(
        self,
        jobs: Sequence[tuple[Job, NDArray[Any]]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        best: int | None,
    ) -> list[NDArray[np.float32]]:
        """Encode each job's pixels once, score all levels, and average over them (Eq. 4)."""
        if not jobs:
            return []
        latent = self._latents([pixels for _, pixels in jobs])
        if self.mode == "matrix":
            return self._match(latent, [job.texts for job, _ in jobs], texts, level, tally)
        if best is not None:
            return [
                self._search(z[None], texts[job.texts], level, tally, best)
                for z, (job, _) in zip(latent, jobs, strict=True)
            ]
        counts = [len(job.texts) for job, _ in jobs]
        image_of = np.repeat(np.arange(len(jobs)), counts)  # (pairs,)
        text_of = np.concatenate([job.texts for job, _ in jobs])  # (pairs,)
        scores = self._pipeline.score(latent, texts, image_of, text_of, level, tally.add)
        return np.split(scores, np.cumsum(counts)[:-1])

    def _search(
        self,
        latent: NDArray[np.generic],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        best: int,
    ) -> NDArray[np.float32]:
        """Scores of the best candidates: texts of the one image, or images of the one text."""
        images, count = len(latent), max(len(latent), len(texts.mask))
        before = tally.triples

        def score_at(candidates: NDArray[np.intp], place: int) -> NDArray[np.float32]:
            one = np.zeros_like(candidates)
            image_of, text_of = (one, candidates) if images == 1 else (candidates, one)
            at = level[place : place + 1]
            return self._pipeline.score(latent, texts, image_of, text_of, at, tally.add)

        scores = eliminate(score_at, count, len(level), best)
        tally.skip(count * len(level) - (tally.triples - before))
        return scores

    def _require_search(self, best: int) -> None:
        if best < 1:
            raise InputError("look for one best candidate at least")
        if self.mode == "matrix":
            raise InputError("matrix mode scores everything at once: there is nothing to prune")

    def _match(
        self,
        latent: NDArray[np.generic],
        texts_of: Sequence[NDArray[np.intp]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
    ) -> list[NDArray[np.float32]]:
        """Scores in matrix mode: at once where all images have the same texts."""
        if all(np.array_equal(of_image, texts_of[0]) for of_image in texts_of):
            matrix = self._pipeline.score_matrix(latent, texts[texts_of[0]], level, tally.add)
            return list(matrix)
        return [
            self._pipeline.score_matrix(z[None], texts[of_image], level, tally.add)[0]
            for z, of_image in zip(latent, texts_of, strict=True)
        ]

    def _latents(self, images: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Encode pixels; what is no pixels comes from an index, and is encoded already."""
        pixels = [image for image in images if image.dtype == np.uint8]
        encoded = iter(self._pipeline.encode_images(pixels) if pixels else ())
        return np.stack([next(encoded) if it.dtype == np.uint8 else it for it in images])

    def _level_indices(self, levels: Sequence[float] | None) -> NDArray[np.int32]:
        """Where the levels asked for stand in the bundle, in its order, each once."""
        known = self.manifest.method.noise_levels.fractions
        wanted = known if levels is None else levels
        for s in wanted:
            if s not in known:
                raise InputError(
                    f"the bundle has no noise level {s}; it has {', '.join(map(str, known))}"
                )
        if len(wanted) == 0:
            raise InputError("no noise level to score at")
        return np.array([i for i, s in enumerate(known) if s in wanted], np.int32)

    def _probability(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        manifest = self.manifest
        calibration = manifest.calibration
        if self.mode == "matrix" and manifest.matrix is not None:
            calibration = manifest.matrix.calibration
        return match_probability(score, calibration)
