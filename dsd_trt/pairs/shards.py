"""WebDatasets that every reader reads whole.

Readers leave out links, and refuse or merge keys that occur again; some drop a field that the first
samples do not have, or cut a number whose first values are whole. So keys are unique over all tar
files, every sample has the same fields, and a score has a decimal point.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_trt.errors import InputError
from dsd_trt.files.folders import require_writable, sync_folder, sync_tree, whole_folder
from dsd_trt.files.unfinished import remove, remove_abandoned, unfinished_name

_NUMBER = re.compile(r"%0?\d*d")
_IN_FOLDER = "%06d.tar"


@dataclass(frozen=True)
class NewSample:
    """A sample to write.

    Attributes:
        key: its key; a number is added to one that is taken.
        fields: contents by field, in order.
    """

    key: str
    fields: Mapping[str, bytes]


class NewWebDataset:
    """A WebDataset to write: a folder of tar files, numbered tar files, or one.

    Args:
        output: path of a new folder, ending in "/"; or of tar files, with their number as `%06d`;
            or of one tar file.
        samples: number of samples per tar file; one tar file alone has them all.
        force: whether what is there may be replaced.
        inputs: function from file names to the paths that are read and have one of them; these
            are never replaced.

    Raises:
        InputError: something is there, and is an input or `force` is not given; or it cannot be
            written.
    """

    def __init__(
        self,
        output: str,
        samples: int,
        *,
        force: bool = False,
        inputs: Callable[[Collection[str]], Iterable[str]] = lambda names: (),
    ) -> None:
        path = Path(output)
        self._folder = not path.name.endswith(".tar")
        self._around = path if self._folder else path.parent
        self._name = _IN_FOLDER if self._folder else path.name
        numbers = _NUMBER.findall(self._name)
        if len(numbers) > 1 or self._name.count("%") != len(numbers):
            raise InputError(f"{output!r} must have one number, such as kept-%06d.tar")
        self._samples = samples if numbers else None
        there = self._there()
        if there and not self._folder:
            read = set(map(os.path.realpath, inputs({path.name for path in there})))
            if taken := [path for path in there if os.path.realpath(path) in read]:
                raise InputError(f"{str(taken[0])!r} is read as an input: give another -o")
        if there and not force:
            raise InputError(
                f"{there[0]} is there: give another -o, or --force to replace what is there"
            )
        if not self._folder and not self._around.is_dir():
            raise InputError(f"no folder {str(self._around)!r} for {path.name}")
        require_writable(self._around.parent if self._folder else self._around, "-o")

    def write(self, samples: Iterable[NewSample]) -> list[Path]:
        """Write samples; nothing is there under its name before all of them are written.

        The caller is the sole writer of the output, see `sole_writer`.

        Returns:
            The tar files.

        Raises:
            OSError: the disk is full or cannot be written to.
        """
        if self._folder:
            with whole_folder(self._around, locked=True) as folder:
                names = [path.name for path in self._write(folder, samples)]
            return [self._around / name for name in names]
        target = self._around / self._name
        remove_abandoned(target)
        folder = target.with_name(unfinished_name(target.name))
        folder.mkdir()
        try:
            written = self._write(folder, samples)
            sync_tree(folder)
            for path in self._there():
                remove(path)
            for path in reversed(written):  # what is not whole lacks the first one
                path.replace(self._around / path.name)
            sync_folder(self._around)
        finally:
            remove(folder)
        return [self._around / path.name for path in written]

    def _there(self) -> list[Path]:
        """Files that are there under names to write."""
        if self._folder:
            return sorted(self._around.iterdir()) if self._around.is_dir() else []
        before, _, after = _NUMBER.sub("\0", self._name).partition("\0")
        if self._samples is None:
            return [it for it in [self._around / self._name] if it.exists()]
        numbered = re.compile(rf"{re.escape(before)}\d+{re.escape(after)}")
        found = self._around.iterdir() if self._around.is_dir() else ()
        return sorted(path for path in found if numbered.fullmatch(path.name))

    def _write(self, folder: Path, samples: Iterable[NewSample]) -> list[Path]:
        taken, written, count = set[str](), list[Path](), 0
        tar: tarfile.TarFile | None = None
        try:
            for sample in samples:
                if tar is None or (self._samples and count == self._samples):
                    if tar is not None:
                        tar.close()
                    name = self._name % len(written) if self._samples else self._name
                    written.append(folder / name)
                    tar, count = tarfile.TarFile(folder / name, "w"), 0
                key, number = sample.key, 2
                while key in taken:
                    key, number = f"{sample.key}-{number}", number + 1
                taken.add(key)
                for field, content in sample.fields.items():
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size, member.mode = len(content), 0o644
                    tar.addfile(member, io.BytesIO(content))
                count += 1
        finally:
            if tar is not None:
                tar.close()
        return written


def score_field(score: float, probability: float | None) -> bytes:
    """Content of a sample's `score.json`: numbers with a decimal point."""
    numbers = {"score": score} | ({} if probability is None else {"probability": probability})
    told = (f'"{name}": {_decimal(number)}' for name, number in numbers.items())
    return f"{{{', '.join(told)}}}\n".encode()


def common_fields(samples: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Fields that all samples have, and the number of samples of those that only some have."""
    counts, total = dict[str, int](), 0
    for fields in samples:
        total += 1
        for field in fields:
            counts[field] = counts.get(field, 0) + 1
    everywhere = tuple(field for field, count in counts.items() if count == total)
    return everywhere, {field: count for field, count in counts.items() if count < total}


def _decimal(number: float) -> str:
    return np.format_float_positional(np.float32(number), trim="0")
