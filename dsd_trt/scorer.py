"""The scorer: images and texts in, matching scores out."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle, bundle_folder
from dsd_trt.bundle.manifest import Manifest, Mode
from dsd_trt.engine import EngineDescription, require_backend
from dsd_trt.errors import EngineError, ImageError, InputError
from dsd_trt.image.preprocess import image_identity
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import (
    Job,
    Row,
    Scorable,
    Scored,
    Tally,
    checked_count,
    checked_pairs,
    checked_text,
    checked_texts,
    name_of,
    one_of,
    open_images,
    unique_texts,
)
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import Pipeline, match_probability
from dsd_trt.results import (
    Failure,
    PairScores,
    PairStream,
    Progress,
    RankedImage,
    ScoredImage,
    ScoreMatrix,
    ScoreStream,
)
from dsd_trt.signature import open_bundle

if TYPE_CHECKING:
    from dsd_trt.journal import Journal

logger = logging.getLogger(__name__)


class Scorer:
    """Scores how well texts describe images, with one bundle on one engine.

    `Scorer.load` opens one. A score depends on its image and text alone, but for its last bits
    (below 1e-6 in FP32), which engines round differently in batches of other sizes and on other
    numbers of threads. The same call gives the same bytes in every run on a machine.

    Threads may share a scorer, and get the scores that one thread would. Their passes take turns,
    since each keeps all cores busy: together they score as many pairs per second as one thread
    does, and while one waits for a pass, others decode images. Processes cannot share it: one that
    is forked afterwards is refused, so start processes with spawn and open a scorer in each.

    `close`, or the end of a `with` block, gives back memory and threads at once; so does dropping
    the last reference.

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
        tune: find out on the first work which batch size is the fastest, and remember it for this
            machine; scores of the runs before and after differ in their last bits.
        self_check: have each graph compute what the bundle knows the results of, a pass in a
            large model, a few in a small one. Without it, wrong weights whose hashes were made to
            fit, a wrong plan, and a driver or a processor that computes wrong go unnoticed.

    Raises:
        EngineError: the engine is not installed, refuses the bundle's graphs, or computes something
            else than the bundle's self-check says.
        InputError: the bundle or the engine has no such mode.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        memory_budget_mb: float = 1024,
        mode: Mode | Literal["auto"] = "auto",
        tune: bool = False,
        self_check: bool = True,
    ) -> None:
        backend = require_backend(engine)
        self.bundle = bundle
        self.mode = choose_mode(bundle.manifest, mode, backend)
        self._pipeline = Pipeline(bundle, backend, memory_budget_mb, tune, self_check)
        self._jobs = JobScorer(self._pipeline, bundle.manifest, self.mode)
        try:
            self._engine = self._compiled(memory_budget_mb)
        except BaseException:
            self._pipeline.close()
            raise

    def _compiled(self, memory_budget_mb: float) -> EngineDescription:
        if self._pipeline.backend.keeps_order_of:
            from dsd_trt.bfloat16 import guarded  # draws; no other engine has to wait for that

            return guarded(self.bundle, self.mode, self._pipeline, memory_budget_mb)
        return self._pipeline.compile(self.mode)

    def close(self) -> None:
        """Give back memory and threads, after the passes that are under way.

        Closing again does nothing; scoring afterwards raises an EngineError.
        """
        self._pipeline.close()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "a scorer cannot be copied or sent to another process. Start processes with spawn, and "
            "open a Scorer in each"
        )

    def __repr__(self) -> str:
        return f"Scorer({str(self.bundle.folder)!r}: {self._engine}, {self.mode} mode)"

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        memory_budget_mb: float = 1024,
        mode: Mode | Literal["auto"] = "auto",
        tune: bool = False,
        require_signature: str | os.PathLike[str] | None = None,
        self_check: bool = True,
    ) -> Scorer:
        """Open a bundle: a folder, one on the Hugging Face Hub, or the package's own.

        Args:
            bundle: the folder; or, as a string, ORG/NAME or ORG/NAME@REVISION, a repository on the
                hub, which is downloaded unless it is in the hub's cache; None is the embedded
                "shapes" demonstration.
            engine: as for `Scorer`.
            memory_budget_mb: as for `Scorer`.
            mode: as for `Scorer`.
            tune: as for `Scorer`.
            require_signature: file of a public key (minisign.pub) that the bundle has to be signed
                with, see `dsd-trt sign`; None asks for no signature.
            self_check: as for `Scorer`.

        Raises:
            BundleError: no bundle there, or it is damaged, or the hub does not hand it out; or it
                is not signed as required.
            MissingExtraError: a repository is named without the extra "hub", or a key without the
                extra "sign".
            InputError: as for `Scorer`.
            EngineError: as for `Scorer`.
        """
        require_backend(engine)
        opened = open_bundle(bundle_folder(bundle), require_signature)
        return cls(opened, engine, memory_budget_mb, mode, tune, self_check)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def engine(self) -> EngineDescription:
        """Library, device and precision that scoring really got."""
        return self._engine

    @property
    def fingerprint(self) -> str:
        """What scores depend on beside bundle, mode and inputs, to the last bit."""
        from importlib.metadata import version  # 0.03 s: it brings email's parser

        return f"dsd-trt {version('dsd-trt')}, {self._engine}, {self._pipeline.batch}"

    def score(
        self,
        images: str | os.PathLike[str] | Iterable[Scorable],
        texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        top_k: int | None = None,
        *,
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
            top_k: number of best texts to find per image; a text that can no longer be among them
                is not scored at further levels, see `dsd_trt.search`. None scores every text.
            best: former name of `top_k`.

        Returns:
            The (N, M) matrix; what cannot be scored has NaN and an error: an image that cannot be
            decoded, or an image, text or pair that the engine computes no finite number of.

        Raises:
            InputError: no texts; something that is no string, by its place; a text in which no
                token counts (a blank one, where words alone count, see `Tokenizer`); a level the
                bundle lacks; an index of another image encoder; or more of something than its limit
                (`dsd_trt.limits`).
            EngineError: the engine failed, the scorer is closed, or this is a process forked from
                the one that opened it.
        """
        texts = checked_texts(texts)
        stream = self.stream(images, texts, levels, progress, top_k, best=best)
        errors, names, passes = list(stream.errors), list[str](), 0
        rows = array("f")  # grows in place: nothing is held twice, however many images there are
        for image in stream.images:
            names.append(image.image)
            errors += image.errors
            passes += image.passes
            rows.frombytes(image.scores.tobytes())
        matrix = np.asarray(rows).reshape(-1, len(texts))
        return ScoreMatrix(
            tuple(names), tuple(texts), matrix, self.probability(matrix), tuple(errors), passes
        )

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
    ) -> ScoreStream:
        """Score every image against every text, and give each image's scores as they are there.

        Args:
            images: as for `score`.
            texts: as for `score`.
            levels: as for `score`.
            progress: as for `score`.
            top_k: number of best texts to find per image, as for `score`.
            journal: record of the scores so far; what it already holds is not scored again.
            best: former name of `top_k`.

        Returns:
            The images in order; memory does not grow with their number.

        Raises:
            InputError: as for `score`.
            EngineError: as for `score`.
        """
        self._pipeline.require_usable()
        texts = checked_texts(texts)
        images = open_images(images, len(texts))
        total = len(images) * len(texts) if isinstance(images, Sequence) else None
        unique, columns = unique_texts(texts)
        top_k = one_of(top_k, best)
        if top_k is not None:
            self._jobs.require_search(top_k)
        level = self._level_indices(levels)
        tally = Tally(progress, total, len(level))
        encoded, errors = self._jobs.encode_texts(unique)

        def rows() -> Iterator[ScoredImage]:
            jobs = (Job(image, columns) for image in images)
            for place, (job, it) in enumerate(
                self._jobs.run(jobs, encoded, level, tally, top_k, journal)
            ):
                name = name_of(job.image, place)
                failures = tuple(self._jobs.failures(name, texts, it.result))
                yield ScoredImage(name, _scores(it, len(texts)), failures, it.passes)

        return ScoreStream(tuple(errors), rows())

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
            The (P,) scores in the order of the pairs; what cannot be scored has NaN and an error,
            as for `score`: one for an image in all of its pairs.

        Raises:
            InputError: as for `score`.
            EngineError: as for `score`.
        """
        pairs = checked_pairs(pairs)
        scores = np.full(len(pairs), np.nan, np.float32)
        stream = self.stream_pairs(pairs, levels, progress)
        errors, names = list(stream.errors), [""] * len(pairs)
        for image, places in stream.images:
            errors += image.errors
            scores[places] = image.scores
            for place in places:
                names[place] = image.image
        texts = tuple(text for _, text in pairs)
        return PairScores(tuple(names), texts, scores, self.probability(scores), tuple(errors))

    def stream_pairs(
        self,
        pairs: Iterable[tuple[Scorable, str]],
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> PairStream:
        """Score chosen pairs, and give the scores of an image's pairs as they are there.

        Args:
            pairs: as for `score_pairs`.
            levels: as for `score`.
            progress: as for `score`.
            journal: as for `stream`.

        Returns:
            The images in the order of their first pair, each with the places of its pairs.

        Raises:
            InputError: as for `score`.
            EngineError: as for `score`.
        """
        self._pipeline.require_usable()
        pairs = checked_pairs(pairs)
        unique, text_of = unique_texts([text for _, text in pairs])
        places: dict[object, list[int]] = {}  # where in `pairs` each image occurs
        for place, (image, _) in enumerate(pairs):
            places.setdefault(image_identity(image), []).append(place)
        level = self._level_indices(levels)
        tally = Tally(progress, len(pairs), len(level))
        encoded, errors = self._jobs.encode_texts(unique)

        def rows() -> Iterator[tuple[ScoredImage, list[int]]]:
            jobs = (Job(pairs[at[0]][0], text_of[at]) for at in places.values())
            results = self._jobs.run(jobs, encoded, level, tally, journal=journal)
            for at, (job, it) in zip(places.values(), results, strict=True):
                # An image has one name, by which its error is found, in all of its pairs.
                name = name_of(job.image, at[0])
                failures = tuple(self._jobs.failures(name, [pairs[i][1] for i in at], it.result))
                yield ScoredImage(name, _scores(it, len(at)), failures, it.passes), at

        return PairStream(tuple(errors), rows())

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
            images: as for `score`; one that cannot be scored is left out with a logged warning.
            top_k: how many to return; None is all.
            levels: as for `score`.
            progress: as for `score`.
            prune: give up on images that will not be among the `top_k` after as few levels as
                possible, see `dsd_trt.search`. All latents are held in memory.

        Returns:
            Best first; equal scores in the order of the images.

        Raises:
            InputError: as for `score`.
            EngineError: as for `score`.
        """
        if top_k is not None:
            top_k = checked_count(top_k, "top_k")
        elif prune:
            raise InputError("pruning looks for the best: say how many with top_k")
        self._pipeline.require_usable()
        text = checked_text(text, "text")
        if prune and top_k:
            matrix = self._search_images(text, images, top_k, levels, progress)
        else:
            matrix = self.score(images, [text], levels, progress)
        for failure in matrix.errors:
            logger.warning("left out of the ranking: %s", failure)
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
        top_k: int,
        levels: Sequence[float] | None,
        progress: Progress | None,
    ) -> ScoreMatrix:
        """Scores of the best images, and of others that came close; NaN for the rest."""
        self._jobs.require_search(top_k)
        level = self._level_indices(levels)
        names: list[str] = []
        places: list[int] = []
        latents: list[NDArray[Any]] = []
        encoded, errors = self._jobs.encode_texts([text])
        jobs = (Job(image, np.zeros(1, np.intp)) for image in open_images(images))
        for chunk in self._jobs.encoded(jobs):
            for job, latent in chunk:
                names.append(name_of(job.image, len(names)))
                if isinstance(latent, ImageError):
                    errors.append(Failure(names[-1], str(latent)))
                else:
                    latents.append(latent)
                    places.append(len(names) - 1)
        scores = np.full(len(names), np.nan, np.float32)
        tally = Tally(progress, len(names), len(level))
        if latents and encoded.finite.all():
            found = self._jobs.search(np.stack(latents), encoded, level, tally, top_k)
            scores[places] = found.scores
            for place in np.array(places)[found.lost].tolist():
                errors += self._jobs.failures(
                    names[place], [text], Row.of(scores[place : place + 1])
                )
        matrix = scores[:, None]
        return ScoreMatrix(
            tuple(names), (text,), matrix, self.probability(matrix), tuple(errors), tally.passes
        )

    def _level_indices(self, levels: Sequence[float] | None) -> NDArray[np.int32]:
        """Where the levels asked for stand in the bundle, in its order, each once."""
        known = self.manifest.method.noise_levels.fractions
        if not isinstance(levels, (Iterable, type(None))) or getattr(levels, "ndim", 1) != 1:
            raise InputError(f"levels must be a list: [{levels}]")
        wanted = known if levels is None else tuple(levels)
        for s in wanted:
            if s not in known:
                raise InputError(
                    f"the bundle has no noise level {s}; it has {', '.join(map(str, known))}"
                )
        if len(wanted) == 0:
            raise InputError("no noise level to score at")
        return np.array([i for i, s in enumerate(known) if s in wanted], np.int32)

    def probability(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        """Match probability of scores, sigmoid(a f + b)."""
        return match_probability(score, self.manifest.calibration_of(self.mode))


def _scores(scored: Scored, texts: int) -> NDArray[np.float32]:
    """Scores of an image's texts, (texts,); NaN if the image has no latent."""
    if isinstance(scored.result, ImageError):
        return np.full(texts, np.nan, np.float32)
    return scored.result.scores
