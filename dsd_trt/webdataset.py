"""WebDataset: samples in plain tar files, the files of one sample alike up to the first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dsd_trt.errors import ImageError
from dsd_trt.image import image_suffixes

SUFFIX = ".tar"


def tar_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Stream the images of a tar file, in its order.

    An image is a member whose name has nothing but an image's ending after the first dot of its
    last part; `a/007.seg.png` is another field of sample `a/007`.

    Yields:
        Keys, the member's path up to that dot, and encoded images. A sample that has several
        images yields its key as often.

    Raises:
        ImageError: the file is no tar, or cut off; what came before has been yielded.
        OSError: the file cannot be read.
    """
    suffixes = image_suffixes()
    try:
        with tarfile.open(path, "r|") as archive:
            for member in archive:
                key, suffix = split_key(member.name)
                # Names that begin with a dot are other programs' leavings ("._007.png").
                if not member.isfile() or not key or key.endswith("/") or suffix not in suffixes:
                    continue
                if (stream := archive.extractfile(member)) is not None:
                    yield key, stream.read()
    except tarfile.TarError as error:
        raise ImageError(f"not a whole tar file: {error}") from None


def split_key(member: str) -> tuple[str, str]:
    """A member's key, and what follows it, in lower case and with its dot."""
    name = PurePosixPath(member).name
    suffix = name[len(name.partition(".")[0]) :]
    return member.removesuffix(suffix).removeprefix("./"), suffix.lower()
