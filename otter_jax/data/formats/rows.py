r"""Reads the rows of CSV, as RFC 4180 has them and as programs write them all the same.

A row that RFC 4180 cannot explain is read in the first of these ways that gives it as many fields
as the table has columns: quotes, or delimiters, escaped by a backslash (Spark, Hive), and a quote
that is neither doubled nor escaped, which is taken for a letter. White space before a quote is
skipped.

A row of TSV is a line, since captions with one stray quote are common there. It goes on in further
lines only where a quote is open and these lines are no rows of their own (pandas, Excel).
"""

import csv
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from otter_jax.data.formats.lines import LONG, LONGEST, TOO_LONG, Lines, fields_of, placed

DELIMITERS = (",", ";", "\t", "|")  # that a .csv may have, in the order in which they are tried
LINES = 20  # per row; more are taken for a quote that is not closed
LOOSE = 20_000  # characters of a line that is searched for stray quotes, in up to their square
ESCAPED = r"row with \" for a quote, or \ before a delimiter (Spark, Hive), read so"
STRAY = "row with a quote that is not doubled, taken for a letter"

# Characters of a field, for the whole process: the largest picture in base64.
csv.field_size_limit(LONGEST)


class Row(NamedTuple):
    """A row as it is read.

    Attributes:
      place: "byte N", where it begins.
      fields: of the row; [] of an empty line.
      error: why it cannot be read, or "".
      note: how it was read, if not as RFC 4180 has it, or "".
    """

    place: str
    fields: list[str]
    error: str = ""
    note: str = ""


def rows_of(lines: Lines, delimiter: str, width: int = 0) -> Iterator[Row]:
    """Yields the rows of CSV, each of `width` fields; 0 takes any number.

    The lines after the first one of a row that cannot be read are read again, as rows.
    """
    counted = _Counted(lines)
    rows = _reader(counted, delimiter)
    while True:
        start = lines.position
        counted.ends.clear()
        try:
            fields, error = next(rows), ""
        except StopIteration:
            return
        except csv.Error as caught:
            fields, error = [], str(caught)
        ends = list(counted.ends)
        if not ends:
            return
        if not error and len(fields) in (width or len(fields), 0):
            yield Row(f"byte {start}", fields)
            continue
        # Or else the lines that it swallowed would be lost, and some rows beside it.
        row, stop = None, ends[0]
        if error != TOO_LONG:
            row, stop = _otherwise(counted, delimiter, width, start)
        if row is None:
            if len(ends) > LINES:
                error = f"over {LINES} lines in one row: is a quote not closed?"
            error = error or f"{len(fields)} columns instead of {width}"
            row, stop = Row(f"byte {start}", [], error), ends[0]
        if lines.position != stop:
            lines.back_to(stop)
        rows = _reader(counted, delimiter)
        yield row


def rows_of_tsv(lines: Lines, width: int) -> Iterator[Row]:
    """Yields the rows of TSV, each of `width` fields; a field in quotes may have several lines."""
    for place, line in placed(lines):
        if line == LONG:
            yield Row(place, [], TOO_LONG)
            continue
        fields = fields_of(line)
        if fields and _is_open(fields[-1]) and len(fields) <= width:
            end = lines.position
            more = _rest_of(lines, len(fields), width)
            if more:
                fields = fields_of(line + more)
            else:
                lines.back_to(end)
        if len(fields) in (0, width):
            yield Row(place, fields)
        else:
            yield Row(place, [], f"{len(fields)} columns instead of {width}")


def _rest_of(lines: Lines, before: int, width: int) -> str:
    """Returns the lines that end a field in quotes, after `before` fields; "" if none do."""
    more = ""
    for line in itertools.islice(lines, LINES - 1):
        more += line
        first, *others = line.rstrip("\r\n").split("\t")
        if before == width == len(others) + 1:
            return ""  # a row of its own
        if first.count('"') % 2 and first.endswith('"'):
            return more if before + len(others) == width else ""
        if others or first.count('"') % 2:
            return ""
    return ""


def _is_open(field: str) -> bool:
    return field.startswith('"') and bool(field.count('"') % 2)


class _Counted:
    """Yields the lines of one row, at most LINES + 1, and keeps where each ends.

    Raises csv.Error if one of them, or all together, are over LONGEST bytes.
    """

    def __init__(self, lines: Lines):
        self.lines, self.ends = lines, []

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.ends.append(self.lines.position)
            if line == LONG or (self.ends[-1] - self.ends[0] > LONGEST):
                raise csv.Error(TOO_LONG)
            yield line
            if len(self.ends) > LINES:
                return


def _reader(lines: _Counted, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(iter(lines), delimiter=delimiter, skipinitialspace=True, strict=True)


def _otherwise(counted: _Counted, delimiter: str, width: int, start: int) -> tuple[Row | None, int]:
    """Reads the row at byte `start` in other ways; returns it, if one fits, and where it ends."""
    counted.lines.back_to(start)
    counted.ends.clear()
    first = next(iter(counted))
    place, end = f"byte {start}", counted.ends[0]
    if '\\"' in first or f"\\{delimiter}" in first:
        counted.lines.back_to(start)
        counted.ends.clear()
        try:
            fields = next(
                csv.reader(
                    iter(counted), delimiter=delimiter, skipinitialspace=True, strict=True,
                    escapechar="\\", doublequote=True,
                )
            )  # fmt: skip
        except csv.Error:
            fields = []
        if fields and len(fields) == (width or len(fields)):
            return Row(place, fields, note=ESCAPED), counted.ends[-1]
    fields = _loose(first.rstrip("\r\n"), delimiter) if len(first) < LOOSE else []
    if fields and len(fields) == width:
        return Row(place, fields, note=STRAY), end
    return None, end


def _loose(line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line where a quote ends a field only before a delimiter or the end.

    Returns [] if one has an odd number of quotes: it may have been meant to go on in the next line.
    """
    cut = re.escape(delimiter)
    fields = re.findall(rf'(?:^|{cut})(?:\s*"(.*?)"(?=\s*(?:{cut}|$))|([^{cut}]*))', line)
    if any(bare.count('"') % 2 or quoted.count('"') % 2 for quoted, bare in fields):
        return []
    return [quoted.replace('""', '"') or bare for quoted, bare in fields]
