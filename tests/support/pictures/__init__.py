"""Image files with the pixels that their format's specification requires.

Files are written by Pillow and by hand. The expected pixels are computed with numpy from the same
samples. Tests compare the decoders of Python and of C++ with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from pictures.case import Case, Pixels
from pictures.jpeg import jpeg_cases
from pictures.others import avif, bmp_files, gif_files, jpeg2000, netpbm, webp
from pictures.png import png_kinds
from pictures.png_metadata import png_oddities, png_orientations
from pictures.tiff import tiff_colors, tiff_greys, tiff_metadata, tiff_refused

Drawn = Callable[[], Iterator[Case]]

PNG_AND_JPEG: tuple[Drawn, ...] = (png_kinds, png_oddities, png_orientations, jpeg_cases)
"""Cases of the formats that C++ decodes as well."""

OTHERS: tuple[Drawn, ...] = (
    *(tiff_greys, tiff_colors, tiff_metadata, tiff_refused),
    *(bmp_files, gif_files, webp, avif, jpeg2000, netpbm),
)


def faults(cases: Iterable[Case], decode: Callable[[bytes], Pixels | str]) -> list[str]:
    """Descriptions of the files that a decoder gets wrong.

    Args:
        cases: files with their expected pixels, or the reason for their refusal.
        decode: function from a file's content to its pixels, or to the reason for its refusal.
    """
    found = []
    for case in cases:
        got = decode(case.content)
        if isinstance(got, str) or isinstance(case.expected, str):
            refused = isinstance(got, str) and isinstance(case.expected, str)
            fine = refused and str(case.expected) in str(got)
            what = got if isinstance(got, str) else "read"
        elif got.shape != case.expected.shape:
            fine, what = False, f"{got.shape} instead of {case.expected.shape}"
        else:
            off = int(np.abs(got.astype(int) - case.expected).max())
            fine, what = off <= case.tolerance, f"{off} grey levels off"
        if not fine:
            found.append(f"{case.name}: {what}")
    return found
