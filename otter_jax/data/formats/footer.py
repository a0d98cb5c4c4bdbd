"""Reads what the footer of a Parquet file says of the sizes of its columns.

pyarrow says it, too, but its accessors end the whole process where a footer is damaged in a way
that its readers answer by an error. A footer is a struct in the compact protocol of Apache Thrift;
the numbers of fields are those of parquet.thrift.
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

from otter_jax.files import open_regular

MOST = 256 << 20  # bytes of a footer
DEEP = 32  # structs in structs


class Chunk(NamedTuple):
    """Describes a column of a row group.

    Attributes:
      path: its name, and the names of the fields within.
      values: how many it has, with those of lists and with nulls.
      unpacked, packed: bytes.
      dictionary: where the page of its dictionary begins; 0 if it has none.
    """

    path: tuple[str, ...]
    values: int
    unpacked: int
    packed: int
    dictionary: int


class Group(NamedTuple):
    """Describes a row group."""

    rows: int
    chunks: tuple[Chunk, ...]


def groups_of(table: pathlib.Path) -> tuple[Group, ...]:
    """Returns the row groups of a file. Raises OSError for a footer that cannot be read."""
    about = os.stat(table)
    return _groups_of(table, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)  # the units of a file follow each other
def _groups_of(table: pathlib.Path, changed: int, size: int) -> tuple[Group, ...]:
    with open_regular(table) as file:
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        if length > min(MOST, size - 8):
            raise OSError(f"its footer claims {length:,} bytes")
        file.seek(size - 8 - length)
        footer = file.read(length)
    try:
        return tuple(map(_group, _Reader(footer).struct().get(4, ())))
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise OSError("its footer cannot be read") from error


def _group(fields: dict[int, Any]) -> Group:
    chunks = []
    for column in fields[1]:
        about = column.get(3, {})  # none where a column is encrypted
        path = tuple(part.decode("utf-8", "replace") for part in about.get(3, ()))
        chunks.append(Chunk(path, *(_count(about.get(field)) for field in (5, 6, 7, 11))))
    return Group(_count(fields[3]), tuple(chunks))


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def first_page(head: bytes) -> int:
    """Returns the unpacked size of a page, by its first bytes; 0 if they are none of a page."""
    try:
        found = _Reader(head).struct(last=2)[2]
        return found if isinstance(found, int) else 0
    except (IndexError, KeyError, ValueError):
        return 0


class _Reader:
    """Reads the compact protocol: structs as {number of a field: value}. Errors are IndexErrors."""

    def __init__(self, content: bytes):
        self._content, self._at = content, 0

    def struct(self, depth: int = 0, last: int = -1) -> dict[int, Any]:
        """Reads a struct, up to the field `last` where that is not negative."""
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
            if number == last:
                break
        return fields

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _unsigned(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return number

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)

    def _value(self, kind: int, depth: int, element: bool = False) -> Any:
        if depth > DEEP:
            raise ValueError("it nests too deeply")
        if kind in (1, 2):
            return self._byte() == 1 if element else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            size = 8 if kind == 7 else self._unsigned()
            self._at += size
            if self._at > len(self._content):
                raise IndexError
            return self._content[self._at - size : self._at]
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 15, depth + 1, element=True) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a field of kind {kind}")  # parquet.thrift has no maps
