"""Reads lines and rows from a range of bytes of a text file, gzipped or not.

The position of a line or row is "byte N". Text is UTF-8; bytes that are not become U+FFFD.
"""

import csv
import gzip
import io
import pathlib
from collections.abc import Iterator

RANGE = 1 << 20  # bytes of a text that are read in one go
LINES = 20  # per row of CSV; more are taken for a quote that is not closed

csv.field_size_limit(1 << 20)  # bytes, for the whole process: the most an unclosed quote swallows


def byte_ranges(path: pathlib.Path, size: int = RANGE, start: int = 0) -> list[tuple[int, int]]:
    """Cuts a text into ranges (begin, end) of some `size` bytes; all end with a line."""
    end, spans = path.stat().st_size, []
    with open(path, "rb") as file:
        while start < end:
            file.seek(min(start + size, end) - 1)
            file.readline()  # to the end of the line that it is in
            spans.append((start, file.tell()))
            start = file.tell()
    return spans


def lines_in(path: pathlib.Path, start: int = 0, stop: int = -1) -> Iterator[tuple[str, str]]:
    """Yields each line in a byte range, after its position "byte N"."""
    with open_text(path) as file:
        file.seek(start)
        yield from placed(Lines(file, start, stop))


def open_text(path: pathlib.Path) -> io.BufferedIOBase:
    """Opens a text to read its bytes, unpacked if its name ends in .gz."""
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


class Lines:
    """Yields the lines of a file up to byte `stop`, or to the end if that is negative.

    Attributes:
      position: the byte where the next line begins.
    """

    def __init__(self, file: io.BufferedIOBase, position: int = 0, stop: int = -1):
        self._file, self.position, self._stop = file, position, stop

    def back_to(self, position: int) -> None:
        """Goes on reading at another byte of the file."""
        self._file.seek(position)
        self.position = position

    def __iter__(self) -> Iterator[str]:
        while self._stop < 0 or self.position < self._stop:
            line = self._file.readline()
            if not line:
                return
            self.position += len(line)
            yield line.decode("utf-8", "replace")


def placed(lines: Lines) -> Iterator[tuple[str, str]]:
    """Yields the position of each line, and the line."""
    place = f"byte {lines.position}"
    for line in lines:
        yield place, line
        place = f"byte {lines.position}"


def rows_of(lines: Lines, kind: str) -> Iterator[tuple[str, str | list[str] | csv.Error]]:
    """Yields the position of each row, and the row: fields of CSV, any other line, or an error."""
    if kind != "csv":
        yield from placed(lines)
        return
    ends: list[int] = []  # of the lines of a row

    def counted():
        for line in lines:
            ends.append(lines.position)
            yield line

    rows = csv.reader(counted())
    while True:
        ends.clear()
        place = f"byte {lines.position}"
        try:
            row: list[str] | csv.Error = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        if len(ends) > LINES:
            row = csv.Error(f"over {LINES} lines in one row: is a quote not closed?")
        if len(ends) > 1 and isinstance(row, csv.Error):
            lines.back_to(ends[0])  # the lines it swallowed may be rows
            rows = csv.reader(counted())
        yield place, row


def fields_of(line: str) -> list[str]:
    """Returns the fields of a line of TSV; [] of an empty one."""
    fields = line.rstrip("\r\n").split("\t")
    if fields == [""]:
        return []
    quoted = (len(f) > 1 and f[0] == f[-1] == '"' for f in fields)
    return [f[1:-1].replace('""', '"') if q else f for f, q in zip(fields, quoted, strict=True)]
