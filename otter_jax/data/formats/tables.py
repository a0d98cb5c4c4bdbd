"""Image-caption pairs from tables: CSV, TSV, JSON lines, JSON and Parquet.

A row has an image and a caption, or several captions: a pair each, all with the row's key. The
image is the path of a file, relative to the table's folder unless another root is given, or its
bytes (see `cells`). All other columns are kept as one JSON object.

CSV and TSV are read as `rows` says; in TSV a field is quoted only if it begins and ends with a
quote. Words such as NA or null are text like any other.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data.build.plan import Options, Plan, Record, listed, pair_features, pairs
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats import arrays, parquet
from otter_jax.data.formats.arrays import parsed
from otter_jax.data.formats.cells import captions_of, image_of, short
from otter_jax.data.formats.columns import (
    SUFFIXES,
    Columns,
    Layout,
    columns_of,
    layout_of,
    shown_delimiter,
)
from otter_jax.data.formats.lines import (
    LONG,
    RANGE,
    TOO_LONG,
    Lines,
    byte_ranges,
    is_cut_freely,
    open_text,
    placed,
)
from otter_jax.data.formats.members import LONG_TEXT, MAX_TEXT
from otter_jax.data.formats.presence import has_pairs
from otter_jax.data.formats.reading import OUTSIDE, USUAL, Reading
from otter_jax.data.formats.rows import Row, rows_of, rows_of_tsv
from otter_jax.errors import UserError
from otter_jax.files import is_within, open_regular

__all__ = ("SUFFIXES", "Rows", "plan")

FIRST = 8  # rows of Parquet read at a time, to find one whose image is there

Cells = Mapping[str, Any]  # of a row, by column


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reads rows of a table.

    Attributes:
      start, stop: in bytes of a text; in rows of a JSON file; start alone, in rows, of Parquet.
      group: of Parquet.
      captions: whether a row needs one.
      untrusted: whether paths that leave `root` are left out.
    """

    path: pathlib.Path
    layout: Layout
    columns: Columns
    root: pathlib.Path
    size: int
    start: int = 0
    stop: int = -1
    group: int = -1
    captions: bool = True
    untrusted: bool = False

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of the table."""
        for place, row in self.rows(tally):
            yield from self._records(place, row, tally)

    def rows(self, tally: Tally) -> Iterator[tuple[str, Cells]]:
        """Yields the position of each row, and its values by column."""
        if self.layout.kind == "parquet":
            for number, row in enumerate(
                parquet.rows_in(self.path, self.group, self.needed, tally), start=self.start
            ):
                yield f"row {number}", row
        elif self.layout.kind == "json":
            for number, row in enumerate(arrays.rows_in(self.path)[self.start : self.stop]):
                yield f"row {self.start + number}", row
        else:
            with open_text(self.path) as file:
                file.seek(self.start)
                lines = Lines(file, self.start, self.stop)
                yield from self._fields(lines, tally) if self._names else self._json(lines, tally)

    @property
    def needed(self) -> tuple[str, ...]:
        """Returns the columns that a pair is made of."""
        return tuple(dict.fromkeys(filter(None, self.columns)))

    @property
    def _names(self) -> list[str]:
        """Returns the names of fields; [] for rows that have their own."""
        return [] if self.layout.kind == "jsonl" else parquet.distinct(self.layout.names)

    def _json(self, lines: Lines, tally: Tally) -> Iterator[tuple[str, Cells]]:
        for place, text in placed(lines):
            try:
                if text == LONG:
                    raise ValueError(TOO_LONG)
                row = parsed(text) if text.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
            except (ValueError, RecursionError) as error:
                self._unreadable(place, str(error), tally)
            else:
                if row:
                    yield place, row

    def _fields(self, lines: Lines, tally: Tally) -> Iterator[tuple[str, Cells]]:
        names = self._names
        for row in _rows_of(lines, self.layout):
            if row.error:
                self._unreadable(row.place, row.error, tally)
            elif row.fields:
                if row.note:
                    tally.changed(row.note, f"{self.path.name}: {row.place}")
                yield row.place, dict(zip(names, row.fields, strict=True))

    def _unreadable(self, place: str, why: str, tally: Tally) -> None:
        tally.dropped("row that cannot be read", f"{self.path.name}: {place} ({why})")

    def _records(self, place: str, row: Cells, tally: Tally) -> Iterator[Record]:
        columns = self.columns
        image = image_of(row.get(columns.image), self.root)
        key = row.get(columns.key) if columns.key else image.path
        key = str(key) if key not in (None, "") else place
        name = short(f"{self.path.name}: {key}")
        if image.why:
            tally.dropped(image.why, name)
            return
        outside = isinstance(image.image, pathlib.Path) and self.untrusted
        if outside and not is_within(image.image, self.root):
            tally.dropped(OUTSIDE, name)
            return
        caption = row.get(columns.caption) if columns.caption else None
        if isinstance(caption, str | bytes) and len(caption) > MAX_TEXT:
            tally.dropped(LONG_TEXT, name)
            return
        captions, why, note = captions_of(caption)
        if note:
            tally.changed(note, name)
        if why and (captions or self.captions):
            tally.dropped(why, name)
        used = (columns.image, columns.caption)
        rest = {column: value for column, value in row.items() if column not in used}
        sidecar = json.dumps(rest, default=_as_text)
        yield from pairs(
            name,
            image=image.image,
            captions=captions,
            key=key,
            sidecar=sidecar,
            required=self.captions,
            tally=tally,
        )


def plan(
    name: str,
    tables: Sequence[pathlib.Path],
    options: Options,
    reading: Reading = USUAL,
) -> Plan:
    """Plans a set of the rows of `tables`.

    Args:
      name: of the set.
      tables: files whose names end in one of SUFFIXES.
      options: for the images.
      reading: which columns; an unnamed one is the first usual name that is there.

    Raises:
      UserError: a table that cannot be read, has no such columns or none of its images, or no row
        in any table.
    """
    if reading.root and not reading.root.is_dir():
        raise UserError(f"There is no folder {reading.root}, which --root names.")
    units: list[Rows] = []
    number = len(tables)
    filled, unread = False, Tally()
    for table in tables:
        try:
            layout = layout_of(table, reading)
            columns = columns_of(table, layout, reading)
            whole = Rows(
                table, layout, columns, reading.root or table.parent, 0, layout.start,
                captions=reading.captions, untrusted=reading.untrusted,
            )  # fmt: skip
            of_table = list(_units(whole))
            units += of_table
            if filled and layout.kind == "parquet" and parquet.holds_images(table, columns.image):
                continue  # one is enough: the first image of a group costs reading most of it
            filled |= has_pairs(table, _cells(of_table, unread), whole.root, reading.captions)
        except UserError:
            raise
        except (
            OSError, EOFError, ValueError, RecursionError, zlib.error, csv.Error, pa.ArrowException
        ) as error:  # fmt: skip
            why = clean(str(error)).rstrip(".")
            raise UserError(f"The table {table} cannot be read: {why}.") from error
    if not filled:
        first = [entry["first"][0] for entry in unread.found["dropped"].values()]
        why = f" that can be read: {first[0]}" if first else ""
        raise UserError(f"There are no rows in {tables[0]}{' and others' * (number > 1)}{why}.")
    return Plan(
        name=name,
        features=pair_features(),
        units={"train": units},
        files={"train": listed(tables)},
        origin=_origin(tables, units),
        options=options,
        details=_details(units, reading),
    )


def _cells(units: Sequence[Rows], tally: Tally) -> Iterator[tuple[Any, Any]]:
    """Yields what the columns of images and captions hold, as cheaply as a table allows."""
    for unit in units:
        if unit.layout.kind == "parquet":
            rows = parquet.firsts_in(unit.path, unit.group, unit.needed, FIRST)
        else:
            rows = (row for _, row in unit.rows(tally))
        for row in rows:
            yield row.get(unit.columns.image), row.get(unit.columns.caption)


def _origin(tables: Sequence[pathlib.Path], units: Sequence[Rows]) -> str:
    """Returns the tables in a few words, and what was found out about them."""
    number = len(tables)
    one = clean(f"{tables[0].resolve().parent.name}/{tables[0].name}")
    words = [one if number == 1 else f"{number} tables"]
    columns = dict.fromkeys(unit.columns[:2] for unit in units)
    words += [
        f"image {image!r}, " + (f"caption {caption!r}" if caption else "no caption")
        for image, caption in columns
    ]
    layouts = dict.fromkeys(unit.layout for unit in units)
    delimiters = dict.fromkeys(layout.delimiter for layout in layouts if layout.kind == "csv")
    if set(delimiters) - {","}:
        words.append(f"divided at {', '.join(map(shown_delimiter, delimiters))}")
    unused = {n for layout in layouts for n in layout.names if n.strip().lower() == "split"}
    if unused and not unused & {name for pair in columns for name in pair}:
        words.append(f"all splits together, whatever the column {min(unused)!r} says")
    found = {
        part
        for table in tables
        for part in re.split(r"[^a-z]+", f"{table.parent.name}/{table.name}".lower())
        if part in ("train", "test", "validation", "valid", "val", "dev")
    }
    if len(found) > 1:
        words.append(f"of {', '.join(sorted(found))} together")
    return f"{words[0]} ({'; '.join(words[1:])})" if words[1:] else words[0]


def _details(units: Sequence[Rows], reading: Reading) -> dict[str, str]:
    """Returns what makes another set if it differs."""
    found = {
        "image": [unit.columns.image for unit in units],
        "caption": [unit.columns.caption for unit in units],
        "root": [clean(str(unit.root.resolve())) for unit in units[:1]],
        "delimiter": [unit.layout.delimiter for unit in units],
        "captions": ["needed" if reading.captions else "not needed"],
        "paths": [reading.paths],
    }
    return {what: ", ".join(dict.fromkeys(filter(None, each))) for what, each in found.items()}


def _units(whole: Rows) -> Iterator[Rows]:
    """Yields the units of a table, cut where its format allows reading to begin."""
    table, start = whole.path, whole.start
    kind = whole.layout.kind

    def unit(size: int, **limits: int) -> Rows:
        return dataclasses.replace(whole, size=size, **limits)

    if kind == "parquet":  # a unit per row group: a group is decoded as a whole
        about = pq.read_metadata(table)
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        firsts = itertools.accumulate((group.num_rows for group in groups), initial=0)
        for number, (group, first) in enumerate(zip(groups, firsts, strict=False)):
            yield unit(group.total_byte_size, start=first, group=number)
        return
    end = table.stat().st_size
    if kind == "json":
        number = len(arrays.rows_in(table))
        for first in range(0, number, arrays.ROWS):
            last = min(first + arrays.ROWS, number)
            yield unit(max(1, end * (last - first) // number), start=first, stop=last)
    elif not is_cut_freely(table):  # one unit, which can only be read from its beginning
        yield unit(end)
    elif kind == "jsonl":  # a row is a line, so any end of a line will do
        for first, last in byte_ranges(table, RANGE, start):
            yield unit(last - first, start=first, stop=last)
    else:  # a field may span lines: the ends of rows are known only by reading all of them
        with open_regular(table) as file:
            file.seek(start)
            lines = Lines(file, start)
            for _ in _rows_of(lines, whole.layout):
                if lines.position - start >= RANGE:
                    yield unit(lines.position - start, start=start, stop=lines.position)
                    start = lines.position
            if lines.position > start:
                yield unit(lines.position - start, start=start, stop=lines.position)


def _rows_of(lines: Lines, layout: Layout) -> Iterator[Row]:
    """Yields the rows of a text whose first line names its columns."""
    if layout.kind == "tsv":
        return rows_of_tsv(lines, len(layout.names))
    return rows_of(lines, layout.delimiter, len(layout.names))


def _as_text(value: Any) -> str:
    """Converts a value that JSON cannot hold into text."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
