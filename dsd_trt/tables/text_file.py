"""Lines of a UTF-8 file, read one after another."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Literal

from dsd_trt.errors import InputError
from dsd_trt.tables.content import TableContent

_LINE_END = re.compile(rb"\r\n|\r|\n")
_CHUNK = 1 << 20


def text_lines(content: TableContent, newline: Literal["", None]) -> Iterator[str]:
    """Lines of a text with their line ends, without its byte order mark.

    Args:
        content: content of a text file.
        newline: "" keeps line ends as they are, None makes all of them a line feed.

    Raises:
        InputError: the file is not UTF-8, or contains NUL, as UTF-16 and binary files do.
        OSError: the file cannot be read.
    """
    with (
        content.open() as file,
        io.TextIOWrapper(file, "utf-8-sig", newline=newline) as lines,
    ):
        try:
            for line in lines:
                if "\0" in line:
                    raise _not_utf8(content)
                yield line
        except UnicodeDecodeError:
            raise _not_utf8(content) from None


def _not_utf8(content: TableContent) -> InputError:
    return InputError(
        f"{content.name!r} is not UTF-8 text (line {_line_of_fault(content)}); save it as UTF-8, "
        "or convert it, such as with: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _line_of_fault(content: TableContent) -> int:
    """Line of the first byte that is no UTF-8, or NUL."""
    decoder, lines, before = codecs.getincrementaldecoder("utf-8")(), 1, b""
    with content.open() as file:
        while chunk := file.read(_CHUNK):
            held = len(decoder.getstate()[0])  # bytes of a character that the last chunk began
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                chunk = chunk[: max(error.start - held, 0)]
                return lines + _line_ends(before, chunk)
            if (place := chunk.find(b"\0")) >= 0:
                return lines + _line_ends(before, chunk[:place])
            lines += _line_ends(before, chunk)
            before = chunk[-1:]
    return lines


def _line_ends(before: bytes, chunk: bytes) -> int:
    """Number of line ends in a chunk that follows a byte, which may have begun the first one."""
    return len(_LINE_END.findall(chunk)) - (before == b"\r" and chunk.startswith(b"\n"))
