"""Where the heat of a thing's words lies: on the thing, or elsewhere.

    python benchmarks/measure_explanations.py
    python benchmarks/measure_explanations.py --model shapes     # also the plain model's maps

Draws scenes of the demonstration's generator, which knows the mask of every thing, and explains
each picture with one of its captions. Of every thing whose colour and shape stand in the caption
once, the heat maps of these two words are added. Their mass is the share inside the mask. Pointing
is whether the centre of the place with the most heat lies in the mask; "touches" is whether any
pixel of that place does. Chance is the mask's share of the image, and of places a map of random
numbers. Errors are standard errors over scenes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt import Bundle, DsdError, Explanation, Scorer, read_bundle
from dsd_trt.attention import enlarged
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import Thing, sample_scene

# Pretraining and data sets use seeds that start with other numbers, see train/shapes/datasets.py.
_PREFIX = int.from_bytes(b"maps")
_VISIBLE = 8  # pixels that a thing shows at least

Heat = NDArray[np.floating]
Maps = Callable[[int], Heat]
"""Map of a word, by its index."""


@dataclass(frozen=True)
class Named:
    """A thing whose colour and shape are named once in the caption.

    Attributes:
        scene: number of the scene.
        things: number of things in it.
        shape: name of the thing's shape.
        words: indices of the two words, colour first.
        mask: pixels that show the thing, bool (64, 64).
    """

    scene: int
    things: int
    shape: str
    words: tuple[int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What one kind of map says of every thing, (things,) each.

    Attributes:
        mass: share of the heat inside the mask.
        points: whether the centre of the hottest place lies in the mask.
        touches: whether any pixel of the hottest place does.
    """

    mass: NDArray[np.float64]
    points: NDArray[np.bool_]
    touches: NDArray[np.bool_]


def explained(bundle: Bundle, scenes: int) -> Iterator[tuple[Explanation, list[Named]]]:
    """Explanations of drawn scenes, and the things that their captions name."""
    with Scorer(bundle) as scorer:
        for number in range(scenes):
            rng = np.random.default_rng([_PREFIX, number])
            scene = sample_scene(rng)
            text, drawing = caption(scene, rng), draw(scene, rng)
            explanation = scorer.explain(drawing.pixels, text)
            written = [word.text.lower() for word in explanation.words]
            named = [
                Named(number, len(scene.things), thing.shape, words, mask)
                for thing, mask in zip(scene.things, drawing.masks, strict=True)
                if mask.sum() >= _VISIBLE and (words := _words(thing, written)) is not None
            ]
            yield explanation, named


def _words(thing: Thing, written: list[str]) -> tuple[int, int] | None:
    if written.count(thing.colour) != 1 or written.count(thing.shape) != 1:
        return None
    return written.index(thing.colour), written.index(thing.shape)


def judged(heat: Heat, mask: NDArray[np.bool_]) -> tuple[float, bool, bool]:
    """Mass, pointing and touching of one map, whose places are squares of pixels."""
    side = len(mask) // len(heat)
    blocks = mask.reshape(len(heat), side, len(heat), side)
    hottest = heat >= heat.max() * (1 - 1e-6)  # several, where a coarse layer was enlarged
    y, x = (int((np.mean(at) + 0.5) * side) for at in np.nonzero(hottest))
    shown = blocks.mean(axis=(1, 3))
    inside = float((heat * shown).sum() / heat.sum())
    points = mask[y - 1 : y + 1, x - 1 : x + 1].mean() >= 0.5
    return inside, bool(points), bool(shown[hottest].any())


