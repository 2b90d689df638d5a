"""The best images of each text, and the best texts of each image, while scores are computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import Calibration
from dsd_trt.errors import ImageError
from dsd_trt.job_scorer import JobScorer, Sought
from dsd_trt.jobs import Scorable, Tally, TextScores, given_alike
from dsd_trt.log import get_logger
from dsd_trt.match_probability import match_probability
from dsd_trt.ranking import BestImages, RankedImage, RankedText, best_first, checked_ids, ranked
from dsd_trt.results import Failure, Progress, ScoreMatrix, ScoreStream

logger = get_logger(__name__)

_WALKED = 256  # images whose estimates are computed in one call


def best_images(
    stream: ScoreStream,
    texts: int,
    top_k: int | None,
    calibration: Calibration | None,
    ids: Sequence[Any] | None,
) -> list[list[RankedImage]]:
    """The best images of each text, of all of their scores.

    Args:
        stream: images with their scores; those that have none are logged.
        texts: number of texts of each image.
        top_k: number of images to keep per text; None is all.
        calibration: (a, b) of the match probabilities; None if there are none.
        ids: names of the caller's own for the images; None if none were given.

    Raises:
        InputError: `ids` are not one for each image.
    """
    _log_left_out(stream.errors)
    best = BestImages(texts, top_k)
    for image in stream.images:
        _log_left_out(image.errors)
        best.add(image.image, image.scores)
    ids = checked_ids(ids, len(best), "images")
    return [
        [
            RankedImage(at, name, float(f), float(p), ids[at] if ids else None)
            for (at, name, f), p in zip(
                found,
                match_probability(np.array([f for *_, f in found], np.float32), calibration),
                strict=True,
            )
        ]
        for found in best.rankings()
    ]


def best_texts(
    stream: ScoreStream,
    texts: Sequence[str],
    top_k: int | None,
    calibration: Calibration | None,
    ids: Sequence[Any] | None,
) -> list[list[RankedText]]:
    """The best texts of each image; arguments as for `best_images`, `ids` for the texts."""
    _log_left_out(stream.errors)
    rankings = []
    for image in stream.images:
        _log_left_out(image.errors)
        f, p = image.scores, match_probability(image.scores, calibration)
        rankings.append(ranked(RankedText, best_first(f, top_k), texts, f, p, ids))
    return rankings


def search_images(
    jobs: JobScorer,
    texts: Sequence[str],
    images: Iterable[Scorable],
    top_k: int,
    level: NDArray[np.int32],
    error: float,
    progress: Progress | None,
    calibration: Calibration | None,
    ids: Sequence[Any] | None,
) -> list[list[RankedImage]]:
    """The best images of each text; those that can no longer be among them are not scored on.

    Args:
        jobs: scorer of images and texts.
        texts: texts to rank images for.
        images: images to rank; their latents are held in memory.
        top_k: number of images to find per text.
        level: indices of the noise levels to average over.
        error: accepted probability that a text loses one of its best images.
        progress: callback `(done, total)`, in pairs.
        calibration: (a, b) of the match probabilities; None if there are none.
        ids: names of the caller's own for the images; None if none were given.

    Raises:
        InputError: `ids` are not one for each image.
        EngineError: the engine failed to compute.
    """
    encoded, errors = jobs.encode_texts(texts)
    names, latents = _latents_of(jobs, images, errors)
    places, stacked = list(latents), np.stack(list(latents.values())) if latents else np.empty(0)
    scores = np.full((len(names), len(texts)), np.nan, np.float32)
    tally = Tally(progress, scores.size, len(level))
    tally.skip((len(names) - len(places)) * len(texts) * len(level))
    searched = np.flatnonzero(encoded.finite) if latents else np.empty(0, np.intp)
    tally.skip(len(places) * (len(texts) - len(searched)) * len(level))
    # One text alone would not pay for a walk through every image.
    search = jobs.open_search("images" if len(searched) > 1 else None, level, top_k, error)
    estimates: NDArray[np.float32] | None = None  # (images, texts)
    if len(searched) and search.turn(len(places)) != "all":
        groups = range(0, len(places), _WALKED)
        known = encoded[searched]
        estimates = np.concatenate(
            [jobs.estimates(stacked[start : start + _WALKED], known, tally) for start in groups]
        )
    walks, every, start = tally.passes, np.arange(len(places)), 0
    while start < len(searched):
        columns = searched[start : start + search.together(len(places))]
        turns = search.turns([len(places)] * len(columns))
        sought = [
            Sought(
                *(every, np.full_like(every, column), turn),
                None if turn == "all" or estimates is None else estimates[:, start + number],
            )
            for number, (column, turn) in enumerate(zip(columns, turns, strict=True))
        ]
        start += len(columns)
        results = jobs.search(stacked, encoded, sought, level, tally, search)
        for column, found in zip(columns.tolist(), results, strict=True):
            search.note(found.listed, found.passes)
            assert isinstance(found.result, TextScores)
            scores[places, column] = found.result.scores
            for place in np.array(places)[found.result.lost].tolist():
                lost = TextScores.of(scores[place : place + 1, column])
                errors += jobs.failures(names[place], [texts[column]], lost)
    search.log(walks)
    _log_left_out(errors)
    probabilities = match_probability(scores, calibration)
    failures, passes = tuple(errors), tally.passes
    matrix = ScoreMatrix(tuple(names), tuple(texts), scores, probabilities, failures, passes)
    return matrix.top_images(top_k, ids)


def _latents_of(
    jobs: JobScorer, images: Iterable[Scorable], errors: list[Failure]
) -> tuple[list[str], dict[int, NDArray[Any]]]:
    """Names of all images, and the latents of those that have one, by the image's place.

    Args:
        jobs: scorer whose encoder is used.
        images: images, of which some may have no latent.
        errors: failures, to which those of the images are added.
    """
    names, latents = list[str](), dict[int, NDArray[Any]]()
    for chunk in jobs.encoded(given_alike(images, np.zeros(1, np.intp))):
        for job, latent in chunk:
            if isinstance(latent, ImageError):
                errors.append(Failure(job.name, str(latent)))
            else:
                latents[len(names)] = latent
            names.append(job.name)
    return names, latents


def _log_left_out(failures: Iterable[Failure]) -> None:
    for failure in failures:
        logger.warning("left out of the ranking: %s", failure)
