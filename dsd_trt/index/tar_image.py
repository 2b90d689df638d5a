"""Images that stay in their tar file until they are scored."""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import ImageError
from dsd_trt.image.files import printable
from dsd_trt.image.stored import StoredImage
from dsd_trt.index.tar import Tar, open_tar
from dsd_trt.index.webdataset import TarEntry, list_tar

_OPEN = 8  # tar files open at a time; others are unpacked again if compressed

Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class TarImage(StoredImage):
    """One image of a tar file; `Scorer` accepts it wherever it accepts an image."""

    tar: TarFile
    entry: TarEntry

    @property
    def name(self) -> str:
        """Name of the image in results: the tar's path and the image's name in it."""
        return f"{printable(str(self.tar.path))}/{self.entry.name}"

    @property
    def file_name(self) -> str:
        """Name of the image's member."""
        return self.entry.member

    def content(self) -> bytes:
        """Encoded image.

        Raises:
            ImageError: it cannot be read; the message is the reason.
        """
        if self.entry.start is None:
            raise ImageError(self.entry.reason)
        return self.tar.content(self.entry.start)


@dataclass(frozen=True)
class TarFile:
    """A tar file at the moment it was listed.

    Attributes:
        path: path as it was named by the caller.
        identity: device, number, size and modification time of the file.
    """

    path: Path
    identity: Identity

    @classmethod
    def at(cls, path: Path) -> TarFile:
        """The tar file of a path.

        Raises:
            OSError: there is no such file.
        """
        return cls(path, _identity(path))

    def listing(self) -> TarImages:
        """The images, which stay in the tar file.

        Raises:
            ImageError: it is no tar file.
            OSError: it cannot be read.
        """
        listing = list_tar(self.path)
        return TarImages(tuple(TarImage(self, it) for it in listing.entries), listing.fault)

    def content(self, start: int) -> bytes:
        """Content of the member with its header at an offset.

        Raises:
            ImageError: it cannot be read, or the tar was changed since it was listed.
        """
        try:
            opened = _opened(self.path, self.identity)
            with opened.lock:
                return opened.archive.content(start)
        except OSError as error:
            raise ImageError(f"{self.path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class TarImages:
    """Images of a tar file in its order.

    Attributes:
        images: images that stay in the file.
        fault: what is wrong with the tar itself, as for `TarListing`.
    """

    images: tuple[TarImage, ...]
    fault: str


class _Opened:
    """A tar file that is open as long as somebody reads it."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._stack, self.lock = contextlib.ExitStack(), threading.Lock()
        self.archive: Tar = self._stack.enter_context(open_tar(path))
        if _identity(path) != identity:
            raise ImageError(f"{path} was changed after it was listed. Run the command again")

    def __del__(self) -> None:
        self._stack.close()


_opened = functools.lru_cache(_OPEN)(_Opened)


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
