"""A picture of a score matrix for notebooks: one HTML table that needs nothing else.

Its size is bounded: the first rows and columns, short names, and small thumbnails of a few files.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, counted

_ROWS, _COLUMNS = 20, 12
_LONGEST = 60  # characters of a name or a text
_SIDE = 48  # pixels of a thumbnail
_LARGEST_FILE = 2**21  # bytes: decoding a larger image takes too long for a picture of a table
_LARGEST = 2**22  # pixels of one whose file is small
_SECONDS = 0.5  # for all thumbnails
_GREEN = "60, 160, 90"


def matrix_html(
    images: Sequence[str],
    texts: Sequence[str],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    caption: str,
) -> str:
    """The first images and texts as a table, the best text of each image in bold.

    A cell's shade is its score between the least and the greatest of its row, because scores rank
    texts within an image. Thumbnails stand before names of small image files.

    Args:
        images: names of the images, (N,).
        texts: texts in their columns' order, (M,).
        scores: scores, (N, M); NaN where there is none.
        probabilities: match probabilities, (N, M); NaN where there is none.
        caption: line above the table.
    """
    rows, columns = images[:_ROWS], texts[:_COLUMNS]
    head = "".join(f'<th style="text-align: left">{_short(text)}</th>' for text in columns)
    body = []
    until = time.monotonic() + _SECONDS
    for image, f, p in zip(rows, scores, probabilities, strict=False):
        picture = _thumbnail(image) if time.monotonic() < until else ""
        cells = _cells(f, p, len(columns))
        body.append(f'<tr><th style="text-align: left">{picture}{_short(image)}</th>{cells}</tr>')
    left = [
        counted(len(every) - len(shown), f"more {what}")
        for every, shown, what in ((images, rows, "image"), (texts, columns, "text"))
        if len(every) > len(shown)
    ]
    note = f"<p>{' and '.join(left)}: see scores, or to_pandas()</p>" if left else ""
    return (
        f"<div><p>{escape(caption)}</p><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>{note}</div>"
    )


def _cells(f: NDArray[np.float32], p: NDArray[np.float32], count: int) -> str:
    """Cells of one image's first texts."""
    known = f[~np.isnan(f)]
    least, greatest = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    cells = []
    for score, probability in zip(f[:count].tolist(), p[:count].tolist(), strict=True):
        if np.isnan(score):
            cells.append('<td style="text-align: right" title="no score">-</td>')
            continue
        shade = (score - least) / (greatest - least) if greatest > least else 0.0
        style = f"text-align: right; background: rgba({_GREEN}, {0.6 * shade:.2f})"
        title = "no probability" if np.isnan(probability) else f"probability {probability:.3f}"
        value = f"{score:.4f}"
        if score == greatest and len(f) > 1:
            value = f"<b>{value}</b>"
        cells.append(f'<td style="{style}" title="{title}">{value}</td>')
    return "".join(cells)


def _short(name: str) -> str:
    """A name for a cell: escaped, and without the middle of a long one."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"
    # A file's name may have bytes that are no UTF-8, which no page can show.
    return escape(name.encode("utf-8", "replace").decode("utf-8"))


def _thumbnail(name: str) -> str:
    """A small image file as an element with its data; "" for anything else."""
    from dsd_trt.image.preprocess import load_image

    try:
        if not Path(name).is_file() or Path(name).stat().st_size > _LARGEST_FILE:
            return ""
        picture = load_image(name, max_pixels=_LARGEST)
        picture.thumbnail((_SIDE, _SIDE))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=80)
    except (DsdError, OSError, ValueError):  # also a name with a null character
        return ""
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{encoded}"> '
