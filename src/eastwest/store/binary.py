"""ClickHouse's binary forms: RowBinary for what is few, Native for what is many.

Native is column by column, so the database copies columns instead of reading every field of every row
(ARCHITECTURE.md, "Decisions", has what that saves).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SENT_AS = {"LowCardinality(String)": "String"}
"""The database converts these: their own form is a dictionary."""


def length(size: int) -> bytes:
    """A number as LEB128."""
    found = bytearray()
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def string(text: bytes) -> bytes:
    """The length, then the bytes."""
    return length(len(text)) + text


def integers(kind: str, *values: Any) -> bytes:
    """Numbers of one kind, one behind the other."""
    return np.array(values, kind).tobytes()


def block(columns: Mapping[str, str], parts: Sequence[tuple[Mapping[str, bytes], NDArray[Any]]]) -> bytes:
    """One Native block of these columns (name → type), b"" where there is no row.

    A part is an array whose fields are columns, after values that are the same in all its rows: name → bytes.
    """
    rows = sum(len(array) for _, array in parts)
    if not rows:
        return b""
    document = [length(len(columns)), length(rows)]
    for name, kind in columns.items():
        document += string(name.encode()), string(_SENT_AS.get(kind, kind).encode())
        document += [
            same[name] * len(array) if name in same else array[name].tobytes() for same, array in parts
        ]
    return b"".join(document)
