"""Every error the package raises on purpose: what went wrong, where, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a quota that is used up, and a file that may not grow."""


class DsdError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        exit_code: what a command that ends with this error exits with: 1 unexpected failure,
            2 wrong usage, 3 some inputs could not be scored, 4 the environment cannot do it.
    """

    exit_code: ClassVar[int] = 1


class InputError(DsdError):
    """What the caller passed cannot be used: a missing path, no texts, a malformed pairs file."""

    exit_code = 2


class ImageError(DsdError):
    """One image cannot be decoded; the message is the reason, without the image's name."""

    exit_code = 3


class BundleError(DsdError):
    """A bundle is missing, incomplete, altered, or of a schema this version does not know."""

    exit_code = 2


class EngineError(DsdError):
    """The requested engine is not installed or cannot run the graph here."""

    exit_code = 4


class DisagreementError(EngineError):
    """An engine's scores do not keep the order of FP32's for this bundle."""


class LayerPrecisionError(EngineError):
    """A network's layers do not compute in the precision that its bundle promises."""


class MissingExtraError(DsdError):
    """A command needs packages that only an optional extra installs."""

    exit_code = 4


class ModelError(DsdError):
    """A diffusion model or an adapter cannot be read, or the two do not belong together."""

    exit_code = 2


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what is behind it."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error."""
    return any(isinstance(it, OSError) and it.errno in DISK_FULL for it in with_causes(error))


def one_line(error: object, longest: int = 300) -> str:
    """What a library says of an error, as a part of a message of ours."""
    return " ".join(str(error).split())[:longest].rstrip(". ")
