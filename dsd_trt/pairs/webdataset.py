"""Pairs of a WebDataset: each sample's image with its own text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import ImageError, InputError
from dsd_trt.files.rows import text_fault
from dsd_trt.files.schema import parse_json
from dsd_trt.image.files import find_images, printable
from dsd_trt.image.preprocess import image_suffixes
from dsd_trt.index.samples import Sample, tar_samples
from dsd_trt.index.tar_image import TarFile, TarImage
from dsd_trt.index.tar_names import SUFFIXES, is_tar
from dsd_trt.index.webdataset import TarEntry
from dsd_trt.pairs.source import Pair
from dsd_trt.results import Failure
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.table import tables_in


@dataclass(frozen=True)
class PlacedSample:
    """A sample and the tar file it is in.

    Attributes:
        shard: number of the tar file.
        tar: that file, at the moment it was listed.
        sample: key and fields of the sample.
    """

    shard: int
    tar: TarFile
    sample: Sample

    @property
    def name(self) -> str:
        """Name of the sample in results: the tar's path and the sample's key."""
        return f"{printable(str(self.tar.path))}/{self.sample.key}"

    def content(self, field: str) -> bytes:
        """Content of a field.

        Raises:
            ImageError: it cannot be read.
        """
        if (start := self.sample.fields[field]) is None:
            raise ImageError(f"its {field} is a link that leads to no file of the tar")
        return self.tar.content(start)


class WebDatasetPairs:
    """Samples as pairs: the image of each, with its text.

    Args:
        path: a tar file, or a folder that is searched for tar files.
        text_field: field of the samples' `.json` that has the text; None takes their `.txt`.

    Attributes:
        name: path of the WebDataset.
        table: always None for a WebDataset.
        embedded: always None for a WebDataset.
        columns: columns of the rows.
        faults: tar files that cannot be read to their end, known once all were read.
        shards: tar files in their order.

    Raises:
        InputError: there is no tar file.
    """

    table = None
    embedded: str | None = None
    columns = ("image", "text")

    def __init__(self, path: Path, text_field: str | None = None) -> None:
        self.name, self._field = str(path), text_field
        self.faults: Sequence[Failure] = ()
        self.shards: tuple[Path, ...] = (path,) if path.is_file() else _tar_files(path)
        self._suffixes = image_suffixes()
        if not self.shards:
            raise InputError(
                f"{path} has no tar files; give a table, a tar file, or a folder of tar files"
                f"{tables_in(path)}"
            )

    def files(self, names: Collection[str] | None = None) -> Iterator[str]:
        """Paths that are read: those of the tar files, whatever their names."""
        yield from map(str, self.shards)

    def samples(self) -> Iterator[PlacedSample]:
        """All samples in order; what is wrong with tar files is noted."""
        faults = list[Failure]()
        for number, path in enumerate(self.shards):
            try:
                tar = TarFile.at(path)
                for sample in tar_samples(path):
                    yield PlacedSample(number, tar, sample)
            except ImageError as error:
                faults.append(Failure(str(path), str(error)))
            except OSError as error:
                faults.append(Failure(str(path), error.strerror or str(error)))
        self.faults = tuple(faults)

    def pairs(self) -> Iterator[Pair]:
        """All samples in order.

        Raises:
            InputError: none of the samples has a text.
        """
        first, texts = None, False
        for placed in self.samples():
            pair = self._pair(placed)
            texts = texts or pair.error is None
            first = first or pair
            yield pair
        if first is None:
            raise InputError(f"{self.name} has no samples{self._first_fault()}")
        if not texts:
            raise InputError(f"no sample of {self.name} can be scored: {first.error}")

    def rows(self) -> Iterator[TableRow]:
        """All samples in order, with name and text."""
        for placed in self.samples():
            try:
                text: str | None = self.text(placed)
            except ImageError:
                text = None
            yield TableRow(f"sample {placed.sample.key}", {"image": placed.name, "text": text})

    def shown(self, row: TableRow) -> tuple[str, str]:
        """The sample's name and its text."""
        return str(row.values["image"]), str(row.values["text"] or "")

    def image(self, name: str) -> TarImage:
        """The image of a pair's name."""
        shard, start, member = name.split(" ", 2)
        return TarImage(TarFile.at(self.shards[int(shard)]), TarEntry(member, member, int(start)))

    def state(self, name: str) -> object:
        """Size and modification time of the tar file."""
        try:
            return self.image(name).tar.identity[2:]
        except OSError as error:
            raise ImageError(str(error.strerror)) from None

    def image_field(self, sample: Sample) -> str | None:
        """The field of the sample's image, `jpg` rather than `seg.png`; None if there is none."""
        found = [it for it in sample.fields if f".{it.rpartition('.')[2]}" in self._suffixes]
        return min(found, key=lambda field: "." in field, default=None)

    def text(self, placed: PlacedSample) -> str:
        """The text of a sample.

        Raises:
            ImageError: it has none; the message is the reason.
        """
        fields = placed.sample.fields
        field = "txt" if self._field is None else "json"
        if field not in fields:
            there = f"it has {', '.join(fields)}"
            remedy = "" if self._field else "; --text-field NAME takes a field of its json"
            raise ImageError(f"the sample has no {field}: {there}{remedy}")
        try:
            text: object = placed.content(field).decode("utf-8-sig")
            if self._field is not None:
                text = self._of_json(str(text), self._field)
        except UnicodeDecodeError:
            raise ImageError(f"its {field} is not UTF-8 text") from None
        except ValueError as error:
            raise ImageError(f"its {field} cannot be read: {error}") from None
        if not isinstance(text, str) or not text.strip():
            raise ImageError(f"its {self._field or field} is empty")
        if fault := text_fault(text):
            raise ImageError(f"its {self._field or field} has {fault}")
        return text.strip()

    def _of_json(self, content: str, field: str) -> object:
        value = parse_json(content)
        if not isinstance(value, dict) or field not in value:
            there = ", ".join(value) if isinstance(value, dict) else "no object"
            raise ImageError(f"its json has no field {field!r}: it has {there}")
        if not isinstance(text := value[field], str):
            raise ImageError(f"{field} in its json is no text")
        return text

    def _pair(self, placed: PlacedSample) -> Pair:
        field = self.image_field(placed.sample)
        try:
            if field is None:
                raise ImageError(
                    f"the sample has no image: it has {', '.join(placed.sample.fields)}"
                )
            if (start := placed.sample.fields[field]) is None:
                placed.content(field)
            return Pair(f"{placed.shard} {start} {placed.sample.key}.{field}", self.text(placed))
        except ImageError as error:
            return Pair("", "", str(error))

    def _first_fault(self) -> str:
        return f": {self.faults[0]}" if self.faults else ""


def _tar_files(folder: Path) -> tuple[Path, ...]:
    """Tar files in a folder and the folders in it, in order."""
    try:
        found = find_images([str(folder)], SUFFIXES).images
    except InputError:
        return ()
    return tuple(it for it in found if is_tar(it))
