"""Scores images against their texts, one batch of images at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.lists import Kind
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.errors import ImageError, InputError, counted
from dsd_trt.jobs import Decoded, Given, Job, Scored, Tally, TextScores, decoded_ahead
from dsd_trt.lists import Rule
from dsd_trt.log import get_logger
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.pruned_search import PrunedSearch, Turn
from dsd_trt.ranking import checked_count
from dsd_trt.results import Failure
from dsd_trt.search import answered_together
from dsd_trt.text_cache import TextCache

if TYPE_CHECKING:
    from dsd_trt.journal import Journal

logger = get_logger(__name__)

Latent: TypeAlias = NDArray[Any] | ImageError
"""Latent z of an image, or the reason why there is none."""


class Sought(NamedTuple):
    """A search: its candidates are pairs of an image and a text.

    Attributes:
        image_of: place of each pair's image among the latents, (candidates,).
        text_of: place of each pair's text among the encoded ones, (candidates,).
        turn: what to score at the first level.
        estimates: estimates of the scores, (candidates,); None without a list.
        walks: number of walks that made its list alone.
    """

    image_of: NDArray[np.intp]
    text_of: NDArray[np.intp]
    turn: Turn
    estimates: NDArray[np.float32] | None
    walks: int = 0


class JobScorer:
    """Scores jobs in one mode of a bundle.

    Args:
        pipeline: pipeline that runs the bundle's graphs.
        manifest: manifest of the bundle.
        mode: "pair" or "matrix", the mode to score in.
        texts: text states of earlier calls.
    """

    def __init__(
        self, pipeline: Pipeline, manifest: Manifest, mode: Mode, texts: TextCache
    ) -> None:
        self._pipeline, self._manifest, self._mode = pipeline, manifest, mode
        self._texts = texts

    def encode_texts(self, texts: Sequence[str]) -> tuple[EncodedTexts, list[Failure]]:
        """Encode texts, and list failures for those without finite states."""
        if not texts:
            return EncodedTexts(np.empty(0), np.empty(0, np.float32)), []
        encoded = self._texts.encode(texts, self._pipeline.encode_texts)
        return encoded, [
            Failure(None, self._pipeline.complaint("text_encoder", "states"), text)
            for text, finite in zip(texts, encoded.finite, strict=True)
            if not finite
        ]

    def failures(
        self, image: str, texts: Sequence[str], result: TextScores | ImageError
    ) -> list[Failure]:
        """Failures of an image or its texts."""
        if isinstance(result, ImageError):
            return [Failure(image, str(result))]
        if not result.lost.any():
            return []
        reason = self._pipeline.complaint(f"{self._mode}_scorer", "a score")
        if result.lost.all() and len(texts) > 1:
            return [Failure(image, reason)]
        lost = dict.fromkeys(texts[place] for place in np.flatnonzero(result.lost).tolist())
        return [Failure(image, reason, text) for text in lost]

    def run(
        self,
        given: Iterable[Given],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch | None = None,
        journal: Journal | None = None,
        *,
        tokens: bool = False,
    ) -> Iterator[tuple[Job, Scored]]:
        """Score each image against its job's texts, one batch of images at a time.

        With `tokens`, which is of pair mode without a search, results have scores of tokens too.

        A journal's chunks are these batches, so a resumed run forms the same batches. It has the
        outcomes of lists as well, so the resumed run audits the same ones.

        Yields:
            Every job in order, with its scores or the reason why its image has no latent.
        """
        given, images, began = iter(given), 0, time.perf_counter()
        if journal:
            given = yield from self._known(given, level, tally, search, journal)
        for chunk in self.encoded(given):
            results: list[Scored] = []
            finite = [texts.finite[job.texts] for job, _ in chunk]  # (texts,) each
            scorable = [
                (replace(job, texts=job.texts[known]), latent)
                for (job, latent), known in zip(chunk, finite, strict=True)
                if not isinstance(latent, ImageError) and known.any()
            ]
            rows = self._score(scorable, texts, level, tally, search, journal, tokens=tokens)
            for (job, latent), known in zip(chunk, finite, strict=True):
                unscored = isinstance(latent, ImageError)
                tally.skip((len(known) if unscored else int((~known).sum())) * len(level))
                if isinstance(latent, ImageError):
                    results.append(Scored(latent, 0))
                elif known.any():
                    results.append(next(rows).spread(known))
                else:
                    nothing = Scored(TextScores.of(np.empty(0, np.float32)), 0)
                    results.append(nothing.spread(known))
                images += 1
                yield job, results[-1]
            if journal:
                journal.finish_chunk(results)
        logger.info(
            "scored %s with up to %s each, at %s, in %s mode in %.2f s",
            *(counted(images, "image"), counted(len(texts.mask), "text")),
            *(counted(len(level), "level"), self._mode, time.perf_counter() - began),
        )
        if search:
            search.log()

    def _known(
        self,
        given: Iterator[Given],
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch | None,
        journal: Journal,
    ) -> Generator[tuple[Job, Scored], None, Iterator[Given]]:
        """Yield the jobs of the journal's chunks with their scores, and return the other jobs."""
        while (first := next(given, None)) is not None:
            if (known_chunk := journal.next_chunk()) is None:
                return itertools.chain([first], given)
            following = itertools.chain([first], itertools.islice(given, len(known_chunk) - 1))
            for it in known_chunk:
                known_image = next(following, None)
                if known_image is None or not _fits(it, known_image.job):
                    raise journal.other_work()
                tally.skip(len(known_image.job.texts) * len(level))
                if search:
                    search.note(it.listed, it.passes)
                yield known_image.job, it
        return given

    def _score(
        self,
        jobs: Sequence[tuple[Job, NDArray[Any]]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch | None,
        journal: Journal | None,
        *,
        tokens: bool,
    ) -> Iterator[Scored]:
        """Score each job's latent at all levels, and average over the levels (Eq. 4).

        Yields:
            Scores of each job, as soon as they are computed.
        """
        if not jobs:
            return
        latent = np.stack([z for _, z in jobs])
        if self._mode == "matrix":
            match = partial(self._match, latent, [it.texts for it, _ in jobs], texts, level, tally)
            every = _known_or_scored(
                _counted(lambda: TextScores.of(np.concatenate(match())), tally),
                [(latent, *(it.texts for it, _ in jobs))],
                tally,
                len(level),
                journal,
            )
            yield from _by_job(every, [len(job.texts) for job, _ in jobs], len(level))
            return
        if search is not None:
            texts_of = [job.texts for job, _ in jobs]
            yield from self.best_texts(latent, texts_of, texts, level, tally, search, journal)
            return
        image_of = np.repeat(np.arange(len(jobs)), [len(job.texts) for job, _ in jobs])  # (pairs,)
        text_of = np.concatenate([job.texts for job, _ in jobs])  # (pairs,)
        size = self._pipeline.whole_batches(len(level)) if journal else len(image_of)
        parts = (slice(start, start + size) for start in range(0, len(image_of), size))

        def scored(part: slice) -> Scored:
            images, columns = image_of[part], text_of[part]

            def score() -> TextScores:
                pairs = (latent, texts, images, columns, level, tally.add)
                if tokens:
                    return TextScores.of(*self._pipeline.score_tokens(*pairs))
                return TextScores.of(self._pipeline.score(*pairs))

            of = (latent[images[0] : images[-1] + 1], images - images[0], columns)
            (row,) = _known_or_scored(_counted(score, tally), [of], tally, len(level), journal)
            return row

        yield from _by_job(map(scored, parts), [len(job.texts) for job, _ in jobs], len(level))

    def open_search(
        self, of: Kind | None, level: NDArray[np.int32], top_k: int, error: float
    ) -> PrunedSearch:
        """The searches of a run, with lists if the bundle has measured some and they apply.

        Args:
            of: what lists may be of; None makes no lists.
            level: indices of the noise levels to average over.
            top_k: number of candidates to find.
            error: accepted probability of losing one of the best, in (0, 0.5].
        """
        matrix, backend = self._manifest.matrix, self._pipeline.backend
        batch, lists = self._pipeline.batch.passes, matrix.lists if matrix else None
        every = len(level) == len(self._manifest.method.noise_levels.fractions)
        if lists is None or of is None or not every or "matrix" not in backend.modes:
            return PrunedSearch(len(level), top_k, error, None, batch)
        return PrunedSearch(len(level), top_k, error, Rule.of(lists, of, top_k, error), batch)

    def search(
        self,
        latent: NDArray[Any],
        texts: EncodedTexts,
        sought: Sequence[Sought],
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch,
    ) -> list[Scored]:
        """Scores of the best candidates of several searches, which are made together.

        Args:
            latent: latents of the images, (images, C, h, w).
            texts: encoded texts that the places are of.
            sought: the searches, each with its pairs and its turn.
            level: indices of the noise levels to average over.
            tally: counter of passes and finished pairs.
            search: the searches of this run, with their rule.
        """
        passes = [it.walks for it in sought]
        lost = [np.zeros(len(it.image_of), np.bool_) for it in sought]

        def score(parts: Sequence[tuple[int, NDArray[np.intp]]], place: int) -> list[NDArray[Any]]:
            image_of = np.concatenate([sought[it].image_of[some] for it, some in parts])
            text_of = np.concatenate([sought[it].text_of[some] for it, some in parts])
            at = level[place : place + 1]
            scores = self._pipeline.score(latent, texts, image_of, text_of, at, tally.add)
            ends = np.cumsum([len(some) for _, some in parts])
            each = np.split(scores, ends[:-1])
            for (number, some), of_search in zip(parts, each, strict=True):
                passes[number] += len(some)
                lost[number][some] |= np.isnan(of_search)
            return each

        every = [
            search.steps(it.turn, len(it.image_of), it.estimates, len(sought)) for it in sought
        ]
        results = []
        for number, found in enumerate(answered_together(every, score)):
            it = sought[number]
            tally.skip(len(it.image_of) * len(level) - (passes[number] - it.walks))
            result = TextScores(found.scores, lost[number])
            results.append(Scored(result, passes[number], found.outcome))
        return results

    def estimates(
        self, latent: NDArray[Any], texts: EncodedTexts, tally: Tally
    ) -> NDArray[np.float32]:
        """Estimates of pair mode's scores, by one walk per image for all texts.

        Args:
            latent: latents of the images, (images, C, h, w).
            texts: encoded texts, matched with every image.
            tally: counter that the walks are added to.

        Returns:
            Estimates, (images, texts); NaN where one is not finite.
        """
        assert self._manifest.matrix is not None
        assert self._manifest.matrix.lists is not None
        level = np.array([self._manifest.matrix.lists.level], np.int32)
        return self._pipeline.score_matrix(latent, texts, level, walked=tally.walk)

    def best_texts(
        self,
        latent: NDArray[Any],
        texts_of: Sequence[NDArray[np.intp]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch,
        journal: Journal | None = None,
    ) -> Iterator[Scored]:
        """Scores of the best texts of each image, with lists where the search makes some.

        Args:
            latent: latents of the images, (images, C, h, w).
            texts_of: places of the texts to find each image's best of, (images,) of (texts,).
            texts: encoded texts that the places are of.
            level: indices of the noise levels to average over.
            tally: counter of passes and finished pairs.
            search: the searches of this run, with their rule, which are noted.
            journal: journal of the run, of which each search is a part.
        """
        longest, done = max(map(len, texts_of)), 0
        while done < len(latent):
            some = slice(done, done + search.together(longest))
            z, of_some = latent[some], texts_of[some]
            done += len(z)
            turns = search.turns(list(map(len, of_some)))
            compute = partial(self._searched, z, of_some, turns, texts, level, tally, search)
            # What a search scores depends on its turn and on the number of searches made together:
            # of another turn, or in another company, a part is another part.
            company = np.array(len(z))
            of = [(*it, company) for it in zip(z, of_some, map(np.array, turns), strict=True)]
            for found in _known_or_scored(compute, of, tally, len(level), journal):
                search.note(found.listed, found.passes)
                yield found

    def _searched(
        self,
        latent: NDArray[Any],
        texts_of: Sequence[NDArray[np.intp]],
        turns: Sequence[Turn],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
        search: PrunedSearch,
    ) -> list[Scored]:
        """The searches for the best texts of images that are made together."""
        listed = [it for it, turn in enumerate(turns) if turn != "all"]
        estimates: dict[int, NDArray[np.float32]] = {}
        walks = [0] * len(turns)
        for group in _alike([texts_of[it] for it in listed]):
            numbers, before = [listed[it] for it in group], tally.passes
            of_group = self.estimates(latent[numbers], texts[texts_of[numbers[0]]], tally)
            for number, of_image in zip(numbers, of_group, strict=True):
                estimates[number] = of_image
                walks[number] = (tally.passes - before) // len(numbers)
        sought = [
            Sought(
                *(np.full(len(texts_of[it]), it), texts_of[it], turns[it]),
                *(estimates.get(it), walks[it]),
            )
            for it in range(len(turns))
        ]
        return self.search(latent, texts, sought, level, tally, search)

    def require_search(self, top_k: int) -> None:
        """Refuse a search for the best if the mode does not support it.

        Raises:
            InputError: `top_k` is not a positive count, or the mode scores everything in one pass.
        """
        checked_count(top_k, "top_k")
        if self._mode == "matrix":
            raise InputError("matrix mode scores everything at once: there is nothing to prune")

    def _match(
        self,
        latent: NDArray[np.generic],
        texts_of: Sequence[NDArray[np.intp]],
        texts: EncodedTexts,
        level: NDArray[np.int32],
        tally: Tally,
    ) -> list[NDArray[np.float32]]:
        """Scores in matrix mode; in one call if all images have the same texts."""
        if all(np.array_equal(of_image, texts_of[0]) for of_image in texts_of):
            matrix = self._pipeline.score_matrix(latent, texts[texts_of[0]], level, tally.add)
            return list(matrix)
        return [
            self._pipeline.score_matrix(z[None], texts[of_image], level, tally.add)[0]
            for z, of_image in zip(latent, texts_of, strict=True)
        ]

    def encoded(self, given: Iterable[Given]) -> Iterator[list[tuple[Job, Latent]]]:
        """Decode and encode images, one batch at a time.

        Images of an index are encoded already.
        """
        for chunk in decoded_ahead(given, self._manifest, self._pipeline.batch.images):
            pixels = [it for _, it in chunk if _is_pixels(it)]
            latents = iter(self._pipeline.encode_images(pixels) if pixels else ())
            yield [
                (job, self._usable(next(latents)) if _is_pixels(it) else it) for job, it in chunk
            ]

    def _usable(self, latent: NDArray[Any]) -> Latent:
        if np.isfinite(latent).all():
            return latent
        return ImageError(self._pipeline.complaint("image_encoder", "a latent"))


def _alike(texts_of: Sequence[NDArray[np.intp]]) -> list[list[int]]:
    """Places of images, grouped by their texts: those of a group have the same."""
    groups: dict[bytes, list[int]] = {}
    for place, of_image in enumerate(texts_of):
        groups.setdefault(of_image.tobytes(), []).append(place)
    return list(groups.values())


def _counted(score: Callable[[], TextScores], tally: Tally) -> Callable[[], list[Scored]]:
    """A function that scores one part, and counts the passes that this takes."""

    def compute() -> list[Scored]:
        before = tally.passes
        row = score()
        return [Scored(row, tally.passes - before)]

    return compute


def _known_or_scored(
    compute: Callable[[], list[Scored]],
    of: Sequence[Iterable[NDArray[Any]]],
    tally: Tally,
    levels: int,
    journal: Journal | None,
) -> list[Scored]:
    """Parts of a chunk, from the journal or scored now; `of` describes each part."""
    if journal is None:
        return compute()
    parts, known = journal.parts(compute, of)
    for part in parts if known else ():
        if isinstance(part.result, TextScores):
            tally.skip(len(part.result.scores) * levels)
    return parts


def _by_job(parts: Iterable[Scored], counts: Sequence[int], levels: int) -> Iterator[Scored]:
    """Split the parts of a chunk into scores per job, each once its scores are complete."""
    waiting, tokens = np.empty(0, np.float32), None
    counts = list(counts)
    for part in parts:
        assert isinstance(part.result, TextScores)
        waiting = np.concatenate([waiting, part.result.scores])
        if (of_part := part.result.tokens) is not None:
            tokens = of_part if tokens is None else np.concatenate([tokens, of_part])
        while counts and counts[0] <= len(waiting):
            size = counts.pop(0)
            of_job = None if tokens is None else tokens[:size]
            yield Scored(TextScores.of(waiting[:size], of_job), size * levels)
            waiting = waiting[size:]
            tokens = None if tokens is None else tokens[size:]


def _fits(scored: Scored, job: Job) -> bool:
    """Whether there is a score for every text of a job, or no latent."""
    return isinstance(scored.result, ImageError) or len(scored.result.scores) == len(job.texts)


def _is_pixels(decoded: Decoded) -> TypeGuard[NDArray[np.uint8]]:
    return not isinstance(decoded, ImageError) and decoded.dtype == np.uint8
