"""Scoring of questions with a bundle, while images of the next questions are decoded."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dsd_trt import Scorer
from dsd_trt.image.decoding import MOST_BYTES, decoding_pool
from dsd_trt.image.preprocess import ImageSource, image_identity
from dsd_trt.jobs import BegunImage, decode_image, name_of
from dsd_trt.results import Failure
from dsd_trt.train.left_out import ignore, name_image
from dsd_trt.train.question import Question, Report


class BundleScore:
    """A `Score` that scores candidates with a bundle; `close` ends its threads.

    Args:
        scorer: scorer that has opened the bundle.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._begun: dict[object, BegunImage] = {}  # by the image's identity
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> BundleScore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; images that have not begun are not decoded."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def expect(self, questions: Sequence[Question]) -> None:
        """Begin to decode images of questions that are scored in a later call.

        Images that wait take 256 MiB at most; others are decoded when they are scored.
        """
        most = MOST_BYTES // (3 * self._scorer.manifest.preprocessing.resolution**2)
        for image in (image for question in questions for image, _ in question.candidates):
            identity = image_identity(image)
            if identity not in self._begun and len(self._begun) < most:
                self._begun[identity] = self._begin(image)

    def __call__(
        self, questions: Sequence[Question], left_out: Report = ignore
    ) -> list[list[float]]:
        """Score the candidates of some questions, see `Score`."""
        candidates = [it for question in questions for it in question.candidates]
        images = {image_identity(image): image for image, _ in candidates}
        given = {it: self._begun.pop(it, image) for it, image in images.items()}
        pairs = [(given[image_identity(image)], text) for image, text in candidates]
        # Accuracy needs no probabilities, which `score_pairs` adds, or warns that there are none.
        stream = self._scorer.stream_pairs(pairs)
        errors, found = list(stream.errors), [("", float("nan"))] * len(pairs)  # name and score
        for scored_image, places in stream.images:
            errors += scored_image.errors
            for place, value in zip(places, scored_image.scores.tolist(), strict=True):
                found[place] = (scored_image.image, value)
        failed = {(failure.image, failure.text): failure for failure in errors}
        scored = iter(found)
        rows = []
        for question in questions:
            row, failures = [], dict[Failure, None]()
            for picture, text in question.candidates:
                name, value = next(scored)
                row.append(value)
                for key in ((name, None), (None, text), (name, text)):
                    if failure := failed.get(key):
                        called = None if key[0] is None else name_image(picture, question)
                        failures[replace(failure, image=called)] = None
            if failures:
                left_out(question, list(failures))
            rows.append(row)
        return rows

    def _begin(self, image: ImageSource) -> BegunImage:
        self._pool = self._pool or decoding_pool()
        decode = contextvars.copy_context().run
        name = name_of(image, 0)
        manifest = self._scorer.manifest
        return BegunImage(image, self._pool.submit(decode, decode_image, image, name, manifest))
