"""Images that stay where they are stored until they are decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod


class StoredImage(ABC):
    """An encoded image within a file: of a tar file, or of a table.

    Equal ones are the same image.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the image in results."""

    @property
    @abstractmethod
    def file_name(self) -> str:
        """Name for a copy of the image, with its suffix; it may have folders."""

    @abstractmethod
    def content(self) -> bytes:
        """Encoded image.

        Raises:
            ImageError: it cannot be read; the message is the reason.
        """
