"""Fields of a protobuf message, found in its bytes without protobuf's library."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
"""Wire types."""


def fields(message: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of the message at `message[start:end]`, in order.

    Yields:
        Number of the field, position of its tag, and start and end of its value. Where the value
        is bytes, a text or another message, its start is past its length.

    Raises:
        ValueError: this is no message.
    """
    at = start
    while at < end:
        first = at
        tag, at = read_tag(message, at, end)
        value = read_varint(message, at, end)[1] if tag & 7 == BYTES else at
        at = skip(message, tag & 7, at, end)
        yield tag >> 3, first, value, at


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or another message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """An integer of at least 0."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def skip(message: bytes, wire: int, at: int, end: int) -> int:
    """End of the field whose value begins at `at`.

    Raises:
        ValueError: the message ends within it, or it is of no known wire type.
    """
    depth = 0  # groups, which ONNX does not use and protobuf's readers skip
    while True:
        if wire == VARINT:
            at = read_varint(message, at, end)[1]
        elif wire == BYTES:
            size, at = read_varint(message, at, end)
            at += size
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        elif wire == GROUP:
            depth += 1
        elif wire == GROUP_END and depth:
            depth -= 1
        else:
            raise ValueError(f"it has a field of wire type {wire}")
        if at > end:
            raise ValueError("it is cut short")
        if not depth:
            return at
        tag, at = read_tag(message, at, end)
        wire = tag & 7


def read_tag(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Field number and wire type, cut to 32 bits as the engines' readers do, and where they end.

    Raises:
        ValueError: the message ends within them.
    """
    tag, at = read_varint(message, at, end)
    return tag & 0xFFFFFFFF, at


def read_varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The integer at `at`, and where it ends.

    Raises:
        ValueError: the message ends within it, or it is too long.
    """
    value = shift = 0
    while at < end and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is cut short")
