"""Image files named on a command line: by path, by directory, or by a glob."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.failure import Failure
from dsd_trt.files.regular import other_kind
from dsd_trt.image.preprocess import image_suffixes


@dataclass(frozen=True)
class Found:
    """Image files found from arguments.

    Attributes:
        images: image files, each listed once.
        unreadable: failures for unreadable directories, dangling links, and special files with an
            image's name.
        hides: whether unreadable paths may hide more images; a path with an image's name does not.
    """

    images: tuple[Path, ...]
    unreadable: tuple[Failure, ...]
    hides: bool


def find_images(arguments: Iterable[str], others: Sequence[str] = ()) -> Found:
    """Collect image files from paths, directories (recursive) and globs.

    A file given by path is used whatever its name. Directories and globs yield only files with an
    image's suffix, and no hidden ones. The images of each argument are sorted.

    Symbolic links to directories are followed. Each directory is searched once, however many links
    lead to it, under its own path if that is below the argument. Each file is therefore found once;
    a link to a file counts as a separate file.

    Args:
        arguments: paths, directories and globs, as typed.
        others: suffixes of other files to accept, such as ".tar".

    Raises:
        InputError: a path does not exist, or a directory or glob has no images.
    """
    search = _Search((*image_suffixes(), *others))
    found: dict[str, Path] = {}
    for argument in arguments:
        for path in search.expand(argument):
            found.setdefault(search.identity(path), path)
    unreadable = tuple(Failure(str(path), why) for path, why in search.unreadable.items())
    return Found(tuple(found.values()), unreadable, search.hides)


class _Search:
    """Searches the arguments one after another.

    Attributes:
        unreadable: failures for paths that cannot be searched or followed.
        hides: whether images may lie behind one of these.
    """

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.unreadable: dict[Path, str] = {}
        self.hides = False
        self._suffixes = suffixes
        self._parents: dict[Path, str] = {}  # resolved path

    def identity(self, path: Path) -> str:
        """Identity of the file behind a path; equal for two paths to it, except for hard links."""
        parent = path.parent
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], path.name)  # noqa: PTH118 (the parent is text)

    def expand(self, argument: str) -> list[Path]:
        """Images of one argument."""
        path, before = Path(argument), len(self.unreadable)
        try:
            mode = path.stat().st_mode
        except PermissionError as error:
            self._note(path, error)
            return []
        except (OSError, ValueError):  # missing, or not a valid name
            if not glob.has_magic(argument):
                raise InputError(f"no file or directory {argument!r}") from None
            paths, complaint = self._matching(path), f"no images match {argument!r}"
        else:
            if stat.S_ISREG(mode):
                return [path]
            paths, complaint = [path], f"no images in the directory {argument!r}"
            if not stat.S_ISDIR(mode):
                self.unreadable[path] = other_kind(mode)
        directories = [path for path in paths if _is_directory(path)]
        images = {path for path in paths if not _is_directory(path) and self._is_image(path)}
        for _, inside in self._walk(directories):
            images.update(inside)
        if not images and len(self.unreadable) == before:
            raise InputError(complaint)
        return sorted(images)

    def _matching(self, pattern: Path) -> list[Path]:
        """Files and directories that match a glob; unlike the glob module, safe from link loops."""
        paths = [Path(pattern.anchor)]
        for part in pattern.relative_to(pattern.anchor).parts:
            directories = [path for path in paths if _is_directory(path)]
            if part == "**":
                paths = [folder for folder, _ in self._walk(directories)]
            elif glob.has_magic(part):
                paths = [
                    Path(entry.path)
                    for folder in directories
                    for entry in self._entries(folder)
                    if fnmatch.fnmatch(entry.name, part)
                    and (part.startswith(".") or not entry.name.startswith("."))
                ]
            else:
                paths = [path / part for path in directories if os.path.lexists(path / part)]
        return paths

    def _walk(self, tops: Iterable[Path]) -> Iterator[tuple[Path, list[Path]]]:
        """Directories with their images, each directory once, those behind links last."""
        seen: set[tuple[int, int]] = set()
        waiting, linked = list[Path](), list[Path]()
        for top in tops:
            (linked if top.is_symlink() else waiting).append(top)
        while waiting or linked:
            if not waiting:
                linked.sort(reverse=True)
                waiting.append(linked.pop())
            folder, images = waiting.pop(), list[Path]()
            try:
                status = folder.stat()
            except OSError as error:
                self._note(folder, error)
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in self._entries(folder):
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if _is_kind(entry.is_dir):
                    (linked if entry.is_symlink() else waiting).append(path)
                elif self._is_image(path, _is_kind(entry.is_file)):
                    images.append(path)
            yield folder, images

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            self._note(folder, error)
            return []

    def _note(self, folder: Path, error: OSError) -> None:
        self.unreadable[folder] = str(error.strerror)
        self.hides = True

    def _is_image(self, path: Path, is_file: bool = False) -> bool:
        """Whether a path is a file with an image's name; records paths that may hide images.

        Args:
            path: path of an entry that is not a directory.
            is_file: whether it is known to be a file.
        """
        named = path.name.lower().endswith(self._suffixes)
        if is_file or not (named or path.is_symlink()):
            return named
        try:
            mode = path.stat().st_mode
        except OSError as error:
            self.unreadable[path] = f"cannot be followed: {error.strerror}"
            self.hides |= not named  # otherwise a single image, which is gone
            return False
        if named and not stat.S_ISREG(mode):
            self.unreadable[path] = other_kind(mode)
        return named and stat.S_ISREG(mode)


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises on odd names)


def _is_kind(test: Callable[[], bool]) -> bool:
    """Kind of a directory entry as reported by the system; False for a dangling link."""
    try:
        return test()
    except OSError:
        return False


def printable(name: str) -> str:
    """A file name for tables; invalid UTF-8 is escaped, and distinct names stay distinct."""
    return name.encode("utf-8", "backslashreplace").decode()
