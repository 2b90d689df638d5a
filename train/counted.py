"""Numbers with their nouns."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 row", "2 rows"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
