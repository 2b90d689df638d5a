"""The curriculum of the demonstration: length and hyperparameters of each training stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from dsd_trt.train.shapes.settings import DiffusionSettings

STATES = ("vae.ckpt", "model")
"""The first state of a run, and its result: without any of them a folder holds no run."""


@dataclass(frozen=True)
class Curriculum:
    """Sizes of a pretraining run; with `SMOKE` it takes seconds and learns nothing.

    Attributes:
        vae_steps: optimiser steps of the autoencoder.
        vae_batch: images per step of the autoencoder.
        twins: number of distinct training twins.
        held_out_twins: number of held-out twins that the probe measures on.
        diffusion_steps: steps of the first stage, which trains on everything at once.
        matching_steps: steps of the stage that adds easy negatives.
        sides_steps: steps of the lesson on a lone thing's side.
        places_steps: steps of the lesson on the side of one thing among several.
        both_places_steps: steps of the lesson on the sides of two things.
        mixing_steps: steps of the stage that mixes all edits after the lessons.
        shapes_steps: steps of the stage on scenes that differ in a shape alone.
        naming_steps: steps of the stage with a high weight of the naming loss.
        clear_steps: steps of the stage with less noise.
        again_steps: steps of the first repetition on everything.
        longer_steps: steps of the second repetition on everything.
        last_steps: steps of the third repetition, with more hard negatives.
        wide_steps: steps of the last stage, with large batches.
        diffusion_twins: twins per step of all stages but the last.
        wide_twins: twins per step of the last stage.
        workers: number of training processes on a CPU.
        probe_every: steps between probes on held-out twins.
        sampling_steps: denoising steps per sample image.
        few_shot_twins: twins that the adapter is trained on.
        few_shot_steps: optimiser steps of the adapter.
    """

    vae_steps: int = 2600
    vae_batch: int = 16
    twins: int = 100_000
    held_out_twins: int = 1200
    diffusion_steps: int = 5000
    matching_steps: int = 3000
    sides_steps: int = 1000
    places_steps: int = 1500
    both_places_steps: int = 1200
    mixing_steps: int = 3000
    shapes_steps: int = 1500
    naming_steps: int = 1600
    clear_steps: int = 2500
    again_steps: int = 4000
    longer_steps: int = 5000
    last_steps: int = 5000
    wide_steps: int = 2900
    diffusion_twins: int = 24
    wide_twins: int = 144
    workers: int = 2
    probe_every: int = 1000
    sampling_steps: int = 30
    few_shot_twins: int = 400
    few_shot_steps: int = 200

    def plan(self, seed: int) -> dict[str, int]:
        """Everything that determines a run's outcome, as its folder's `plan.json` has it."""
        return {"seed": seed, **asdict(self)}


SMOKE = Curriculum(
    vae_steps=6,
    vae_batch=4,
    twins=12,
    held_out_twins=12,
    diffusion_steps=4,
    matching_steps=2,
    sides_steps=1,
    places_steps=1,
    both_places_steps=1,
    mixing_steps=1,
    shapes_steps=1,
    naming_steps=1,
    clear_steps=1,
    again_steps=1,
    longer_steps=1,
    last_steps=1,
    wide_steps=1,
    diffusion_twins=4,
    wide_twins=8,
    probe_every=4,
    sampling_steps=2,
    few_shot_twins=12,
    few_shot_steps=3,
)


def stages(curriculum: Curriculum, seed: int) -> dict[str, DiffusionSettings]:
    """Hyperparameters of the stages by name, in order; each continues from the previous weights.

    The first two stages train on everything, then with easy negatives added. Relations are not
    learned that way. Three lessons lead to them (docs/lessons.md), and a mixed stage repairs what
    the lessons cost. Shapes are harder than colours; scenes that differ in nothing else, the
    naming loss and less noise teach them. At last everything is repeated with restarts of the
    learning rate, which gave the largest gain.

    Args:
        curriculum: number of steps and twins of each stage.
        seed: random seed of the first stage; the others add an offset of their own.
    """
    lesson = DiffusionSettings(steps=0, twins=curriculum.diffusion_twins, telling=1.0)
    once_more = replace(
        lesson,
        learning_rate=1.2e-3,
        naming=1.0,
        unconditional=0.1,
        noise=1.7,
        places=0.04,
        strangers=0.25,
        kept=_kept(
            side=0.2, predicate=0.35, other=0.25, swap=0.3, size=0.35, colour=0.25, both=0.2
        ),
    )
    harder = replace(
        once_more,
        kept=_kept(
            side=0.2,
            predicate=0.3,
            subject=0.9,
            other=0.25,
            swap=0.25,
            size=0.2,
            colour=0.18,
            both=0.15,
        ),
    )
    return {
        "diffusion": DiffusionSettings(
            steps=curriculum.diffusion_steps, twins=curriculum.diffusion_twins, seed=seed
        ),
        "matching": DiffusionSettings(
            steps=curriculum.matching_steps,
            twins=curriculum.diffusion_twins,
            learning_rate=5e-4,
            strangers=0.4,
            seed=seed + 1,
        ),
        "sides": replace(
            lesson,
            steps=curriculum.sides_steps,
            learning_rate=5e-4,
            kept=_kept(predicate=0.1, subject=0.03, object=0.05, other=0.15, swap=0.05, size=0.1),
            seed=seed + 11,
        ),
        "places": replace(
            lesson,
            steps=curriculum.places_steps,
            learning_rate=5e-4,
            places=0.8,
            kept=_kept(predicate=0.4, subject=0.3, object=0.3, other=0.15, swap=0.2, size=0.2),
            seed=seed + 12,
        ),
        "both places": replace(
            lesson,
            steps=curriculum.both_places_steps,
            learning_rate=6e-4,
            places=0.6,
            kept=_kept(side=0.3, subject=0.12, object=0.12, other=0.1, swap=0.15, size=0.15),
            seed=seed + 13,
        ),
        "mix": replace(
            lesson,
            steps=curriculum.mixing_steps,
            learning_rate=8e-4,
            places=0.1,
            strangers=0.35,
            kept=_kept(side=0.4, predicate=0.5, other=0.4),
            seed=seed + 14,
        ),
        "shapes": replace(
            lesson,
            steps=curriculum.shapes_steps,
            learning_rate=6e-4,
            places=0.05,
            strangers=0.1,
            kept=_kept(
                side=0.2, predicate=0.15, other=0.15, swap=0.2, size=0.2, colour=0.05, both=0.05
            ),
            seed=seed + 15,
        ),
        "naming": replace(
            lesson,
            steps=curriculum.naming_steps,
            learning_rate=1e-3,
            naming=4.0,
            places=0.05,
            strangers=0.2,
            kept=_kept(
                side=0.2, predicate=0.3, other=0.2, swap=0.3, size=0.4, colour=0.1, both=0.1
            ),
            seed=seed + 17,
        ),
        "clear": replace(
            lesson,
            steps=curriculum.clear_steps,
            learning_rate=1e-3,
            naming=1.0,
            unconditional=0.12,
            noise=1.6,
            places=0.05,
            strangers=0.3,
            kept=_kept(
                side=0.2, predicate=0.4, other=0.25, swap=0.3, size=0.4, colour=0.2, both=0.15
            ),
            seed=seed + 18,
        ),
        "again": replace(once_more, steps=curriculum.again_steps, seed=seed + 31),
        "longer": replace(once_more, steps=curriculum.longer_steps, seed=seed + 41),
        "last": replace(harder, steps=curriculum.last_steps, seed=seed + 42),
        "wide": replace(
            harder,
            steps=curriculum.wide_steps,
            twins=curriculum.wide_twins,
            learning_rate=1.6e-3,
            seed=seed + 43,
        ),
    }


def _kept(**shares: float) -> dict[str, float]:
    """Value of `DiffusionSettings.kept`, by keyword; an edit not listed counts as 1."""
    return shares
