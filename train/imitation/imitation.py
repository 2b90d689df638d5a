"""Imitation: token heads learned from some images and texts, and lists measured on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import NOT_FITTED
from dsd_trt.pruned_search import smallest_error
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.encodings import Encodings, encode_candidates
from dsd_trt.train.imitation.enough import UNKNOWN, require_enough
from dsd_trt.train.imitation.fit import fit_token_heads, gather
from dsd_trt.train.imitation.fit_relations import Related, fit_relations
from dsd_trt.train.imitation.measure import Ranks, measure, score_blocks
from dsd_trt.train.imitation.two_modes import TwoModes
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter, resize_of
from dsd_trt.train.scoring.token_heads import TokenHeads

_MEASURED = 1 / 3  # share of the images and of the texts that lists are measured on

Progress = Callable[[str, int, int | None], None]
"""Callback `(stage, done, total)`."""


@dataclass(frozen=True)
class Imitated:
    """The result of `imitate`.

    Attributes:
        adapter: the adapter with token heads, relations if they help, and lists.
        before: ranks of pair mode's best in matrix mode without them.
        after: the same with them.
        related: what became of the relations.
        learned_from: number of images that the token heads were learned from.
        left_out: images that could not be read, and texts without finite states.
    """

    adapter: Adapter
    before: Ranks
    after: Ranks
    related: Related
    learned_from: int
    left_out: LeftOut

    def smallest_error(self) -> float:
        """The smallest accepted error of a search that cuts a list, by the number of lists."""
        return smallest_error(min(len(self.after.texts), len(self.after.images)))


def imitate(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    questions: Sequence[Question],
    measured_on: Sequence[Question] = (),
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Imitated:
    """Learn token heads and relations, with which matrix mode estimates pair mode's scores.

    Two thirds of the images and of the texts are learned from, texts of these images first. Lists
    are measured on the others, or on `measured_on`, and then all are learned from. Which text is
    right does not matter: pair mode is the teacher.

    Args:
        checkpoint: base model, on the device that computes.
        adapter: few-shot adapter, not of matrix mode alone; None estimates zero-shot scores.
        questions: questions whose images and texts are used.
        measured_on: other questions, on whose images and texts lists are measured; none are a third
            of `questions`.
        seed: random seed of the division, of the texts that are drawn, and of the batches.
        progress: callback of the stages.

    Raises:
        InputError: there are too few images or texts.
        ModelError: the adapter does not belong to the model.
    """
    encodings = encode_candidates(
        checkpoint,
        [*questions, *measured_on],
        resize=resize_of(adapter),
        progress=lambda done, total: progress("Encoding", done, total),
    )
    rng = np.random.default_rng(seed)
    modes = TwoModes(checkpoint, adapter, encodings)
    left_out = LeftOut()
    parts = Parts.of(encodings, questions, measured_on, rng, left_out)
    lessons = gather(
        modes,
        parts.images,
        parts.texts,
        parts.own,
        rng,
        lambda done, total: progress("Scoring what is learned from", done, total),
    )
    heads = fit_token_heads(
        modes, lessons, seed, lambda done, total: progress("Learning", done, total)
    )
    related = fit_relations(
        modes, lessons, heads, seed, lambda done, total: progress("Learning relations", done, total)
    )
    blocks = score_blocks(
        modes,
        parts.measured_images,
        parts.measured_texts,
        lambda done, total: progress("Scoring lists", done, total),
    )
    progress("Measuring lists", 0, None)
    _, before = measure(modes, plain_heads(modes), blocks)
    lists, after = measure(modes, heads, blocks, related.relations)
    record = {
        "images": len(parts.images),
        "texts": len(parts.texts),
        "lists": len(after.texts),
        "candidates": after.candidates,
        "relations": related.relations is not None,
        "loss": related.loss,
        "loss_without_relations": related.without,
        "seed": seed,
    }
    base = adapter or Adapter.unchanged("attention", modes.scoring.levels, checkpoint.weight_hashes)
    made = replace(
        base,
        # A calibration of matrix mode was of other scores.
        matrix_a=NOT_FITTED.a,
        matrix_b=NOT_FITTED.b,
        token_heads=heads.state_dict(),
        relations=related.relations.state_dict() if related.relations else {},
        lists=lists,
        training={**base.training, "imitation": record},
    )
    return Imitated(made, before, after, related, len(parts.images), left_out)


@dataclass(frozen=True)
class Parts:
    """Places of the images and texts that are learned from, and of those measured on.

    Attributes:
        images: places of the images that are learned from.
        texts: places of the texts that are learned from.
        own: those of these texts that are each image's own, the right one first.
        measured_images: places of the images that lists are measured on.
        measured_texts: places of the texts that lists are measured on.
    """

    images: NDArray[np.intp]
    texts: NDArray[np.intp]
    own: list[list[int]]
    measured_images: NDArray[np.intp]
    measured_texts: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        encodings: Encodings,
        questions: Sequence[Question],
        measured_on: Sequence[Question],
        rng: np.random.Generator,
        left_out: LeftOut,
    ) -> Parts:
        """Divide images and texts; arguments as for `imitate`, what cannot be used is noted.

        Raises:
            InputError: there are too few images or texts.
        """
        own = _own_texts(encodings, questions, left_out)
        images, texts = rng.permutation(sorted(own)), rng.permutation(_texts(encodings, questions))
        require_enough(len(images), len(texts))
        if measured_on:
            others = sorted(_own_texts(encodings, measured_on, left_out).keys() - own.keys())
            unknown = sorted(set(_texts(encodings, measured_on)) - set(texts.tolist()))
            require_enough(len(others), len(unknown), UNKNOWN)
            measured = rng.permutation(others), rng.permutation(unknown)
        else:
            ends = [round(len(it) * (1 - _MEASURED)) for it in (images, texts)]
            of_learning = [it for image in images[: ends[0]].tolist() for it in own[image]]
            texts = texts[np.argsort(~np.isin(texts, of_learning), kind="stable")]
            (images, measured_images), (texts, measured_texts) = (
                np.split(it, [end]) for it, end in zip((images, texts), ends, strict=True)
            )
            measured = measured_images, measured_texts
        known = set(texts.tolist())
        of_images = [[it for it in own[image] if it in known] for image in images.tolist()]
        return cls(images, texts, of_images, *measured)


def plain_heads(modes: TwoModes) -> TokenHeads:
    """The model's own head weights at every token: matrix mode without imitation."""
    width = modes.words(np.zeros(1, np.intp))[0].shape[2]
    heads = TokenHeads(len(modes.scoring.head_weights), width).requires_grad_(False)
    heads.base.copy_(modes.scoring.head_weights.cpu())
    return heads


def _texts(encodings: Encodings, questions: Sequence[Question]) -> list[int]:
    """Places of the texts that can be used, in the order in which they first occur."""
    texts = dict.fromkeys(text for it in questions for _, text in it.candidates)
    places = (encodings.texts[it] for it in texts)
    return [it for it in places if isinstance(it, int)]


def _own_texts(
    encodings: Encodings, questions: Sequence[Question], left_out: LeftOut
) -> dict[int, list[int]]:
    """Texts of each image that has a right one, that first; what cannot be used is noted."""
    examples = encodings.examples(questions, left_out.add)
    images, texts, right = (it.tolist() for it in (examples.images, examples.texts, examples.right))
    found: dict[int, dict[int, None]] = {images[it]: {texts[it]: None} for it in right}
    for image, text in zip(images, texts, strict=True):
        if image in found:
            found[image].setdefault(text)
    return {image: list(it) for image, it in found.items()}
