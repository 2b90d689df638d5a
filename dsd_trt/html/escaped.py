"""Text that somebody else wrote, in a page: it stays text."""

from __future__ import annotations

import html
import json
import re

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that HTML has no place for, or that no browser shows."""
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def escaped(text: str) -> str:
    """A text as content of an element or value of an attribute in double quotes."""
    shown = _UNSEEN.sub("\ufffd", text)
    # A half of a character, which JSON can escape, has no place in UTF-8.
    return html.escape(shown.encode("utf-8", "replace").decode("utf-8"))


def isolated(text: str) -> str:
    """A text whose direction of writing changes nothing around it, as an element."""
    return f"<bdi>{escaped(text)}</bdi>"


def json_escaped(value: object) -> str:
    """A value as JSON that can stand in a script element: no mark of HTML is in it.

    Raises:
        ValueError: it has NaN or infinity, which JSON lacks.
    """
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    written = written.translate(_IN_SCRIPT)
    try:
        written.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_IN_SCRIPT)
    return written
