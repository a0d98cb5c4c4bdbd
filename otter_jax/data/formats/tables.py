"""Image-caption pairs from tables: CSV, TSV, JSON lines and Parquet.

A row has an image and a caption. The image is the path of a file, relative to the table's folder
unless another root is given; in Parquet it may be the bytes themselves, or a struct of both as
Hugging Face writes it. All other columns are kept as one JSON object.

CSV is read by RFC 4180. In TSV a row is a line, and a field is quoted only if it begins and ends
with a quote, since captions with one stray quote are common. Text is UTF-8; bytes that are not
become U+FFFD. Words such as NA or null are text like any other.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data.build.plan import ROWS, Options, Plan, Record, listed, pair, pair_features
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.lines import RANGE, Lines, byte_ranges, fields_of, open_text, rows_of
from otter_jax.data.formats.reading import USUAL, Reading
from otter_jax.errors import UserError

SUFFIXES = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".csv.gz",
    ".tsv.gz",
    ".jsonl.gz",
    ".ndjson.gz",
)
IMAGE = ("image", "image_path", "path", "filepath", "file_path", "filename", "file_name", "file")
CAPTION = ("caption", "text", "title", "description")
KEY = ("key", "id", "image_id", "uid")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names the columns that are read.

    With key "" the key of a row is its image's path, or else its position in the table.
    """

    image: str
    caption: str
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reads rows of a table: from byte `start` to `stop` of a text, or a row group of Parquet.

    Attributes:
      names: of the columns of CSV and TSV; () for JSON lines, whose rows have them.
    """

    path: pathlib.Path
    columns: Columns
    root: pathlib.Path
    size: int
    names: tuple[str, ...] = ()
    start: int = 0
    stop: int = -1
    group: int = -1

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of the table."""
        rows = self._parquet() if self.group >= 0 else self._text(tally)
        for place, row in rows:
            record = self._record(place, row, tally)
            if record:
                yield record

    def _text(self, tally: Tally) -> Iterator[tuple[str, Row]]:
        with open_text(self.path) as file:
            file.seek(self.start)
            lines = Lines(file, self.start, self.stop)
            for place, text in rows_of(lines, _kind(self.path)):
                try:
                    row = self._row(text)
                except (ValueError, RecursionError) as error:
                    tally.dropped("row that cannot be read", f"{self.path.name}: {place} ({error})")
                else:
                    if row:
                        yield place, row

    def _row(self, text: str | list[str] | csv.Error) -> Row | None:
        """Returns the values of a row by column; None for an empty row.

        Raises ValueError, or RecursionError from JSON, if it cannot be read.
        """
        if isinstance(text, csv.Error):
            raise ValueError(str(text))
        if not self.names:
            row = json.loads(text) if text.strip() else None
            if row is not None and not isinstance(row, dict):
                raise ValueError("no JSON object")
            return row
        fields = text if isinstance(text, list) else fields_of(text)
        if fields and len(fields) != len(self.names):
            raise ValueError(f"{len(fields)} columns instead of {len(self.names)}")
        return dict(zip(self.names, fields, strict=True)) if fields else None

    def _parquet(self) -> Iterator[tuple[str, Row]]:
        with pq.ParquetFile(self.path) as file:
            batches = file.iter_batches(ROWS, row_groups=[self.group])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=self.start):
                yield f"row {number}", row

    def _record(self, place: str, row: Row, tally: Tally) -> Record | None:
        image, path = row.get(self.columns.image), None
        if isinstance(image, Mapping):  # Hugging Face's image: bytes, path, or both
            image, path = image.get("bytes") or image.get("path"), image.get("path")
        elif isinstance(image, str):
            path = image
        key = row.get(self.columns.key) if self.columns.key else path
        key = str(key) if key not in (None, "") else place
        name = clean(f"{self.path.name}: {key}")
        caption = row.get(self.columns.caption)
        if isinstance(caption, bytes):
            caption = caption.decode("utf-8", "replace")
        if isinstance(image, str):
            if image.startswith(("http://", "https://")):
                return tally.dropped("URL instead of an image: download them first", name)
            image = self.root / image if image else None
        if not isinstance(image, bytes | pathlib.Path):
            return tally.dropped("caption without image", name)
        used = (self.columns.image, self.columns.caption)
        rest = {column: value for column, value in row.items() if column not in used}
        return pair(
            name,
            image=image,
            caption=caption,
            key=key,
            sidecar=json.dumps(rest, default=_as_text),
            tally=tally,
        )


