"""What could not be scored, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """An image, text or pair that could not be scored, and why.

    Attributes:
        image: name of the image; None if the text cannot be scored with any image.
        reason: what went wrong, and what to do about it.
        text: the text; None if the image cannot be scored with any text.
    """

    image: str | None
    reason: str
    text: str | None = None

    def __str__(self) -> str:
        names = [self.image] if self.image is not None else []
        names += [repr(self.text)] if self.text is not None else []
        return f"{' and '.join(names)}: {self.reason}"
