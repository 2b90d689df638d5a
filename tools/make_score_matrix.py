"""Score the example images against the example texts, and draw score-matrix.png.

python tools/make_score_matrix.py [BUNDLE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dsd_trt import Scorer
from dsd_trt.commands.inputs import read_pairs, read_texts
from dsd_trt.errors import DsdError

ROOT = Path(__file__).parents[1]

CELL, ROW = 54, 30  # width and height of a cell in pixels; thumbnails are CELL wide
GAP = 12
TEXT_SIZE, NUMBER_SIZE = 16, 13
PALE, DEEP = np.array([247, 249, 252]), np.array([24, 78, 119])  # lowest and highest probability
INK, FRAME = (30, 30, 34), (214, 96, 28)
LEGEND = (
    "Match probability of every image and text.  Frame: the text belongs to the image.  "
    "Dot: the best text of its image."
)


def draw_matrix(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    probabilities: NDArray[np.float32],
    right: Sequence[str],
) -> Image.Image:
    """Draw images along the top, texts down the side, and one cell per pair.

    Args:
        images: N images for the columns.
        texts: M texts for the rows.
        probabilities: match probabilities, (N, M).
        right: text of each image's positive pair, (N,).
    """
    text_font = ImageFont.load_default(TEXT_SIZE)
    number_font = ImageFont.load_default(NUMBER_SIZE)
    left = 2 * GAP + round(max(text_font.getlength(text) for text in texts))
    top = 2 * GAP + CELL
    width = left + CELL * len(images) + GAP
    height = top + ROW * len(texts) + 2 * GAP + TEXT_SIZE
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, image in enumerate(images):
        thumbnail = image.convert("RGB").resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (left + CELL * column + 2, GAP))
    lowest, span = probabilities.min(), max(float(np.ptp(probabilities)), 1e-9)
    for row, text in enumerate(texts):
        y = top + ROW * row
        pen.text((left - GAP, y + ROW / 2), text, INK, text_font, anchor="rm")
        for column in range(len(images)):
            x = left + CELL * column
            probability = float(probabilities[column, row])
            share = (probability - lowest) / span
            color = tuple(np.rint(PALE + share * (DEEP - PALE)).astype(int).tolist())
            pen.rectangle((x, y, x + CELL - 2, y + ROW - 2), color)
            number_color = "white" if share > 0.5 else INK
            number = f"{probability:.2f}"
            middle = (x + CELL / 2 - 1, y + ROW / 2)
            pen.text(middle, number, number_color, number_font, anchor="mm")
            if row == probabilities[column].argmax():
                pen.ellipse((x + CELL - 10, y + 4, x + CELL - 6, y + 8), number_color)
            if text == right[column]:
                pen.rectangle((x, y, x + CELL - 2, y + ROW - 2), outline=FRAME, width=3)
    pen.text((width - GAP, height - GAP), LEGEND, INK, number_font, anchor="rs")
    return sheet


def main() -> None:
    """Score with the bundle given on the command line, or the demonstration's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="default: the demonstration's")
    scorer = Scorer.load(parser.parse_args().bundle)
    if why := scorer.why_no_probability():
        parser.error(why)
    pairs = read_pairs(ROOT / "examples" / "pairs.csv")
    texts = read_texts(str(ROOT / "examples" / "texts.txt"))
    paths, right = [pair.image for pair in pairs], [pair.text for pair in pairs]
    matrix = scorer.score(paths, texts)
    images = [Image.open(path) for path in paths]
    sheet = draw_matrix(images, texts, matrix.probabilities, right)
    sheet.save(ROOT / "docs" / "score-matrix.png", optimize=True)
    best = [texts[i] for i in matrix.scores.argmax(axis=1)]
    hits = sum(a == b for a, b in zip(best, right, strict=True))
    print(f"{hits} of {len(paths)} images have their own text on top")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
