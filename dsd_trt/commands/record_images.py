"""Images of records, found again for their pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path

from dsd_trt.errors import ImageError
from dsd_trt.files.regular import read_regular
from dsd_trt.image.preprocess import ImageSource
from dsd_trt.index.index import IndexedImage
from dsd_trt.index.tar_image import TarImage
from dsd_trt.jobs import BegunImage, Scorable
from dsd_trt.limits import IMAGE_BYTES
from dsd_trt.pairs.images import NamedImages
from dsd_trt.pairs.survey import PairSurvey


class GivenImages:
    """Images that were given one by one; a record's place is its image's number.

    Args:
        images: images in their order.
    """

    def __init__(self, images: Sequence[Scorable]) -> None:
        self._images = images

    def key(self, place: int) -> Hashable:
        """The image's number."""
        return place

    def source(self, place: int) -> ImageSource | None:
        """The image; of an index, the file that was indexed if it is still there."""
        return _with_pixels(self._images[place])


class SurveyedImages:
    """Images of pairs; a record's place is the number of its row.

    Args:
        survey: survey of the pairs.
    """

    def __init__(self, survey: PairSurvey) -> None:
        self._survey = survey

    def key(self, place: int) -> Hashable:
        """Number of the row's image among all, -1 if the row has none that can be used."""
        return int(self._survey.image_of[place])

    def source(self, place: int) -> ImageSource | None:
        """The row's image, as for `GivenImages.source`."""
        if self.key(place) == -1:
            return None
        name, _ = self._survey.pair(place)
        try:
            return _with_pixels(self._survey.source.image(name))
        except (ImageError, OSError):  # it has no score either, and the reason is reported
            return None


def _with_pixels(image: Scorable) -> ImageSource | None:
    if isinstance(image, IndexedImage):
        return _indexed(image)
    return image.image if isinstance(image, BegunImage) else image


def _indexed(image: IndexedImage) -> bytes | None:
    """Content of the file that an image was indexed from; None if it is gone, or another."""
    try:
        found = NamedImages(Path()).find(image.name)
        if isinstance(found, TarImage):
            content = found.content()
        elif isinstance(found, Path):
            content = read_regular(found, IMAGE_BYTES)
        else:
            return None
    except (ImageError, OSError, ValueError):
        return None
    return content if hashlib.sha256(content).hexdigest() == image.entry.sha256 else None
