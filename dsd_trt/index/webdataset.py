"""WebDataset: samples in tar files; the files of a sample share their name up to the first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import ImageError
from dsd_trt.image.files import printable
from dsd_trt.image.preprocess import image_suffixes
from dsd_trt.index.tar import CutOffError, Tar, open_tar
from dsd_trt.log import get_logger

logger = get_logger(__name__)

_MOST_HOPS = 40  # longest chain of links, the same as on Linux
_MOST_TOLD = 3  # damaged places listed in a message


def tar_images(path: Path) -> Iterator[tuple[str, bytes | ImageError]]:
    """Read the images of a tar file, in its order.

    An image is a member with an image's suffix, or a link with such a name, which is followed
    within the tar. Hidden members (`._007.png`) and WebDataset's own (`__meta__/a.png`) are left
    out with a logged warning.

    Yields:
        Names with encoded images, or with the reason why one cannot be read. A sample's first image
        is named by the sample's key, others by key and field (`a/007.seg.png`). The name "" reports
        on the tar itself: it is damaged, truncated, or has no images.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with open_tar(path) as archive:
            images = _Images(archive)
            for entry in images.entries():
                try:
                    yield entry.name, entry.content(archive)
                except CutOffError as error:
                    if not entry.own:  # otherwise listed in the tar's damage
                        yield entry.name, error
                except ImageError as error:
                    yield entry.name, error
            if fault := images.fault():
                yield "", ImageError(fault)
            if images.left_out:
                logger.warning(
                    "%s: hidden members that are left out: %d, such as %s",
                    path,
                    len(images.left_out),
                    images.left_out[0],
                )
    except ImageError as error:
        yield "", error


def split_key(member: str) -> tuple[str, str]:
    """Key of a member, and its field: the part of its name after the first dot.

    The key is empty if the library webdataset ignores the member: its name has no dot or begins
    with one, or it is metadata.
    """
    folder, slash, name = member.rpartition("/")
    stem, dot, field = name.partition(".")
    top = member.partition("/")[0]
    if not stem or not dot or (len(top) > 3 and top.startswith("__") and top.endswith("__")):
        return "", ""
    return f"{folder}{slash}{stem}", field


@dataclass(frozen=True)
class TarEntry:
    """An image of a tar file.

    Attributes:
        name: the sample's key for a sample's first image, else key and field.
        member: name of its member, printable.
        start: offset of the header of the file it is; None if there is none.
        reason: why there is none.
        own: whether the file is the member itself, not one that it links to.
    """

    name: str
    member: str
    start: int | None
    reason: str = ""
    own: bool = True

    def content(self, archive: Tar) -> bytes:
        """Encoded image.

        Raises:
            ImageError: it cannot be read.
        """
        if self.start is None:
            raise ImageError(self.reason)
        return archive.content(self.start)


@dataclass(frozen=True)
class TarListing:
    """Images of a tar file, without their contents.

    Attributes:
        entries: images in the tar's order.
        fault: what is wrong with the tar itself: damage, or that it has no images; "" if nothing.
    """

    entries: tuple[TarEntry, ...]
    fault: str


def list_tar(path: Path) -> TarListing:
    """List the images of a tar file.

    Raises:
        ImageError: it is no tar file.
        OSError: the file cannot be read.
    """
    with open_tar(path) as archive:
        images = _Images(archive)
        entries = tuple(images.entries())
        return TarListing(entries, images.fault())


