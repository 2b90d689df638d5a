"""A number of pairs, or a share of them, as the user asks for it; imports nothing."""

from __future__ import annotations


def share_of(asked: str) -> float | None:
    """The share, in (0, 1], that "30%" asks for; None for anything else."""
    if not asked.endswith("%"):
        return None
    try:
        share = float(asked[:-1]) / 100
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def require_share(asked: str) -> str:
    """A number of pairs or a share, checked.

    Raises:
        ValueError: it is neither of them.
    """
    if share_of(asked) is None and not (asked.isascii() and asked.isdigit() and int(asked)):
        raise ValueError(f"{asked!r} is neither a number of rows nor a share such as 30%")
    return asked
