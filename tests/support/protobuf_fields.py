"""Fields of protobuf messages, encoded without the protobuf library."""

from __future__ import annotations


def wire_field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited protobuf field: tag, length, content."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)
