"""Which images and texts are the same in substance, so that no pair is falsely a negative."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable

from dsd_trt.files.regular import read_regular
from dsd_trt.image.preprocess import ImageSource, image_identity
from dsd_trt.limits import IMAGE_BYTES

_ARTICLES = frozenset({"a", "an", "the"})


def words_of(text: str) -> frozenset[str]:
    """Words of a text without case, punctuation, order, repetition and English articles."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if c.isalnum() or unicodedata.combining(c) else " " for c in plain)
    words = frozenset("".join(letters).split())
    return words - _ARTICLES or words or frozenset({text})


def may_describe_the_same(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two texts, by `words_of`, may both be true of one image.

    They may if all words of one are in the other: "a dog" is true of a picture of a dog on grass.
    """
    return one <= other or other <= one


def image_keys(images: Iterable[ImageSource]) -> dict[object, Hashable]:
    """A key for each image by its identity; files of the same content have the same one.

    Args:
        images: files, or images in memory, which differ by their identity alone.
    """
    keys: dict[object, Hashable] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for image in images:
        if (identity := image_identity(image)) in keys:
            continue
        keys[identity] = identity if isinstance(identity, Hashable) else id(image)
        if isinstance(identity, str):
            try:
                by_size[os.stat(identity).st_size].append(identity)  # noqa: PTH116 (a name)
            except (OSError, ValueError):
                continue  # reported when it is read
    for paths in by_size.values():
        if len(paths) > 1:  # only then can they be the same
            for path in paths:
                keys[path] = _content(path)
    return keys


def _content(path: str) -> Hashable:
    try:
        return hashlib.sha256(read_regular(path, IMAGE_BYTES)).digest()
    except (OSError, ValueError):
        return path
