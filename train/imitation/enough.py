"""The images and texts that imitation takes at least; without PyTorch, so that it is said soon."""

from __future__ import annotations

from dsd_trt.errors import InputError, counted

UNKNOWN = "to measure lists on, besides what is learned from: "
"""How the message begins that is about what lists are measured on."""

FEWEST = 60
"""Images, and texts, without which nothing can be learned and measured."""


def require_enough(images: int, texts: int, where: str = "") -> None:
    """Refuse too few images or texts.

    Args:
        images: number of images that can be used.
        texts: number of different texts that can be used.
        where: what they are of, for the message, such as "--measure-on mine.csv: ".

    Raises:
        InputError: there are fewer than `FEWEST` of one.
    """
    for what, found in (("image", images), ("text", texts)):
        if found < FEWEST:
            raise InputError(
                f"{where}{counted(found, what)} that can be used: imitation takes at least "
                f"{FEWEST}. Add rows to the table, or raise --limit"
            )
