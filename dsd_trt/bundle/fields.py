"""Fields of `bundle.json` whose values are restricted."""

from __future__ import annotations

from dsd_trt.errors import BundleError

_LARGEST = 2**30  # bound of sizes, such that products of a few cannot overflow


def require(holds: bool, where: str, complaint: str) -> None:
    """Refuse a manifest with an invalid field `where`.

    Raises:
        BundleError: the field is invalid; the message says why.
    """
    if not holds:
        # Names from untrusted bundles may have any length.
        raise BundleError(f"field {where[:160]!r} {complaint[:600]}")


def check_size(size: int, where: str, least: int = 1) -> None:
    """Refuse a size in the field `where` that is below `least` or too large.

    Raises:
        BundleError: the field is out of range; the message says what it may be.
    """
    require(least <= size < _LARGEST, where, f"is {size}, not from {least} to {_LARGEST - 1}")
