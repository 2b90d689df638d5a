"""Converts frozen dataclasses to JSON and back; invalid input is refused, naming the field."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dsd_trt.files.regular import open_regular

T = TypeVar("T")

_DIGITS_64 = len(str(-(2**63)))
MAX_BYTES = 2**28
"""Longest JSON file that is read, in bytes; the longest ones in use, vocabularies, have a tenth."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects that is read; files of this package stay below ten."""


class SchemaError(ValueError):
    """A JSON value does not have its field's type; the message names the field."""


def to_plain(value: Any) -> Any:
    """Convert dataclasses, tuples and mappings to values `json.dumps` accepts.

    Field metadata: "json" renames the key (`lam` is written "lambda"); "optional" omits the field
    if it is None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {
            _key(field): to_plain(item)
            for field, item in fields
            if item is not None or not _is_optional(field)
        }
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def parse_json(text: str) -> Any:
    """Parse JSON, which may begin with a byte order mark.

    Stricter than Python's own parser: constructs that parsers interpret differently are refused.

    Raises:
        ValueError: the text is not JSON, an object has a duplicate key, an integer exceeds 64 bits,
            or nesting exceeds `MAX_DEPTH`; the message has the path.
    """
    refused: list[tuple[Any, str]] = []  # the reason; the path is found at the end

    def integer(digits: str) -> Any:
        if len(digits) <= _DIGITS_64 and -(2**63) <= (value := int(digits)) < 2**63:
            return value
        stand_in = object()
        size = len(digits.lstrip("-"))
        refused.append((stand_in, f"is an integer of {size} digits, beyond 64 bits"))
        return stand_in

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key in found if counts[key] > 1)
            refused.append((found, f"has the key {_shortened(twice)} twice"))
        return found

    try:
        parsed = json.loads(
            text.removeprefix("\ufeff"), parse_int=integer, object_pairs_hook=to_dict
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    # Fast for rare text, and common text is scanned only once.
    if refused or text.count("{") + text.count("[") > MAX_DEPTH:
        reasons = {id(value): reason for value, reason in refused}
        for where, depth, value in _walk(parsed):
            if depth > MAX_DEPTH:
                raise ValueError(f"{_field(where)} is nested deeper than {MAX_DEPTH} levels")
            if reason := reasons.get(id(value)):
                raise ValueError(f"{_field(where)} {reason}")
    if refused:  # inside a value that a duplicate key replaced
        raise ValueError(f"it {refused[0][1]}")
    return parsed


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: the file is not valid, as for `read_text` and `parse_json`.
        OSError: the file cannot be read.
    """
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file of at most `MAX_BYTES`.

    Raises:
        ValueError: the file is longer, or not UTF-8.
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} bytes")
    return content.decode()


def _walk(parsed: Any) -> Iterator[tuple[str, int, Any]]:
    """Path, depth and value of every node of parsed JSON."""
    waiting: list[tuple[str, int, Any]] = [("", 0, parsed)]
    while waiting:
        where, depth, value = waiting.pop()
        inside = isinstance(value, (dict, list))
        yield where, depth + inside, value
        if isinstance(value, dict):
            waiting += [(_join(where, key), depth + 1, item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{where}[{i}]", depth + 1, item) for i, item in enumerate(value)]


def from_plain(kind: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass from parsed JSON.

    Args:
        kind: dataclass to build, whose annotations are the schema. Fields may be dataclasses, str,
            int, float, bool, Literal, `X | Y`, tuple[X, ...], Mapping[str, X] and Any. Fields with
            "optional" in their metadata may be missing; they are None then.
        value: parsed JSON, from `parse_json`.
        where: dotted path of `value`, the prefix of field names in messages.

    Raises:
        SchemaError: a field is missing, unknown, or of the wrong type.
    """
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    hints = _hints(kind)  # type: ignore[arg-type]
    fields = {_key(field): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    optional = {key for key, field in fields.items() if _is_optional(field)}
    if missing := [key for key in fields if key not in value and key not in optional]:
        raise SchemaError(f"{_field(_join(where, missing[0]))} is missing")
    if unknown := [key for key in value if key not in fields]:
        raise SchemaError(f"{_field(_join(where, unknown[0]))} is not known")
    read = {
        field.name: _read(hints[field.name], value.get(key), _join(where, key))
        for key, field in fields.items()
    }
    return kind(**read)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against a type hint, and convert it."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(where, "one of " + ", ".join(map(repr, arguments)), value)
        return value
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where)
    if origin is tuple:  # only tuple[X, ...] is supported
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: _read(arguments[1], item, _join(where, key)) for key, item in value.items()}
    return _read_scalar(hint, value, where)


def _read_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is not None and len(others := [it for it in options if it is not type(None)]) == 1:
        return _read(others[0], value, where)  # the nested message names the inner field
    for option in options:
        try:
            return _read(option, value, where)
        except SchemaError:
            continue
    raise _mismatch(
        where, " or ".join(_NAMES.get(option, str(option)) for option in options), value
    )


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    # JSON has one number type, and a Python bool is an int: check both.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise _mismatch(where, _NAMES[hint], value)
    return value


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    type(None): "null",
}


def _is_optional(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("optional"))


def _key(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata.get("json", field.name)
    return name


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _mismatch(where: str, wanted: str, value: Any) -> SchemaError:
    return SchemaError(f"{_field(where)} must be {wanted}, got {_shortened(value)}")


def _shortened(value: Any, limit: int = 60) -> str:
    """A value for a message; untrusted values may be long."""
    shown = repr(value[:limit] if isinstance(value, str) else value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _field(where: str) -> str:
    return f"field {_shortened(where or '(root)', 160)}"
