"""docs/bundle.md is the format: its tables have every key, its type, and whether it is required."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.lists import Lists, Measured
from dsd_trt.bundle.manifest import (
    AdapterInput,
    Bfloat16,
    Calibration,
    FileEntry,
    FittedOn,
    Manifest,
    MatrixMode,
    Preprocessing,
    Provenance,
    SelfCheckSpec,
    TokenizerSpec,
)
from dsd_trt.bundle.method import HeadWeights, Method, NoiseLevels

PAGE = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text("utf-8")
OBJECTS: dict[str, type[Any]] = {
    "Keys of `bundle.json`": Manifest,
    "Keys of `method`": Method,
    "Keys of a graph": Graph,
    "Keys of `tokenizer`": TokenizerSpec,
    "Keys of `preprocessing`": Preprocessing,
    "Keys of a calibration": Calibration,
    "Keys of `matrix`": MatrixMode,
    "Keys of `adapter`": AdapterInput,
    "Keys of `self_check`": SelfCheckSpec,
    "Keys of `bfloat16`": Bfloat16,
    "Keys of `provenance`": Provenance,
    "Keys of a file": FileEntry,
}
# Objects that have no table of their own: the row that names their keys.
INSIDE: dict[str, type[Any]] = {
    "head_weights": HeadWeights,
    "noise_levels": NoiseLevels,
    "inputs": TensorSpec,
    "fitted_on": FittedOn,
}
SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def key(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata.get("json", field.name)
    return name


def section(heading: str) -> str:
    return PAGE.partition(f"\n### {heading}\n")[2].partition("\n#")[0]


def rows(heading: str) -> dict[str, tuple[str, str, str]]:
    found = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (yes|no) \| (.+) \|$", section(heading), re.MULTILINE
    )
    return {name: (kind, required, meaning) for name, kind, required, meaning in found}


def named(hint: Any) -> str:
    """A type as the tables write it, without links."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (own,) = (it for it in arguments if it is not NoneType)
        return f"{named(own)} or null"
    if origin is Literal:
        return "string"
    if origin is tuple:
        return f"list of {named(arguments[0])}s"
    if origin is Mapping:
        inner = named(arguments[1])
        return "object" if inner == "anything" else f"object of {inner}s"
    if hint is Any:
        return "anything"
    return SCALARS.get(hint, "object")


def written(kind: str) -> str:
    """A cell as plain text; "graphs" and "files" are objects, and lists of lists are lists."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", kind)
    return re.sub(r"object of (?:graphs|files)", "object of objects", plain)


@pytest.mark.parametrize("heading", OBJECTS)
def test_the_table_is_the_schema(heading: str) -> None:
    kind = OBJECTS[heading]
    hints = get_type_hints(kind)
    expected = {
        key(field): (
            named(hints[field.name]).replace("list of integerss", "lists of integers"),
            "no" if field.metadata.get("optional") else "yes",
        )
        for field in dataclasses.fields(kind)
    }
    given = {
        name: (written(type_), required) for name, (type_, required, _) in rows(heading).items()
    }
    assert given == expected


@pytest.mark.parametrize("name", INSIDE)
def test_an_object_without_a_table_is_described_in_its_row(name: str) -> None:
    meaning = " ".join(rows(it).get(name, ("", "", ""))[2] for it in OBJECTS)
    for field in dataclasses.fields(INSIDE[name]):
        assert f"`{key(field)}`" in meaning


def test_the_section_on_lists_has_their_keys() -> None:
    lists = PAGE.partition("\n## Lists\n")[2].partition("\n## ")[0]
    for kind in (Lists, Measured):
        for field in dataclasses.fields(kind):
            assert f"`{key(field)}`" in lists


def test_every_accepted_value_is_named() -> None:
    for heading, kind in OBJECTS.items():
        for field in dataclasses.fields(kind):
            hint = get_type_hints(kind)[field.name]
            for option in (hint, *get_args(hint)):
                for value in get_args(option) if get_origin(option) is Literal else ():
                    assert f"`{value}`" in section(heading), (heading, field.name, value)
