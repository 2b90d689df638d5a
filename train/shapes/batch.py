"""The batch of a training step: choice of twins, their captions, timesteps and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsd_trt.train.shapes.caption import SIDES_OF, caption, sides_caption
from dsd_trt.train.shapes.scene import COLOURS, SHAPES, SIZES, Scene
from dsd_trt.train.shapes.settings import DiffusionSettings
from dsd_trt.train.shapes.twins import TwinLatents, Twins, sample_twins
from dsd_trt.train.shapes.workers import ALONE, Worker

TELLING: Mapping[str, tuple[str, ...]] = {
    "": (),
    "relation": (
        *("left", "right", "above", "below", "over", "under", "higher", "lower", "than", "to"),
        *("of", "inside", "within", "in", "front", "overlapping", "on", "top", "bottom"),
    ),
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
}
"""Words that distinguish two captions, by what differs between their scenes."""


@dataclass(frozen=True)
class TwinBatch:
    """The twins of a training step, with captions, timesteps and noise.

    Attributes:
        latents: clean latents z, (twins, 2, C, h, w).
        masks: share of each latent cell that a thing covers, (twins, 2, MAX_THINGS, h, w).
        scenes: scene of each image; image 2 i + k is the k-th of twin i.
        captions: caption of each image, in the order of `scenes`; "" is the unconditional text.
        timesteps: timestep t, shared by a twin's pairs, int64 (twins,).
        noise: noise eps of each image, (twins, 2, C, h, w).
        ranked: 1 where a twin has captions to rank, 0 with the unconditional text, (twins,).
        telling: index into `TELLING` of the words that distinguish a twin's captions, 0 if there
            are no such words, int64 (twins,).
    """

    latents: Tensor
    masks: Tensor
    scenes: list[Scene]
    captions: list[str]
    timesteps: Tensor
    noise: Tensor
    ranked: Tensor
    telling: Tensor


def sample_batch(
    data: TwinLatents, settings: DiffusionSettings, step: int, worker: Worker = ALONE
) -> TwinBatch:
    """A worker's part of a step's batch, which depends on the arguments alone.

    Args:
        data: encoded twins to draw from.
        settings: hyperparameters of the stage.
        step: index of the step within the stage, from 0.
        worker: worker whose part is drawn.
    """
    rng = np.random.default_rng([settings.seed, 7, step, worker.rank])
    twins = settings.twins // worker.count
    chosen = np.empty((twins, 2), np.int64)
    scenes: list[Scene] = []
    captions: list[str] = []
    ranked, telling = np.ones(twins, np.float32), np.zeros(twins, np.int64)
    words = list(TELLING)
    for i in range(twins):
        chosen[i], pair = _choose_twins(data, settings.kept, rng)
        if settings.strangers and rng.random() < settings.strangers:
            chosen[i, 1], stranger = _choose_twins(data, settings.kept, rng)
            pair = replace(pair, second=stranger.second, edit="other")
        telling[i] = words.index(_telling(pair))
        scenes += pair.scenes
        told = None
        if settings.places and rng.random() < settings.places:
            if pair.edit == "predicate" and rng.random() < 0.6:
                told = sides_captions(pair, rng)
            else:
                told = place_captions(pair, data.masks[chosen[i], [0, 1]], rng)
            if told is not None:
                telling[i] = words.index("relation")
        if rng.random() < settings.unconditional:
            ranked[i] = 0
            told = ("", "")
        captions += told or pair.captions(rng)
    # Stratified, so that the timesteps of every batch cover the whole range.
    strata = (rng.permutation(twins) + rng.random(twins)) / twins
    latents = torch.from_numpy(data.latents[chosen, [0, 1]].astype(np.float32))
    noise = rng.standard_normal(latents.shape, dtype=np.float32)
    return TwinBatch(
        latents=latents,
        masks=torch.from_numpy(data.masks[chosen, [0, 1]].astype(np.float32)),
        scenes=scenes,
        captions=captions,
        timesteps=torch.from_numpy((strata**settings.noise * 1000).astype(np.int64)),
        noise=torch.from_numpy(noise),
        ranked=torch.from_numpy(ranked),
        telling=torch.from_numpy(telling),
    )


def place_captions(
    twins: Twins, masks: NDArray[np.float16], rng: np.random.Generator
) -> tuple[str, str] | None:
    """Captions that distinguish two images by the side on which a common thing stands.

    Args:
        twins: two scenes with the same things.
        masks: share of each latent cell that a thing covers, (2, MAX_THINGS, h, w).
        rng: random generator of the thing, the axis and the words.

    Returns:
        One caption per image, or None if no common thing has clearly changed sides.
    """
    height, width = masks.shape[2:]
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    shares = masks.astype(np.float32)
    area = shares.sum(axis=(2, 3)).clip(min=1e-6)  # (2, MAX_THINGS)
    centers = {
        ("left", "right"): (shares.sum(axis=2) @ x) / area,
        ("top", "bottom"): (shares.sum(axis=3) @ y) / area,
    }
    found = []
    for k, (one, other) in enumerate(zip(twins.first.things, twins.second.things, strict=False)):
        if (one.colour, one.shape) != (other.colour, other.shape):
            continue
        for sides, center in centers.items():
            before, after = center[:, k]
            if min(before, after) < 0.42 and max(before, after) > 0.58:
                found.append((one, sides if before < after else sides[::-1]))
    if not found:
        return None
    thing, sides = found[int(rng.integers(len(found)))]
    seeds = rng.integers(2**32, size=2)
    if rng.random() < 0.5:
        seeds[1] = seeds[0]
    first, second = (
        caption(Scene((thing,), side=side), np.random.default_rng(seed))
        for side, seed in zip(sides, seeds, strict=True)
    )
    return first, second


def sides_captions(twins: Twins, rng: np.random.Generator) -> tuple[str, str] | None:
    """Captions that distinguish two images by the sides of both things, without their relation.

    It is the last lesson before relations: "a red circle on the left and a blue star on the
    right".

    Args:
        twins: two scenes that differ in one aspect.
        rng: random generator of the words.

    Returns:
        One caption per image, of the same form; None unless the scenes have opposite directions.
    """
    sides = [SIDES_OF.get(scene.relation or "") for scene in twins.scenes]
    if twins.edit != "predicate" or sides[0] is None or sides[1] != sides[0][::-1]:
        return None
    seed = int(rng.integers(2**32))
    first, second = (sides_caption(scene, np.random.default_rng(seed)) for scene in twins.scenes)
    return first, second


def _telling(twins: Twins) -> str:
    """The only kind of difference between two scenes, a key of `TELLING`; "" for several."""
    if twins.edit in ("predicate", "side"):
        return "relation"
    if twins.edit == "size":
        return "size"
    if twins.edit == "other":
        return ""
    shapes, colours = (
        [[getattr(thing, what) for thing in scene.things] for scene in twins.scenes]
        for what in ("shape", "colour")
    )
    if shapes[0] != shapes[1] and colours[0] != colours[1]:
        return ""  # the colour alone would suffice, and the shape would not be learned
    return "colour" if shapes[0] == shapes[1] else "shape"


def _choose_twins(
    data: TwinLatents, kept: Mapping[str, float], rng: np.random.Generator
) -> tuple[int, Twins]:
    """Draw twins at random, with the edits' probabilities `kept`."""
    while True:
        index = int(rng.integers(len(data)))
        pair = sample_twins(data.seed, index)
        share = kept.get(pair.edit, 1.0)
        if pair.edit in ("subject", "object"):
            share *= kept.get(_telling(pair) or "both", 1.0)
        if rng.random() < share:
            return index, pair
