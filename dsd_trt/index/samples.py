"""Samples of WebDatasets: members of a tar file that follow each other and share their key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import ImageError
from dsd_trt.image.files import printable
from dsd_trt.index.tar import open_tar
from dsd_trt.index.webdataset import Members, split_key


@dataclass(frozen=True)
class Sample:
    """One sample of a tar file.

    Attributes:
        key: what its members' names have in common: folder, and name up to the first dot.
        fields: offset of each member's header by the rest of its name, in lower case; None if the
            member is a link that leads nowhere.
    """

    key: str
    fields: Mapping[str, int | None]


def tar_samples(path: Path) -> Iterator[Sample]:
    """Samples of a tar file in its order, without their contents.

    Raises:
        ImageError: it is no tar file, or not a whole one; the samples before have been yielded.
        OSError: the file cannot be read.
    """
    with open_tar(path) as archive:
        members = Members(archive)
        key, fields = "", dict[str, int | None]()
        for member in archive.members():
            members.note(member)
            of, field = split_key(member.name)
            if not of or member.isdir():
                continue
            of, field = printable(of), printable(field.lower())
            if of != key or field in fields:
                if fields:
                    yield Sample(key, fields)
                key, fields = of, {}
            fields[field] = members.start(member)
        if fields:
            yield Sample(key, fields)
        if archive.damage:
            raise ImageError(f"not a whole tar file: {'; '.join(archive.damage[:3])}")
        if not key:
            raise ImageError("no samples in the tar file")
