"""The scorer: images and texts in, matching scores out."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle import Bundle, read_bundle
from dsd_trt.engine import EngineDescription, require_engine
from dsd_trt.errors import BundleError, ImageError, InputError
from dsd_trt.image import ImageSource, image_identity, preprocess
from dsd_trt.manifest import Manifest
from dsd_trt.pipeline import EncodedTexts, Pipeline, match_probability
from dsd_trt.results import Failure, PairScores, RankedImage, ScoreMatrix

logger = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[int, int | None], None]
"""Told, as pairs are done, how many are, and of how many where that is known."""


class Scorer:
    """Scores how well texts describe images, with one bundle on one engine.

    `Scorer.load` opens one. A score depends on its image and text alone, not on what else is
    scored along with them.

    Args:
        bundle: a verified bundle.
        engine: "auto" (OpenVINO where it is installed, else ONNX Runtime), "onnxruntime",
            "openvino", or, with plans that `dsd-trt build` compiled, "tensorrt" or
            "tensorrt-rtx". The one that is asked for is used, or this fails.
        memory_budget_mb: for activations, in MiB, see `batch_sizes`. Weights come on top, and so
            do the encoded texts: 77 D numbers each.

    Raises:
        EngineError: the engine is not installed or refuses the bundle's graphs.
    """

    def __init__(
        self, bundle: Bundle, engine: str = "auto", memory_budget_mb: float = 1024
    ) -> None:
        self.bundle = bundle
        self._pipeline = Pipeline(bundle, engine, memory_budget_mb)
        self._engine = self._pipeline.compile()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        memory_budget_mb: float = 1024,
    ) -> Scorer:
        """Open a bundle's folder, or the bundle that comes with the package.

        Args:
            bundle: the folder; None is the embedded "shapes" demonstration.
            engine: as for `Scorer`.
            memory_budget_mb: as for `Scorer`.

        Raises:
            BundleError: no bundle there, or it is damaged.
            EngineError: the engine is not installed or refuses the bundle's graphs.
        """
        require_engine(engine)
        return cls(read_bundle(_bundle_folder(bundle)), engine, memory_budget_mb)

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
        images: Iterable[ImageSource],
        texts: Sequence[str],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
    ) -> ScoreMatrix:
        """Score every image against every text.

        Args:
            images: N paths, encoded bytes, PIL images or uint8 arrays; taken a batch at a time.
            texts: M descriptions.
            levels: noise levels to average over, among the bundle's; None is all of them.
            progress: told as pairs are done.

        Returns:
            The (N, M) matrix; an image that cannot be decoded has a row of NaN and an error.

        Raises:
            InputError: no texts, a text without words, or a level the bundle lacks.
        """
        if isinstance(images, (str, bytes, os.PathLike)) or isinstance(texts, str) or not texts:
            raise InputError("images and texts are sequences, and there must be a text")
        total = len(images) * len(texts) if isinstance(images, Sequence) else None
        unique, columns = _unique(texts)
        jobs = (_Job(image, columns) for image in images)
        names: list[str] = []
        rows: list[NDArray[np.float32]] = []
        errors: list[Failure] = []
        for job, scores in self._run(jobs, unique, levels, progress, total):
            names.append(_name(job.image, len(names)))
            if isinstance(scores, ImageError):
                errors.append(Failure(names[-1], str(scores)))
                scores = np.full(len(texts), np.nan, np.float32)
            rows.append(scores)
        matrix = np.stack(rows) if rows else np.empty((0, len(texts)), np.float32)
        return ScoreMatrix(
            tuple(names), tuple(texts), matrix, self._probability(matrix), tuple(errors)
        )

    def score_pairs(
        self,
        pairs: Iterable[tuple[ImageSource, str]],
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
        pairs = list(pairs)
        unique, text_of = _unique([text for _, text in pairs])
        names = [_name(image, place) for place, (image, _) in enumerate(pairs)]
        places: dict[object, list[int]] = {}  # where in `pairs` each image occurs
        for place, (image, _) in enumerate(pairs):
            places.setdefault(image_identity(image), []).append(place)
        jobs = (_Job(pairs[at[0]][0], text_of[at]) for at in places.values())
        scores = np.full(len(pairs), np.nan, np.float32)
        errors: list[Failure] = []
        results = self._run(jobs, unique, levels, progress, len(pairs))
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
        images: Iterable[ImageSource],
        top_k: int | None = None,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
    ) -> list[RankedImage]:
        """Order images by how well a text describes them.

        Args:
            text: the description.
            images: as for `score`; one that cannot be decoded is left out with a logged warning.
            top_k: how many to return; None is all.
            levels: as for `score`.
            progress: as for `score`.

        Returns:
            Best first; equal scores in the order of the images.

        Raises:
            InputError: as for `score`.
        """
        matrix = self.score(images, [text], levels, progress)
        for failure in matrix.errors:
            logger.warning("%s is left out of the ranking: %s", failure.image, failure.reason)
        scores, probabilities = matrix.scores[:, 0], matrix.probabilities[:, 0]
        order = [i for i in np.argsort(-scores, kind="stable").tolist() if not np.isnan(scores[i])]
        return [
            RankedImage(i, matrix.images[i], float(scores[i]), float(probabilities[i]))
            for i in order[:top_k]
        ]

    def _run(
        self,
        jobs: Iterable[_Job],
        texts: Sequence[str],
        levels: Sequence[float] | None,
        progress: Progress | None,
        total: int | None,
    ) -> Iterator[tuple[_Job, NDArray[np.float32] | ImageError]]:
        """Score each job's image against its texts, a batch of images at a time.

        Yields:
            Every job in order, with f for each of its texts or why its image cannot be decoded.
        """
        if not texts:
            return
        level = self._level_indices(levels)
        encoded = self._pipeline.encode_texts(texts)
        tally = _Tally(progress, total, len(level))
        jobs = iter(jobs)
        while chunk := list(itertools.islice(jobs, self._pipeline.batch.images)):
            decoded = [self._decode(job.image) for job in chunk]
            readable = [
                (job, pixels)
                for job, pixels in zip(chunk, decoded, strict=True)
                if not isinstance(pixels, ImageError)
            ]
            scores = iter(self._score_readable(readable, encoded, level, tally))
            for job, pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, ImageError):
                    tally.add(len(job.texts) * len(level))
                    yield job, pixels
                else:
                    yield job, next(scores)

    def _score_readable(
        self,
        jobs: Sequence[tuple[_Job, NDArray[np.uint8]]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: _Tally,
    ) -> list[NDArray[np.float32]]:
        """Encode each job's pixels once, score all levels, and average over them (Eq. 4)."""
        if not jobs:
            return []
        latent = self._pipeline.encode_images([pixels for _, pixels in jobs])
        counts = [len(job.texts) for job, _ in jobs]
        image_of = np.repeat(np.arange(len(jobs)), counts)  # (pairs,)
        text_of = np.concatenate([job.texts for job, _ in jobs])  # (pairs,)
        scores = self._pipeline.score(latent, texts, image_of, text_of, level, tally.add)
        return np.split(scores, np.cumsum(counts)[:-1])

    def _decode(self, image: ImageSource) -> NDArray[np.uint8] | ImageError:
        to = self.manifest.preprocessing
        try:
            return preprocess(image, to.resolution, to.resize)
        except ImageError as error:
            return error

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
        return match_probability(score, self.manifest.calibration)


@dataclass(frozen=True)
class _Job:
    """One image and the texts to score it against, by their place among the encoded texts."""

    image: ImageSource
    texts: NDArray[np.intp]


class _Tally:
    """Counts scored (image, text, level) triples and reports whole pairs."""

    def __init__(self, progress: Progress | None, total: int | None, levels: int) -> None:
        self._progress, self._total, self._levels = progress, total, levels
        self._triples = 0

    def add(self, triples: int) -> None:
        self._triples += triples
        if self._progress:
            self._progress(self._triples // self._levels, self._total)


def _unique(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Texts without repetition, and where each of the originals is found among them."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(place), np.array([place[text] for text in texts], np.intp)


def _name(image: ImageSource, position: int) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {position}"


def _bundle_folder(bundle: str | os.PathLike[str] | None) -> Path:
    if bundle is None:
        return Path(str(resources.files("dsd_trt") / "data" / "shapes-bundle"))
    folder = Path(bundle)
    if not folder.is_dir():
        raise BundleError(
            f"no folder {str(folder)!r}. A bundle is a folder with a bundle.json; bundles cannot "
            "be fetched by name yet. Make one with: dsd-trt export --out BUNDLE"
        )
    return folder
