"""Rows of a model card's table that are written again when what they tell of has changed."""

from __future__ import annotations

import re


def with_rows(card: str, known: re.Pattern[str], rows: str) -> str:
    """A model card with other rows in place of those it has.

    Args:
        card: text of the model card.
        known: pattern of the rows that are replaced, each with its line break.
        rows: the new rows, which take the place of the first.

    Returns:
        The card; as it was if it has no such rows, as an older bundle's.
    """
    found = known.search(card)
    if found is None:
        return card
    return card[: found.start()] + rows + known.sub("", card[found.end() :])
