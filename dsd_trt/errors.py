"""Errors the package raises on purpose: what went wrong, where, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, and a file that may not grow."""


class DsdError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        exit_code: exit code of a command that ends with this error: 1 unexpected failure, 2 wrong
            usage, 3 some inputs could not be scored, 4 not possible in this environment.
    """

    exit_code: ClassVar[int] = 1


class InputError(DsdError):
    """The caller's input cannot be used: a missing path, no texts, a malformed pairs file."""

    exit_code = 2


class ImageError(DsdError):
    """One image cannot be decoded; the message is the reason, without the image's name."""

    exit_code = 3


class BundleError(DsdError):
    """A bundle is missing, incomplete, altered, or has an unknown schema version."""

    exit_code = 2


class EngineError(DsdError):
    """The requested engine is not installed, or cannot run the graph on this machine."""

    exit_code = 4


class DisagreementError(EngineError):
    """An engine's scores rank this bundle's pairs differently from FP32."""


class LayerPrecisionError(EngineError):
    """The layers of a network do not compute in the precision the bundle declares."""


class MissingExtraError(DsdError):
    """A command needs packages that come with an optional extra."""

    exit_code = 4


class ModelError(DsdError):
    """A checkpoint or an adapter cannot be read, or the two do not fit each other."""

    exit_code = 2


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then its chain of causes."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk caused an error."""
    return any(isinstance(it, OSError) and it.errno in DISK_FULL for it in with_causes(error))


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number of things for a message: "1 pair", "2 pairs".

    Args:
        count: number of the things.
        noun: the thing, in the singular.
        plural: its plural, where that is not the singular with an s.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def cut(text: str, longest: int = 300) -> str:
    """The start of a text for a message; dots stand for the rest."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def one_line(error: object, longest: int = 300) -> str:
    """A library's error message on one line, as a part of one of ours."""
    return " ".join(str(error).split())[:longest].rstrip(". ")
