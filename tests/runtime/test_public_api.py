"""The public names, their arguments and attributes: what programs written against them stand on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import dsd_trt

FROZEN = Path(__file__).with_name("public_api.txt")


def public_api() -> Iterator[str]:
    """A line for each public name and each public part of one, in order."""
    for name in sorted(dsd_trt.__all__):
        value = getattr(dsd_trt, name)
        if inspect.isclass(value):
            yield f"class {name}({', '.join(it.__name__ for it in value.__bases__)})"
            yield from (f"  {name}.{line}" for line in _parts(value))
        elif inspect.isfunction(value):
            yield f"def {name}{inspect.signature(value)}"
        else:
            yield f"{name}, an alias of types"


def _parts(value: type[Any]) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"{field.name}: {field.type}{default}"
    elif "__init__" in vars(value) and Protocol not in value.__bases__:
        yield f"__init__{inspect.signature(value.__init__)}"
    for name, part in sorted(vars(value).items()):
        if name.startswith("_"):
            continue
        if isinstance(part, property):
            assert part.fget is not None
            yield f"{name} -> {inspect.signature(part.fget).return_annotation}"
        elif isinstance(part, (classmethod, staticmethod)):
            yield f"{name}{inspect.signature(part.__func__)}"
        elif inspect.isfunction(part):
            yield f"{name}{inspect.signature(part)}"


def test_the_public_api_is_what_it_was() -> None:
    """A new name is added to the file; whatever is gone or changed breaks somebody's program."""
    assert list(public_api()) == FROZEN.read_text("utf-8").splitlines()
