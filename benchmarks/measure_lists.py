"""Measure pruned search against scoring everything: passes, time, and whether the best agree.

python benchmarks/measure_lists.py [BUNDLE] [--images N] [--texts M] [--captioned C] [--best K]
    [--by image|text] [--engine E] [--seed S]

Draws N images and M captions, which the demonstration's lists were not measured on. C of the images
have their own caption among the texts, the others do not. If C is above M, several of them are
drawings of one scene. Prints a row of the table in
docs/search.md. Time is that of scoring alone: images and texts are encoded in both runs.
"""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np

from dsd_trt import Scorer
from dsd_trt.search import same_best
from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import sample_scene

_PREFIX = int.from_bytes(b"lists")


class _Heard(logging.Handler):
    """Hears the average number of passes of a list, which a ranking does not return."""

    passes = float("nan")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the figure of the last search."""
        if "passes each" in record.msg and isinstance(record.args, tuple):
            self.passes = float(str(record.args[1]))


def main() -> None:
    """Measure, and print the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--captioned", type=int, default=100)
    parser.add_argument("--best", type=int, default=1)
    parser.add_argument("--by", choices=("image", "text"), default="image")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng([_PREFIX, options.seed])
    scenes = [sample_scene(rng) for _ in range(options.images + options.texts)]
    captioned = min(options.captioned, options.images)
    own = min(captioned, options.texts)
    described = [*scenes[:own], *scenes[options.images :]][: options.texts]
    texts = [caption(scene, rng) for scene in described]
    shown = [scenes[it % own if it < captioned else it] for it in range(options.images)]
    images = [draw(scene, rng).pixels for scene in shown]
    heard = _Heard()
    logging.getLogger("dsd_trt").addHandler(heard)
    logging.getLogger("dsd_trt").setLevel(logging.INFO)
    with Scorer.load(options.bundle, engine=options.engine) as scorer:
        levels = len(scorer.manifest.method.noise_levels.fractions)
        scorer.score(images[:2], texts[:2])  # compiles
        if options.by == "image":
            scorer.score(images[:2], texts, top_k=options.best)
        else:
            scorer.rank(texts[:2], images[:4], options.best, prune=True)
        began = time.perf_counter()
        full = scorer.score(images, texts)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        if options.by == "image":
            pruned = scorer.score(images, texts, top_k=options.best)
            took = time.perf_counter() - began
            same = same_best(pruned.scores, full.scores, options.best)
            passes = pruned.passes / len(images)
            each = len(texts) * levels
        else:
            found = scorer.rank(texts, images, options.best, prune=True)
            took = time.perf_counter() - began
            order = np.argsort(-full.scores, axis=0, kind="stable")[: options.best].T.tolist()
            pairs = zip(found, order, strict=True)
            same = np.array([{it.index for it in ranked} == set(best) for ranked, best in pairs])
            passes, each = heard.passes, len(images) * levels
    print("| searched | of | best | passes | of all | fewer | same | time | of all | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    searched, of = (len(images), len(texts)) if options.by == "image" else (len(texts), len(images))
    print(
        f"| {searched} {options.by}s | {of} | {options.best} | {passes:.1f} | {each} | "
        f"{each / passes:.1f} x | {100 * same.mean():.1f} % | {took:.1f} s | {whole:.1f} s | "
        f"{took / whole:.3f} |"
    )


if __name__ == "__main__":
    main()
