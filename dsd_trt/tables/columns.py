"""The columns a command reads, by their role."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dsd_trt.errors import InputError
from dsd_trt.tables.table import Table

Role: TypeAlias = Literal["image", "text", "label", "id"]


_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnNames:
    """Names of columns as the user gave them; None is the role's own name.

    Attributes:
        image: column of the images' names.
        text: column of the texts.
        label: column of the labels: 1 for positive pairs, 0 for negative ones.
        id: column of the rows' identifiers.
    """

    image: str | None = None
    text: str | None = None
    label: str | None = None
    id: str | None = None

    def required(self, table: Table, role: Role) -> str:
        """Name of a column the table must have.

        Raises:
            InputError: the table lacks the column, or has it twice; the message names its columns,
                and the option that names another one.
        """
        given: str | None = getattr(self, role)
        name = given or role
        if not table.has(name):
            raise InputError(f"{table.name}, {table.start}: {_missing(table, role, name)}")
        if name in table.doubled:
            raise InputError(
                f"{table.name}, {table.start}: the column {name!r} is there twice; rename one"
            )
        return name

    def optional(self, table: Table, role: Role) -> str | None:
        """Name of a column the table may have; None if it has none.

        Raises:
            InputError: the user named a column that the table lacks, or it is there twice.
        """
        if getattr(self, role) is None and not table.has(role):
            return None
        return self.required(table, role)


def is_header(line: str) -> bool:
    """Whether a line is the first of a table of pairs: a header of CSV, or an object of JSONL."""
    if line.startswith("{") and line.endswith("}"):
        return '"image"' in line or '"text"' in line
    names = [it.strip("\"' ").lower() for it in re.split("[,;\t]", line)]
    return len(names) > 1 and "text" in names and "" not in names and max(map(len, names)) < 30


def swapped(image: object, text: object) -> bool:
    """Whether the values of a row look as if its image and its text were in each other's column."""
    return (
        isinstance(image, str)
        and isinstance(text, str)
        and _FILE.search(text.strip()) is not None
        and _FILE.search(image.strip()) is None
    )


def swapping(image: str, text: str) -> str:
    """Options that take the images from the texts' column, and the texts from the images'."""
    return f"--image-column {shlex.quote(text)} --text-column {shlex.quote(image)}"


_MEANING = {
    "image": "images' paths",
    "text": "texts",
    "label": "labels",
    "id": "identifiers",
}


_USUAL: dict[str, tuple[str, ...]] = {
    "image": (
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "file",
        "path",
        "image_path",
        "img",
    ),
    "text": ("caption", "sentence", "prompt", "description", "title"),
}


def _missing(table: Table, role: Role, name: str) -> str:
    """Message that a table lacks a column, with the remedy for the likeliest cause."""
    columns = table.first_columns
    if not columns and (first := next(iter(table.rows()), None)) is not None and first.error:
        return f"{first.error} in {first.place}. Write one JSON object per line"
    others = ", ".join(map(repr, columns)) or "none"
    message = f"no column {name!r} among {others}. "
    if alike := [it for it in columns if it.strip().lower() == name.lower()]:
        return message + f"Name it as it is written: --{role}-column {shlex.quote(alike[0])}"
    if table.form == "csv" and columns[:1] and columns[0].lower().startswith("sep="):
        return f"{message[:-2]}: line 1 is for Excel alone, delete it"
    if table.form == "csv" and len(columns) == 1:
        return message + (
            "Cells are separated by commas, tabs or semicolons, under a header such as image,text"
        )
    if table.form == "csv" and any(_FILE.search(it) for it in columns):
        return message + "Line 1 is no header: write one above it, such as image,text"
    usual = [it for it in columns if it.strip().lower() in _USUAL.get(role, ())]
    example = shlex.quote(usual[0]) if len(usual) == 1 else "NAME"
    return message + f"Name the column of the {_MEANING[role]}: --{role}-column {example}"
