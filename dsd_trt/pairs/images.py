"""Where the images of a table are: files, tar files, or an index."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from dsd_trt.errors import ImageError, InputError
from dsd_trt.image.missing import no_image
from dsd_trt.index.files import is_index
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.index.tar_image import TarFile, TarImage
from dsd_trt.index.tar_names import SUFFIXES, is_tar
from dsd_trt.jobs import Scorable

_LISTED = 32  # tar files whose images are listed at a time


class NamedImages:
    """Images by the names that a table gives them.

    Args:
        place: folder that names are relative to, a tar file, or the folder of an index. In a
            folder, `x.tar/KEY` names an image of a tar file.
        beside: folder of the table. An index made from its folder has this path before each name.

    Raises:
        InputError: there is no such place, or the index is damaged.
        MissingExtraError: the packages that read an index are not installed.
    """

    def __init__(self, place: Path, beside: Path | None = None) -> None:
        self.place: Path = place
        self._beside = beside
        self._index = Index.open(place) if is_index(place) else None
        self._in_tar = self._index is None and is_tar(place) and place.is_file()
        if self._index is None and not self._in_tar and not place.is_dir():
            raise InputError(
                f"no folder, index or tar file {str(place)!r}; --images names where the images are"
                f"{'. Unpack it, and name the folder' if place.suffix.lower() == '.zip' else ''}"
            )
        self._listed = functools.lru_cache(_LISTED)(_list)

    @property
    def are_files(self) -> bool:
        """Whether the images are files or in tar files, not latents."""
        return self._index is None

    def find(self, name: str) -> Scorable:
        """The image of a name.

        Raises:
            ImageError: there is no such image; the message is the reason.
        """
        if self._index is not None:
            return self._of_index(self._index, name)
        if self._in_tar:
            return self._of_tar(self.place, name)
        path = self.place / name
        in_tar = any(f"{suffix}/" in name.lower() for suffix in SUFFIXES)
        for around in path.parents if in_tar else ():
            if is_tar(around) and around.is_file():
                return self._of_tar(around, str(path.relative_to(around)))
            if around == self.place:
                break
        if not os.path.lexists(path):
            raise ImageError(no_image(self.place, name))
        return path

    def state(self, name: str) -> object:
        """What changes when an image does: size and modification time.

        Raises:
            ImageError: there is no such image.
        """
        image = self.find(name)
        if isinstance(image, Path):
            try:
                status = image.stat()
            except (OSError, ValueError) as error:
                raise ImageError(getattr(error, "strerror", None) or str(error)) from None
            return [status.st_size, status.st_mtime_ns]
        if isinstance(image, TarImage):
            return [image.name, *image.tar.identity[2:]]
        if self._index is not None:
            entry = self._of_index(self._index, name).entry
            return [name, entry.sha256, self._index.manifest.table.sha256]
        return None

    def _of_index(self, index: Index, name: str) -> IndexedImage:
        try:
            return index.find(name)
        except InputError as error:
            if self._beside is not None:
                with contextlib.suppress(InputError):
                    return index.find(str(self._beside / name))
            example = f"; its names are such as {index[0].name!r}" if index else ""
            raise ImageError(f"{error}{example}") from None

    def _of_tar(self, path: Path, name: str) -> TarImage:
        images = self._listed(path)
        if isinstance(images, str):
            raise ImageError(images)
        if (image := images.get(name)) is None:
            raise ImageError(f"{path} has no image {name!r}")
        return image


def _list(path: Path) -> dict[str, TarImage] | str:
    """Images of a tar file by key and by member, or the reason why there are none."""
    images: dict[str, TarImage] = {}
    try:
        for image in TarFile.at(path).listing().images:
            images.setdefault(image.entry.member, image)
            images.setdefault(image.entry.name, image)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except ImageError as error:
        return f"{path}: {error}"
    return images
