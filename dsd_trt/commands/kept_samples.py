"""Kept pairs as samples of a WebDataset, and copies of their images."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

import numpy as np

from dsd_trt.commands.filtered import Filtered
from dsd_trt.commands.layout import Layout
from dsd_trt.commands.output import Record, shortest
from dsd_trt.errors import DsdError, ImageError
from dsd_trt.files.folders import whole_folder
from dsd_trt.files.regular import read_regular
from dsd_trt.image.stored import StoredImage
from dsd_trt.jobs import Scorable
from dsd_trt.limits import IMAGE_BYTES
from dsd_trt.pairs.shards import NewSample, NewWebDataset, common_fields, score_field
from dsd_trt.pairs.webdataset import PlacedSample, WebDatasetPairs
from dsd_trt.results import Failure
from dsd_trt.tables.values import to_json


class KeptSamples:
    """Kept pairs as samples of a WebDataset.

    Args:
        filtered: run with the choice among its pairs.

    Attributes:
        left_out: number of samples that had a field which not all of them have, by field.
        failures: samples that could not be read again.
    """

    def __init__(self, filtered: Filtered) -> None:
        self.left_out: dict[str, int] = {}
        self.failures: list[Failure] = []
        self._filtered = filtered
        self._source = filtered.run.survey.source

    def write(self, output: NewWebDataset) -> list[Path]:
        """Write the samples.

        Raises:
            DsdError: the disk is full or cannot be written to.
        """
        try:
            if isinstance(self._source, WebDatasetPairs):
                return output.write(self._again(self._source))
            return output.write(self._of_rows())
        except OSError as error:
            raise DsdError(
                f"cannot write the WebDataset: {error.strerror or error}. Nothing is left of it"
            ) from error

    def _again(self, source: WebDatasetPairs) -> Iterator[NewSample]:
        """Samples of a WebDataset as they were, with the fields that all of them have."""
        image = _most_common(
            source.image_field(it.sample) or "" for _, it in self._kept_samples(source)
        )
        names = (
            [
                image if it == source.image_field(placed.sample) else it
                for it in placed.sample.fields
            ]
            for _, placed in self._kept_samples(source)
        )
        everywhere, self.left_out = common_fields(names)
        for record, placed in self._kept_samples(source):
            of_image = source.image_field(placed.sample)
            fields = dict[str, bytes]()
            try:
                for field in placed.sample.fields:
                    name = image if field == of_image else field
                    if name in everywhere and name not in fields:
                        fields[name] = placed.content(field)
            except ImageError as error:
                self.failures.append(Failure(placed.name, str(error)))
                continue
            fields["score.json"] = score_field(record.score, record.probability)
            yield NewSample(placed.sample.key, fields)

    def _kept_samples(self, source: WebDatasetPairs) -> Iterator[tuple[Record, PlacedSample]]:
        """Kept samples with their records."""
        kept, probabilities = self._filtered.choice.kept, self._filtered.run.probabilities
        for number, placed in enumerate(source.samples()):
            if kept[number]:
                (probability,) = probabilities(range(number, number + 1))
                likely = None if np.isnan(probability) else shortest(probability)
                score = shortest(self._filtered.run.scores[number])
                yield Record(placed.name, "", score, likely), placed

    def _of_rows(self) -> Iterator[NewSample]:
        """Rows of a table as samples: image, text, and all columns."""
        survey, layout = self._filtered.run.survey, Layout.passing(self._source, ())
        numbers = np.flatnonzero(self._filtered.choice.kept).tolist()
        suffix = _most_common(_suffix(self._file_name(number)) for number in numbers)
        for number, record in zip(numbers, self._filtered.records(kept=True), strict=True):
            name, text = survey.pair(number)
            try:
                content = image_content(self._source.image(name))
            except ImageError as error:
                self.failures.append(Failure(name, str(error)))
                continue
            values = layout.values(record)
            columns = {to: to_json(values.get(to)) for to in layout.columns}
            fields = {
                suffix: content,
                "txt": text.encode(),
                "json": f"{json.dumps(columns, ensure_ascii=False)}\n".encode(),
                "score.json": score_field(record.score, record.probability),
            }
            yield NewSample(f"{number:09d}", fields)

    def _file_name(self, number: int) -> str:
        """File name of a kept row's image."""
        name, _ = self._filtered.run.survey.pair(number)
        with contextlib.suppress(ImageError):  # reported when it is read
            return file_name(self._source.image(name), name)
        return name


def copy_images(filtered: Filtered, folder: Path) -> tuple[int, list[Failure]]:
    """Copy the images of kept pairs to a new folder, each once, under their names.

    Returns:
        The number of copies, and images that could not be copied.

    Raises:
        DsdError: the folder cannot be written, or the disk is full; nothing is left of it.
    """
    try:
        return _copy_images(filtered, folder)
    except OSError as error:
        raise DsdError(
            f"cannot write the copies of images: {error.strerror or error}. Nothing is left of "
            "them; --copy-to names another folder"
        ) from error


def _copy_images(filtered: Filtered, folder: Path) -> tuple[int, list[Failure]]:
    survey = filtered.run.survey
    failures, copied, taken = list[Failure](), set[int](), set[PurePath]()
    with whole_folder(folder) as new:
        for number in np.flatnonzero(filtered.choice.kept).tolist():
            if (of_image := int(survey.image_of[number])) in copied:
                continue
            copied.add(of_image)
            name, _ = survey.pair(number)
            try:
                image = survey.source.image(name)
                content = image_content(image)
            except ImageError as error:
                failures.append(Failure(name, str(error)))
                continue
            relative = _free(file_name(image, name), taken)
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            (new / relative).write_bytes(content)
    return len(taken), failures


def _free(name: str, taken: set[PurePath]) -> PurePath:
    """A relative path for a copy that no other copy has, nor a folder of one."""
    parts = [part for part in PurePath(name).parts if part not in ("..", PurePath(name).anchor)]
    path = unique = PurePath(*parts)
    number = 2
    while unique in taken or any(around in taken for around in unique.parents[:-1]):
        unique, number = PurePath(str(number), path), number + 1
    taken.add(unique)
    return unique


def _suffix(name: str) -> str:
    """Field of an image in a sample, by its file's name."""
    return PurePath(name).suffix.lower().lstrip(".") or "jpg"


def _most_common(names: Iterable[str]) -> str:
    """The most common name; of those as common, the first in the alphabet."""
    counts = Counter(names)
    return min(counts, key=lambda name: (-counts[name], name), default="")


def file_name(image: Scorable, name: str) -> str:
    """File name for a copy of an image that a source knows by a name."""
    return image.file_name if isinstance(image, StoredImage) else name


def image_content(image: Scorable) -> bytes:
    """Encoded image, as it is in its file or tar file.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, StoredImage):
        return image.content()
    if isinstance(image, Path):
        try:
            return read_regular(image, IMAGE_BYTES)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None
    raise ImageError("an index has its latent, not the image")