def reachable(mask: NDArray[np.bool_], places: int = 8) -> bool:
    """Whether the centre of any place of a square grid lies in a mask."""
    side = len(mask) // places
    middle = slice(side // 2 - 1, side // 2 + 1)
    blocks = mask.reshape(places, side, places, side)[:, middle][..., middle]
    return bool((blocks.mean(axis=(1, 3)) >= 0.5).any())


def gradient(explanation: Explanation, word: int, *, times: bool = False) -> Heat:
    """Gradient of a word's score by the attention of every place, through the pooling alone.

    Args:
        explanation: explanation with its maps.
        word: index of the word.
        times: whether it is multiplied by the attention.
    """
    places = explanation.words[word].places
    columns, lam = [explanation.tokens.index(it) for it in places], explanation.method.lam
    heat = np.zeros(explanation.size)
    for layer in explanation.layers:
        attention = layer.attention[..., columns].astype(np.float64)
        sharp = np.exp(lam * (attention - attention.max(axis=2, keepdims=True)))
        read = sharp / sharp.sum(axis=2, keepdims=True)  # dS / dA of LogSumExp
        read = read * attention if times else read
        mean = (read * layer.weights[:, :, None, None]).sum(axis=(0, 1)).mean(axis=1)
        heat += enlarged(mean, layer.places, explanation.size)
    return heat


def kinds(explanation: Explanation) -> dict[str, Maps]:
    """Kinds of maps by name."""
    found: dict[str, Maps] = {
        "heat, as in the score": explanation.heat,
        "mean attention, without the pooling": explanation.attention,
        "gradient of the score by attention": partial(gradient, explanation),
        "that gradient times attention (Eq. 7)": partial(gradient, explanation, times=True),
    }
    for layer in explanation.layers:
        rows, columns = layer.places
        name = f"heat of layer {layer.layer}, {rows} x {columns}"
        found[name] = partial(explanation.heat, layer=layer.layer)
    for level in explanation.levels:
        found[f"heat at level {level:g}"] = partial(explanation.heat, level=level)
    return found


def measure(
    bundle: Bundle, scenes: int, progress: Callable[[int], None]
) -> tuple[dict[str, Found], list[Named]]:
    """What every kind of map says of the things of all scenes, and the things."""
    seen: dict[str, list[tuple[float, bool, bool]]] = {}
    things: list[Named] = []
    random = np.random.default_rng(0)
    for done, (explanation, named) in enumerate(explained(bundle, scenes), start=1):
        things += named
        for thing in named:
            for name, of_word in kinds(explanation).items():
                heat = np.sum([of_word(it) for it in thing.words], axis=0)
                seen.setdefault(name, []).append(judged(heat, thing.mask))
            for name, word in zip(("colour", "shape"), thing.words, strict=True):
                heat = explanation.heat(word)
                seen.setdefault(f"heat of the {name}'s word", []).append(judged(heat, thing.mask))
            noise = random.random(explanation.size)
            seen.setdefault("chance: random maps", []).append(judged(noise, thing.mask))
        progress(done)
    return {name: Found(*map(np.array, zip(*it, strict=True))) for name, it in seen.items()}, things


def table(found: dict[str, Found], things: list[Named], bundle: str) -> Iterator[str]:
    """Lines of a Markdown table."""
    area = np.array([thing.mask.mean() for thing in things])
    scene = np.array([thing.scene for thing in things])
    yield f"{bundle}: {len(things)} named things of {len({*scene.tolist()})} scenes."
    yield f"Their masks are {area.mean():.1%} of the image."
    within = np.mean([reachable(thing.mask) for thing in things])
    yield f"The centre of some place lies in the mask of {within:.1%} of them.\n"
    yield "| maps | mass inside | by chance's | points inside | touches |"
    yield "|---|---:|---:|---:|---:|"
    for name, it in found.items():
        cells = [_percent(values, scene) for values in (it.mass, it.points, it.touches)]
        times = f"{it.mass.mean() / area.mean():.1f} x"
        yield f"| {name} | {cells[0]} | {times} | {cells[1]} | {cells[2]} |"
    yield ""
    yield "| heat, as in the score | things | mass inside | points inside | touches |"
    yield "|---|---:|---:|---:|---:|"
    whole = found["heat, as in the score"]
    count = np.array([f"{thing.things} in the scene" for thing in things])
    shapes = np.array([thing.shape for thing in things])
    for of_things in (count, shapes):
        for name in sorted({*of_things.tolist()}):
            of = of_things == name
            values = (whole.mass[of], whole.points[of], whole.touches[of])
            row = " | ".join(_percent(it, scene[of]) for it in values)
            yield f"| {name} | {of.sum()} | {row} |"
    yield ""


def _percent(values: NDArray[np.generic], scene: NDArray[np.int64]) -> str:
    """Mean over things in percent, with its standard error by bootstrap over scenes."""
    numbers, rng = values.astype(np.float64), np.random.default_rng(0)
    names, place = np.unique(scene, return_inverse=True)
    sums, counts = (np.bincount(place, weights=it) for it in (numbers, np.ones(len(numbers))))
    drawn = rng.integers(0, len(names), (1000, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return f"{numbers.mean():.1%} ± {means.std():.1%}".replace("%", " %")


def plain_bundle(model: str, like: Bundle, folder: Path) -> Bundle:
    """A bundle of the model without an adapter, at the noise levels of another bundle."""
    from dsd_trt.export.exporter import export_bundle
    from dsd_trt.export.settings import ExportSettings

    levels = like.manifest.method.noise_levels.fractions
    settings = ExportSettings(model, levels=levels, verify="none", maps=True)
    return export_bundle(settings, folder)[0]


def main() -> None:
    """Measure as the arguments say, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", help="bundle to explain with  [default: the demonstration's]")
    parser.add_argument("--scenes", type=int, default=200, help="scenes to draw")
    parser.add_argument("--model", help="also export this checkpoint without an adapter")
    given = parser.parse_args()

    def progress(done: int) -> None:
        if done % 50 == 0:
            print(f"{done} of {given.scenes} scenes", file=sys.stderr)

    try:
        bundle = read_bundle(bundle_folder(given.bundle))
        with tempfile.TemporaryDirectory() as scratch:
            bundles = [(given.bundle or "the demonstration", bundle)]
            if given.model:
                plain = plain_bundle(given.model, bundle, Path(scratch) / "plain")
                bundles.append((f"{given.model} without an adapter", plain))
            for name, it in bundles:
                for line in table(*measure(it, given.scenes, progress), name):
                    print(line)
    except DsdError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
