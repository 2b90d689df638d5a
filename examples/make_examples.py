"""Draw the example images and write their tables: python examples/make_examples.py."""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, Thing, draw, gradient, noisy, plain
from PIL import Image, ImageColor

# Name, text, background, and things from back to front.
EXAMPLES: list[tuple[str, str, Image.Image, list[Thing]]] = [
    (
        "lone-star",
        "a large yellow star",
        plain("midnightblue"),
        [Thing("star", "yellow", 0.50, 0.52, 0.36)],
    ),
    (
        "lone-cross",
        "a small red cross",
        plain("lightgray"),
        [Thing("cross", "red", 0.62, 0.40, 0.12)],
    ),
    (
        "lone-ring",
        "a purple ring",
        gradient("honeydew", "darkseagreen"),
        [Thing("ring", "purple", 0.44, 0.55, 0.25)],
    ),
    (
        "circle-and-square",
        "a red circle to the left of a blue square",
        plain("lightgray"),
        [Thing("circle", "red", 0.26, 0.48, 0.17), Thing("square", "blue", 0.74, 0.54, 0.17)],
    ),
    (
        "star-and-ring",
        "the yellow star is above a white ring",
        gradient("dimgray", "slategray"),
        [Thing("star", "yellow", 0.46, 0.26, 0.18), Thing("ring", "white", 0.53, 0.74, 0.18)],
    ),
    (
        "triangle-and-cross",
        "a green triangle to the right of an orange cross",
        noisy("lavender", np.random.default_rng(1)),
        [
            Thing("triangle", "green", 0.75, 0.52, 0.18),
            Thing("cross", "orange", 0.25, 0.46, 0.18, 8),
        ],
    ),
    (
        "square-and-triangle",
        "a white square below a black triangle",
        noisy("rosybrown", np.random.default_rng(2)),
        [
            Thing("square", "white", 0.54, 0.74, 0.16, 5),
            Thing("triangle", "black", 0.47, 0.27, 0.17),
        ],
    ),
    (
        "star-in-circle",
        "a small white star inside a large blue circle",
        plain("tan"),
        [Thing("circle", "blue", 0.50, 0.50, 0.35), Thing("star", "white", 0.49, 0.52, 0.14)],
    ),
    (
        "square-in-ring",
        "a small orange square inside a large black ring",
        gradient("aliceblue", "lightsteelblue", angle=30),
        [Thing("ring", "black", 0.50, 0.49, 0.38), Thing("square", "orange", 0.50, 0.50, 0.13, 10)],
    ),
    (
        "triangle-over-square",
        "a yellow triangle in front of a purple square",
        plain("gainsboro"),
        [
            Thing("square", "purple", 0.43, 0.44, 0.25, -6),
            Thing("triangle", "yellow", 0.63, 0.61, 0.19),
        ],
    ),
    (
        "cross-over-circle",
        "a black cross in front of a green circle",
        noisy("wheat", np.random.default_rng(3)),
        [Thing("circle", "green", 0.56, 0.46, 0.25), Thing("cross", "black", 0.37, 0.61, 0.18, 12)],
    ),
    (
        "star-ring-triangle",
        "an orange star to the left of a green ring, and a blue triangle",
        plain("whitesmoke"),
        [
            Thing("star", "orange", 0.24, 0.34, 0.16),
            Thing("ring", "green", 0.73, 0.32, 0.16),
            Thing("triangle", "blue", 0.50, 0.78, 0.14),
        ],
    ),
    (
        "circle-triangle-star",
        "a purple circle above a red triangle, and a black star",
        gradient("lightcyan", "lightskyblue", angle=135),
        [
            Thing("circle", "purple", 0.32, 0.25, 0.15),
            Thing("triangle", "red", 0.30, 0.74, 0.16),
            Thing("star", "black", 0.76, 0.50, 0.15),
        ],
    ),
    (
        "square-cross-circle",
        "a red square, a white cross and a yellow circle",
        noisy("cadetblue", np.random.default_rng(4)),
        [
            Thing("square", "red", 0.25, 0.26, 0.15),
            Thing("cross", "white", 0.72, 0.36, 0.16),
            Thing("circle", "yellow", 0.42, 0.76, 0.14),
        ],
    ),
]

