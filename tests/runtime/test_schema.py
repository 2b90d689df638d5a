"""JSON that others send: what Python's own reader takes and ours refuses, with the path."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from dsd_trt.files.schema import SchemaError, from_plain, parse_json, to_plain


@dataclass(frozen=True)
class Part:
    count: int
    share: float


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part | None]
    note: str | None = field(default=None, metadata={"optional": True})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "a": 1}', r"field '\(root\)' has the key 'a' twice"),
        ('{"a": [{}, {"b": {"k": 1, "k": 2}}]}', r"field 'a\[1\].b' has the key 'k' twice"),
        ('{"a": {"k": 1, "k": 2}, "a": 3}', "has the key 'k' twice|has the key 'a' twice"),
        ('{"a\\u0062": 1, "ab": 2}', "has the key 'ab' twice"),
        ('{"a": [0, %s]}' % ("9" * 5000), r"field 'a\[1\]' is an integer of 5000 digits"),
        ('{"a": -%s}' % ("9" * 4000), "field 'a' is an integer of 4000 digits"),
        (str(2**63), r"field '\(root\)' is an integer of 19 digits"),
        ('{"a": ' + "[" * 64 + "1" + "]" * 64 + "}", r"field 'a\[0\].* is nested deeper than 64"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("", "Expecting value"),
        ('{"a": 1} {"b": 2}', "Extra data"),
    ],
)
def test_what_parsers_disagree_on_is_refused_with_its_path(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        parse_json(text)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        str(2**63 - 1),
        str(-(2**63)),
        '{"a": ' + "[" * 63 + "1" + "]" * 63 + "}",
        json.dumps({"[" * 200: "{" * 200, "b": [[], {}] * 200}),
        '{"a": {"k": 1}, "b": {"k": 2}}',
        "1" + "0" * 5000 + ".5e-5000",
    ],
)
def test_everything_else_is_read_as_python_reads_it(text: str) -> None:
    assert parse_json(text) == json.loads(text)
    assert parse_json(f"\ufeff{text}") == json.loads(text)


def test_a_key_that_is_twice_among_many_is_found_soon() -> None:
    count = 200_000  # looked for pair by pair, it would take minutes
    keys = ", ".join(f'"{number}": 0' for number in range(count))
    began = time.process_time()
    with pytest.raises(ValueError, match=f"has the key '{count - 1}' twice"):
        parse_json(f'{{{keys}, "{count - 1}": 1}}')
    assert time.process_time() - began < 10


def test_fields_are_named_by_their_path_and_round_trip() -> None:
    whole = Whole((Part(1, 0.5),), {"x": None, "y": Part(2, 1.0)})
    plain = json.loads(json.dumps(to_plain(whole)))
    assert from_plain(Whole, plain) == whole
    plain["by_name"]["y"]["count"] = True
    with pytest.raises(SchemaError, match=r"'by_name\.y\.count' must be an integer"):
        from_plain(Whole, plain)
    for share in ("1e999", "NaN", '"1"', "null", "[]"):
        text = json.dumps(to_plain(whole)).replace("0.5", share)
        with pytest.raises(SchemaError, match=r"'parts\[0\]\.share' must be a finite number"):
            from_plain(Whole, parse_json(text))


def test_messages_stay_short_whatever_is_sent() -> None:
    for plain in ({"parts": ["x" * 10**6], "by_name": {}}, {"k" * 10**6: 1}, [0] * 10**5):
        with pytest.raises(SchemaError) as refused:
            from_plain(Whole, plain)
        assert len(str(refused.value)) < 400
