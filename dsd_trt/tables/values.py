"""Values of a table's cells in the format that is written."""

from __future__ import annotations

import base64
import datetime
import json
import math
from decimal import Decimal


def to_cell(value: object) -> str:
    """A value as a cell of CSV: text as it is, lists and objects as JSON, nothing for null."""
    if isinstance(value, str):
        return encodable(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    plain = to_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def to_json(value: object) -> object:
    """A value as `json.dumps` accepts it: dates as ISO 8601, bytes as base64, NaN as null."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return str(value)


def encodable(text: str) -> str:
    """Text that UTF-8 has: halves of characters, from JSON escapes, are written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
