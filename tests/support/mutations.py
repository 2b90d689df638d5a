"""Damaged and forged copies of files, drawn from a seed and so the same in every run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

# Values that readers tend to mishandle: types, bounds, lengths, names no file system accepts.
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**62,
    2**63,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
    "x" * 5000,
    "../x",
    "/",
    "fp16",
    "float16",
    "int64",
    [],
    [[]],
    {},
    [None],
    {"": None},
)
_TEXTS = ("9" * 5000, "-" + "9" * 400, "[" * 5000, "1e999", "nul", '{"a":1,"a":2}', '"\\ud800"')


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with one or two changes; now and then one that is not JSON."""
    if draw.random() < 0.15:
        return mutate_bytes(content, draw)
    value = json.loads(content)
    texts = dict[str, str]()
    for _ in range(draw.choice((1, 1, 1, 2))):
        value = _mutate_value(value, draw, texts)
    text = json.dumps(value)
    for stand_in, raw in texts.items():
        text = text.replace(f'"{stand_in}": 0', raw, 1).replace(f'"{stand_in}"', raw, 1)
    return text.encode()


def mutate_lines(content: bytes, draw: random.Random) -> bytes:
    """A JSONL file with one line changed."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    what = draw.randrange(4)
    if what == 0:
        lines[at] = lines[at][: draw.randrange(len(lines[at]))]
    elif what == 1:
        lines.insert(at, draw.choice((b"\n", b"{}\n", b"[]\n", b"null\n", b"\0\n")))
    else:
        lines[at] = mutate_json(lines[at], draw) + b"\n"
    return b"".join(lines)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file that is truncated, lengthened, or has some bytes changed."""
    if not content:
        return draw.randbytes(draw.randint(1, 40))
    changed = bytearray(content)
    what = draw.randrange(6)
    at = draw.randrange(len(changed))
    if what == 0:
        del changed[at:]
    elif what == 1:
        changed += draw.randbytes(draw.randint(1, 40))
    elif what == 2:
        changed[at : at + draw.randint(1, 30)] = draw.randbytes(draw.randint(0, 30))
    else:
        # Headers lie at the beginning, or at the end.
        near = min(len(changed), draw.choice((64, 512, len(changed))))
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(near)
            at = at if draw.random() < 0.6 else len(changed) - 1 - at
            changed[at] = draw.choice((changed[at] ^ 1 << draw.randrange(8), 0, 255, 128))
    return bytes(changed)


def _mutate_value(root: Any, draw: random.Random, texts: dict[str, str]) -> Any:
    holders = list(_containers(root))
    if not holders or draw.random() < 0.02:
        return draw.choice(_VALUES)
    holder = draw.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = draw.choice(keys)
    what = draw.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1:
        holder[key] = json.loads(json.dumps(draw.choice(holders)))
    elif what == 2 and isinstance(holder, dict):
        holder[draw.choice(("x", "\0", "", "a/b", "y" * 300, "\ud800", str(key) + " "))] = holder[
            key
        ]
    elif what == 3 and isinstance(holder, dict):
        texts["twice"] = f"{json.dumps(key)}: 0, {json.dumps(key)}: {json.dumps(holder[key])}"
        holder["twice"] = 0
        del holder[key]
    elif what == 4 and isinstance(holder, list):
        holder += [holder[key]] * draw.choice((1, 70))
    elif what == 5:
        texts["raw"] = draw.choice(_TEXTS)
        holder[key] = "raw"
    elif what == 6 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 2, -1, 0))
    else:
        holder[key] = draw.choice(_VALUES)
    return root


def _containers(value: Any) -> Iterator[Any]:
    """All objects and lists of a JSON value that are not empty."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if items:
        yield value
    for item in items:
        yield from _containers(item)
