"""Imitation: token heads learned from some images and texts, and lists measured on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsd_trt.bundle.manifest import NOT_FITTED
from dsd_trt.pruned_search import smallest_error
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.encodings import Encodings, encode_candidates
from dsd_trt.train.imitation.enough import require_enough
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
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Imitated:
    """Learn token heads and relations, with which matrix mode estimates pair mode's scores.

    Two thirds of the images and of the texts are learned from, texts of these images first. Lists
    are measured on the others. Which text is right does not matter: pair mode is the teacher.

    Args:
        checkpoint: base model, on the device that computes.
        adapter: few-shot adapter, not of matrix mode alone; None estimates zero-shot scores.
        questions: questions whose images and texts are used.
        seed: random seed of the division, of the texts that are drawn, and of the batches.
        progress: callback of the stages.

    Raises:
        InputError: there are too few images or texts.
        ModelError: the adapter does not belong to the model.
    """
    encodings = encode_candidates(
        checkpoint,
        questions,
        resize=resize_of(adapter),
        progress=lambda done, total: progress("Encoding", done, total),
    )
    rng = np.random.default_rng(seed)
    modes = TwoModes(checkpoint, adapter, encodings)
    own, left_out = _own_texts(encodings, questions)
    images = rng.permutation(np.array(sorted(own), np.intp))
    usable = [it for it in encodings.texts.values() if isinstance(it, int)]
    texts = rng.permutation(np.array(usable, np.intp))
    require_enough(len(images), len(texts))
    apart_images, apart_texts = (round(len(it) * (1 - _MEASURED)) for it in (images, texts))
    learning = images[:apart_images]
    of_learning = np.isin(texts, [it for image in learning.tolist() for it in own[image]])
    texts = texts[np.argsort(~of_learning, kind="stable")]
    known = set(texts[:apart_texts].tolist())
    lessons = gather(
        modes,
        learning,
        texts[:apart_texts],
        [[it for it in own[image] if it in known] for image in learning.tolist()],
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
        images[apart_images:],
        texts[apart_texts:],
        lambda done, total: progress("Scoring lists", done, total),
    )
    progress("Measuring lists", 0, None)
    _, before = measure(modes, plain_heads(modes), blocks)
    lists, after = measure(modes, heads, blocks, related.relations)
    record = {
        "images": len(learning),
        "texts": apart_texts,
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
    return Imitated(made, before, after, related, len(learning), left_out)


def plain_heads(modes: TwoModes) -> TokenHeads:
    """The model's own head weights at every token: matrix mode without imitation."""
    width = modes.words(np.zeros(1, np.intp))[0].shape[2]
    heads = TokenHeads(len(modes.scoring.head_weights), width).requires_grad_(False)
    heads.base.copy_(modes.scoring.head_weights.cpu())
    return heads


def _own_texts(
    encodings: Encodings, questions: Sequence[Question]
) -> tuple[dict[int, list[int]], LeftOut]:
    """Texts of each image that has a right one, that first, and what cannot be used."""
    left_out = LeftOut()
    examples = encodings.examples(questions, left_out.add)
    images, texts, right = (it.tolist() for it in (examples.images, examples.texts, examples.right))
    found: dict[int, dict[int, None]] = {images[it]: {texts[it]: None} for it in right}
    for image, text in zip(images, texts, strict=True):
        if image in found:
            found[image].setdefault(text)
    return {image: list(it) for image, it in found.items()}, left_out