class Members:
    """Members of a tar file so far, by which links are followed.

    Args:
        archive: tar file that the members are in.
    """

    def __init__(self, archive: Tar) -> None:
        self.archive = archive
        self._files: dict[str, int] = {}  # offsets of all regular members
        self._links: dict[str, str | None] = {}  # targets of links, relative to the tar's root

    def note(self, member: tarfile.TarInfo) -> None:
        """Note the next member."""
        path = _plain(member.name)
        if is_link(member):
            self._links[path] = _target(member)
            if member.issym():  # replaces a file; a hard link may point to itself
                self._files.pop(path, None)
        elif _is_file(member):
            self._files[path] = member.offset

    def start(self, member: tarfile.TarInfo) -> int | None:
        """Offset of the file that a member is or links to; None if there is none yet."""
        if not is_link(member):
            return member.offset if _is_file(member) else None
        rest, done, hops = _plain(member.name).split("/")[::-1], list[str](), 0
        while rest:
            part = rest.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    return None  # outside the tar
                done.pop()
                continue
            done.append(part)
            path = "/".join(done)
            if path in self._links and path not in self._files:
                hops += 1
                if hops > _MOST_HOPS or (target := self._links[path]) is None:
                    return None
                rest += target.split("/")[::-1]
                done.clear()
        return self._files.get("/".join(done))


class _Images:
    """Images of a tar file, each with a distinct name.

    Attributes:
        names: names of the images so far.
        left_out: names of members with an image's suffix that are not the user's images.
    """

    def __init__(self, archive: Tar) -> None:
        self.names: set[str] = set()
        self.left_out: list[str] = []
        self._archive, self._members = archive, Members(archive)
        self._starts: dict[str, int | None] = {}  # offsets of images
        self._suffixes = image_suffixes()

    def entries(self) -> Iterator[TarEntry]:
        """The images; a link to a later member comes last."""
        waiting: list[tarfile.TarInfo] = []
        for member in self._archive.members():
            self._members.note(member)
            if not self._is_image(member):
                continue
            if is_link(member) and self._members.start(member) is None:
                waiting.append(member)
            else:
                yield from self._entry(member)
        for member in waiting:
            yield from self._entry(member)

    def fault(self) -> str:
        """What is wrong with the tar itself, once its images are known; "" if nothing."""
        if self._archive.damage:
            return f"not a whole tar file: {_told(self._archive.damage)}"
        return "" if self.names else "no images in the tar file"

    def _is_image(self, member: tarfile.TarInfo) -> bool:
        dot_and_last = "." + member.name.rpartition(".")[2].lower()
        if member.isdir() or dot_and_last not in self._suffixes:
            return False
        if split_key(member.name)[0]:
            return True
        self.left_out.append(printable(member.name))
        return False

    def _entry(self, member: tarfile.TarInfo) -> Iterator[TarEntry]:
        """The image with its name; empty if the same image already had that name."""
        start, reason = self._members.start(member), ""
        if start is None and is_link(member):
            reason = f"a link to {member.linkname!r}, which is no file of the tar"
        elif start is None:
            reason = "a device or a pipe, no file"
        key, full = (printable(it) for it in (split_key(member.name)[0], member.name))
        if full in self._starts:
            before = self._starts[full]
            if before is None or start is None or self._content(start) != self._content(before):
                again = f"{full} at byte {member.offset}"
                yield TarEntry(again, again, None, "an image before it has its name")
            return
        self._starts[full] = start
        name = full if key in self.names else key
        self.names.add(name)
        yield TarEntry(name, full, start, reason, start == member.offset)

    def _content(self, start: int) -> bytes | ImageError:
        try:
            return self._archive.content(start)
        except ImageError as error:
            return error


def is_link(member: tarfile.TarInfo) -> bool:
    """Whether a member is a symbolic or a hard link."""
    return member.issym() or member.islnk()


def _is_file(member: tarfile.TarInfo) -> bool:
    """Whether a member has content; unknown types do, as POSIX requires."""
    return member.isreg() or member.type not in tarfile.SUPPORTED_TYPES


def _plain(path: str) -> str:
    """A normalised path, without empty components and dots."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _target(link: tarfile.TarInfo) -> str | None:
    """Target of a link, relative to the tar's root; None if it is outside the tar."""
    if link.islnk():
        return _plain(link.linkname)
    if link.linkname.startswith("/"):
        return None
    return f"{_plain(link.name.rpartition('/')[0])}/{link.linkname}"


def _told(damage: list[str]) -> str:
    more = len(damage) - _MOST_TOLD
    return "; ".join(damage[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")