# Texts that describe none of the images.
DISTRACTORS = ["a green star below a purple cross", "a large white triangle"]


CANDIDATES = 8  # per query
NEGATIVES = 3  # per image, the texts of the examples after it


def write_examples(folder: Path) -> None:
    """Write images/*.png, texts.txt and a table of every form into a folder."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, _, background, things in EXAMPLES:
        draw(things, background).save(images / f"{name}.png", optimize=True)
    texts = [text for _, text, _, _ in EXAMPLES] + DISTRACTORS
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    write_tables(folder, [f"images/{name}.png" for name, *_ in EXAMPLES], texts)
    _write_csv(folder / "candidates.csv", retrieved())


def retrieved() -> list[dict[str, Any]]:
    """What a first stage that sees nothing but colours retrieves for each image's text.

    Its score is the share of pixels that are nearest to a colour of the text.
    """
    palette = np.array([ImageColor.getrgb(colour) for colour in COLOURS])
    shares = {}
    for name, _, background, things in EXAMPLES:
        pixels = np.asarray(draw(things, background), np.int64).reshape(-1, 1, 3)
        nearest = ((pixels - palette) ** 2).sum(axis=2).argmin(axis=1)  # (pixels,)
        shares[name] = np.bincount(nearest, minlength=len(COLOURS)) / len(nearest)
    rows = []
    for number, (own, text, *_) in enumerate(EXAMPLES, 1):
        wanted = [COLOURS.index(word) for word in re.findall(r"\w+", text) if word in COLOURS]
        score = {name: round(float(share[wanted].sum()), 3) for name, share in shares.items()}
        best = sorted(score, key=lambda name: -score[name])[:CANDIDATES]
        rows += [
            {
                "query_id": f"q{number}",
                "query": text,
                "image": f"images/{name}.png",
                "score": score[name],
                "relevant": int(name == own),
            }
            for name in best
        ]
    return rows


def write_tables(folder: Path, images: Sequence[str], texts: Sequence[str]) -> None:
    """Write the images and their texts as a table of every form that training takes.

    Args:
        folder: folder of the tables.
        images: paths of the images, relative to the folder.
        texts: text of each image, then texts that describe none.
    """
    pairs: list[dict[str, Any]] = []
    labelled: list[dict[str, Any]] = []
    wrong: list[list[str]] = []  # negatives of each pair
    for at, image in enumerate(images):
        pairs.append({"image": image, "text": texts[at]})
        wrong.append([texts[(at + step) % len(texts)] for step in range(1, NEGATIVES + 1)])
        labelled.append({"image": image, "text": texts[at], "label": 1})
        labelled.append({"image": image, "text": wrong[at][0], "label": 0})

    def with_negatives(columns: Callable[[list[str]], dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**pair, **columns(of_pair)} for pair, of_pair in zip(pairs, wrong, strict=True)]

    _write_csv(folder / "pairs.csv", pairs)
    _write_csv(folder / "labelled.csv", labelled)
    _write_jsonl(folder / "labelled.jsonl", labelled)
    _write_jsonl(folder / "negatives.jsonl", with_negatives(lambda it: {"negatives": it}))
    _write_csv(folder / "negatives.csv", with_negatives(lambda it: {"negatives": "|".join(it)}))
    lists = with_negatives(lambda it: {"negatives": json.dumps(it)})
    _write_csv(folder / "negative-lists.csv", lists)
    numbered = with_negatives(lambda it: {f"negative_{n}": text for n, text in enumerate(it, 1)})
    _write_csv(folder / "negative-columns.csv", numbered)
    names = ("photo", "caption", "match")
    own = [
        {"key": f"drawing {at // 2 + 1}", **dict(zip(names, row.values(), strict=True))}
        for at, row in enumerate(labelled)
    ]
    _write_csv(folder / "own-columns.csv", own)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_examples(Path(__file__).parent)