def plan(
    name: str,
    tables: Sequence[pathlib.Path],
    options: Options,
    reading: Reading = USUAL,
) -> Plan:
    """Plans a set of the rows of `tables`, all of the same columns.

    Args:
      name: of the set.
      tables: files whose names end in one of SUFFIXES.
      options: for the images.
      reading: which columns; an unnamed one is the first of IMAGE or CAPTION that is there.

    Raises:
      UserError: a table that cannot be read, or has no such columns.
    """
    units = []
    for table in tables:
        try:
            names, start = _header(table)
            columns = Columns(
                image=_choose("image", reading.image, IMAGE, names, table),
                caption=_choose("caption", reading.caption, CAPTION, names, table),
                key=next((key for key in KEY if key in names), ""),
            )
            _check_types(table, columns)
            units += _units(table, columns, reading.root or table.parent, names, start)
        except UserError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
            raise UserError(f"The table {table} cannot be read: {error}.") from error
    number = len(tables)
    return Plan(
        name=name,
        features=pair_features(),
        units={"train": units},
        files={"train": listed(tables)},
        origin=f"{number} table{'s' * (number > 1)}",
        options=options,
        details={
            "image": columns.image,
            "caption": columns.caption,
            "root": clean(str((reading.root or tables[0].parent).resolve())),
        },
    )


def _kind(table: pathlib.Path) -> str:
    """Returns csv, tsv, jsonl or parquet. Raises UserError for any other name."""
    suffix = next((s for s in SUFFIXES if table.name.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"What is {table}? A table's name ends in one of {', '.join(SUFFIXES)}.")
    return suffix.split(".")[1].replace("ndjson", "jsonl")


def _header(table: pathlib.Path) -> tuple[tuple[str, ...], int]:
    """Returns the columns of a table, and the byte where the first row begins."""
    kind = _kind(table)
    if kind == "parquet":
        return tuple(pq.read_schema(table).names), 0
    with open_text(table) as file:
        mark = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        file.seek(mark)
        lines = Lines(file, mark)
        rows = (row for _, row in rows_of(lines, kind))
        first = next((row for row in rows if not isinstance(row, str) or row.strip()), None)
        if first is None or isinstance(first, csv.Error):
            raise UserError(f"The table {table} has no first line with the names of its columns.")
        if isinstance(first, list):
            return tuple(first), lines.position
        if kind == "tsv":
            return tuple(fields_of(first)), lines.position
        row = json.loads(first)
        if not isinstance(row, dict):
            raise UserError(f"The first line of {table} is no JSON object.")
        return tuple(row), mark


def _choose(
    what: str, given: str, usual: Sequence[str], names: Sequence[str], table: pathlib.Path
) -> str:
    """Returns the column that holds the image or the caption."""
    there = {name.strip().lower(): name for name in reversed(names)}
    found = given if given in names else ""
    if not given:
        found = next((there[name] for name in usual if name in there), "")
    if not found:
        wanted = f"column {given!r}" if given else f"column for the {what} ({', '.join(usual)})"
        shown = ", ".join(repr(clean(name[:40])) for name in names[:20])
        raise UserError(
            f"The table {table} has no {wanted}. Its first line names the columns: {shown}. Give "
            f"--{what} one of them; if they are no names, put a first line that has names."
        )
    return found


def _check_types(table: pathlib.Path, columns: Columns) -> None:
    """Raises UserError if columns of Parquet cannot be an image and a caption."""
    if _kind(table) != "parquet":
        return
    schema, t = pq.read_schema(table), pa.types
    texts = (t.is_string, t.is_large_string, t.is_string_view, t.is_dictionary)
    blobs = (t.is_binary, t.is_large_binary, t.is_binary_view, t.is_struct)
    for column, kinds in ((columns.caption, (*texts, *blobs[:3])), (columns.image, texts + blobs)):
        kind = schema.field(column).type
        if not any(is_kind(kind) for is_kind in kinds):
            raise UserError(
                f"The column {column!r} of {table} is {kind}; a caption is text, an image bytes, a "
                "path or a struct of both."
            )


def _units(
    table: pathlib.Path, columns: Columns, root: pathlib.Path, names: tuple[str, ...], start: int
) -> Iterator[Rows]:
    """Yields the units of a table, cut where its format allows reading to begin."""
    kind = _kind(table)
    if kind == "parquet":  # a unit per row group: a group is decoded as a whole
        about = pq.read_metadata(table)
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        firsts = itertools.accumulate((group.num_rows for group in groups), initial=0)
        for number, (group, first) in enumerate(zip(groups, firsts, strict=False)):
            size = group.total_byte_size
            yield Rows(table, columns, root, size, start=first, group=number)
        return
    names = () if kind == "jsonl" else names
    end = table.stat().st_size
    if table.name.lower().endswith(".gz"):  # one unit: gzip can only be read from its beginning
        yield Rows(table, columns, root, end, names, start)
        return
    if kind != "csv":  # a row is a line, so any end of a line will do
        for first, last in byte_ranges(table, RANGE, start):
            yield Rows(table, columns, root, last - first, names, first, last)
        return
    # A field of CSV may span lines: the ends of rows are known only by reading all of them.
    with open(table, "rb") as file:
        file.seek(start)
        lines = Lines(file, start)
        for _ in rows_of(lines, kind):
            if lines.position - start >= RANGE:
                yield Rows(table, columns, root, lines.position - start, names, start,
                           lines.position)  # fmt: skip
                start = lines.position
        if lines.position > start:
            yield Rows(table, columns, root, lines.position - start, names, start, lines.position)


def _as_text(value: Any) -> str:
    """Converts a value that JSON cannot hold into text."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
