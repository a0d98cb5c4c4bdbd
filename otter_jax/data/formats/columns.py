"""Finds out how a table is written, and which of its columns hold images, captions and keys."""

import collections
import csv
import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from otter_jax.data.captions import clean
from otter_jax.data.formats import arrays, parquet
from otter_jax.data.formats.lines import LONG, TOO_LONG, Lines, fields_of, open_text
from otter_jax.data.formats.reading import Reading
from otter_jax.data.formats.rows import DELIMITERS, rows_of
from otter_jax.errors import UserError
from otter_jax.files import open_regular

KINDS = ("csv", "tsv", "jsonl", "ndjson", "json")  # also with .gz
SUFFIXES = (*(f".{kind}{packed}" for packed in ("", ".gz") for kind in KINDS), ".parquet")
IMAGE = ("image", "image_path", "path", "filepath", "file_path", "filename", "file_name", "file")
CAPTION = ("caption", "captions", "text", "title", "description")
KEY = ("key", "id", "image_id", "uid")
OTHERS = {  # than tables, by how they begin
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: git lfs pull gets that",
    b"PK\x03\x04": "a zip archive, or a workbook of Excel: unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel before 2007, or the like: save it as CSV",
    b"SQLite format 3\0": "a data base of SQLite: write the table as CSV",
    b"PAR1": "Parquet: its name must end in .parquet",
    b"ARROW1": "Arrow: write it as Parquet",
}
HEAD = 1 << 20  # bytes of the first line
LOOKED_AT = 100  # rows of JSON whose keys are the columns
NAMES = {"\t": "tab", " ": "space"}  # of delimiters, for people


class Layout(NamedTuple):
    """How a table is written.

    Attributes:
      kind: "csv", "tsv" (a row is a line), "jsonl", "json" or "parquet".
      names: of the columns, as they are in the file.
      start: byte where the first row begins.
      delimiter: between the fields of "csv".
    """

    kind: str
    names: tuple[str, ...]
    start: int = 0
    delimiter: str = ""


class Columns(NamedTuple):
    """Names the columns that are read.

    With key "" the key of a row is its image's path, or else its position in the table; with
    caption "" its caption is "".
    """

    image: str
    caption: str
    key: str = ""


def kind_of(table: pathlib.Path) -> str:
    """Returns the kind that a table's name says. Raises UserError for any other name."""
    suffix = next((s for s in SUFFIXES if table.name.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"What is {table}? A table's name ends in one of {', '.join(SUFFIXES)}.")
    return suffix.split(".")[1].replace("ndjson", "jsonl")


def layout_of(table: pathlib.Path, reading: Reading) -> Layout:
    """Finds out how a table is written.

    Raises UserError if it does not begin with names of columns; and what reading it raises.
    """
    kind = kind_of(table)
    _check_beginning(table, kind)
    if kind in ("csv", "tsv"):
        return _of_fields(table, kind, reading)
    if reading.delimiter:
        raise UserError(f"--delimiter is for .csv and .tsv; {table} has no fields to divide.")
    if kind == "parquet":
        return Layout(kind, parquet.names_of(table))
    if arrays.is_array(table):
        rows = arrays.rows_in(table)
        if not rows:
            raise UserError(f"The table {table} is empty.")
        return Layout(
            "json", tuple(dict.fromkeys(name for row in rows[:LOOKED_AT] for name in row))
        )
    with open_text(table) as file:
        mark = _after_mark(file)
        texts = (text for text in Lines(file, mark) if text.strip())
        names: dict[str, None] = {}
        doubled: list[str] = []
        for number, text in enumerate(itertools.islice(texts, LOOKED_AT)):
            try:
                if text == LONG:
                    raise ValueError(TOO_LONG)
                pairs = arrays.parsed(text, object_pairs_hook=list)
                named = [name for name, _ in pairs]
            except (ValueError, TypeError, RecursionError) as error:
                if number:
                    continue
                raise UserError(f"The first line of {table} is no JSON object: {error}.") from error
            names |= dict.fromkeys(named)
            doubled += [name for name, n in collections.Counter(named).items() if n > 1]
        if not names:
            raise UserError(f"The table {table} is empty.")
        return Layout("jsonl", (*names, *dict.fromkeys(doubled)), mark)


def columns_of(table: pathlib.Path, layout: Layout, reading: Reading) -> Columns:
    """Chooses the columns of a table.

    Raises UserError if there is none for the image or, where captions are needed, the caption, if
    such a name is there twice, or if columns of Parquet cannot be an image and captions.
    """
    image = _choose("image", reading.image, IMAGE, table, layout)
    caption = ""
    if reading.captions or reading.caption or _found("", CAPTION, layout.names):
        caption = _choose("caption", reading.caption, CAPTION, table, layout)
    key = next((key for key in KEY if layout.names.count(key) == 1), "")
    if layout.kind == "parquet":
        parquet.check_types(table, image, caption)
    return Columns(image, caption, key if key not in (image, caption) else "")


def _check_beginning(table: pathlib.Path, kind: str) -> None:
    """Raises UserError for a file that begins as another kind of file does."""
    with open_regular(table) as file:
        raw = file.read(200)
    what = next((what for magic, what in OTHERS.items() if raw.startswith(magic)), "")
    if raw.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page, as of a download that failed"
    if what and not (kind == "parquet" and raw.startswith(b"PAR1")):
        raise UserError(f"The table {table} is {what}.")


def _of_fields(table: pathlib.Path, kind: str, reading: Reading) -> Layout:
    """Tries the delimiters on the first line of a table; the first that shows both columns."""
    usual = "\t" if kind == "tsv" else ","
    tried, errors = [], []
    for delimiter in _delimiters(table, usual, reading):
        try:
            tried.append(_headed(table, kind, delimiter))
        except csv.Error as error:
            errors.append(error)
    if not tried:
        raise UserError(f"The first line of {table} cannot be read: {errors[0]}.")
    for layout in tried:
        if all(
            _found(given, known, layout.names)
            for given, known in ((reading.image, IMAGE), (reading.caption, CAPTION))
        ):
            return layout
    return max(tried, key=_width)  # the first of the widest


def _width(layout: Layout) -> int:
    return len(layout.names)


def _delimiters(table: pathlib.Path, usual: str, reading: Reading) -> list[str]:
    """Returns the delimiters to try: the one given, what Excel's "sep=;" says, or all."""
    if reading.delimiter:
        return [reading.delimiter]
    with open_text(table) as file:
        _after_mark(file)
        said = file.readline(8).rstrip(b"\r\n")
    if len(said) == 5 and said.startswith(b"sep="):
        return [said[4:].decode("latin-1")]
    return sorted(DELIMITERS, key=usual.__ne__)


def _headed(table: pathlib.Path, kind: str, delimiter: str) -> Layout:
    """Returns the names that the first line has with this delimiter.

    Raises csv.Error for quotes that this delimiter does not explain, and UserError if it cannot be
    that of a table.
    """
    with open_text(table) as file:
        mark = _after_mark(file)
        line = file.readline(HEAD + 1)
        if len(line) > HEAD:
            raise UserError(
                f"The first line of {table}, which should name its columns, is over 1 MiB long."
            )
        if b"\0" in line:
            raise UserError(f"The table {table} holds zero bytes{_zeros(line, table, kind)}")
        if b"\r" in line.rstrip(b"\r\n") and b"\n" not in line[-1:]:
            raise UserError(
                f"The lines of {table} end in CR alone. Make that LF: "
                f"tr '\\r' '\\n' < {table.name} > new.{kind}"
            )
        if line.startswith(b"sep=") and len(line.rstrip(b"\r\n")) == 5:
            mark += len(line)
        file.seek(mark)
        lines = Lines(file, mark)
        if kind == "tsv" and delimiter == "\t":
            fields = next((found for found in map(fields_of, lines) if found), None)
            error = ""
        else:
            kind = "csv"
            rows = (row for row in rows_of(lines, delimiter) if row.fields or row.error)
            row = next(rows, None)
            fields, error = (row.fields, row.error) if row else (None, "")
        if error:
            raise csv.Error(error)
        if fields is None:
            raise UserError(f"The table {table} is empty: no first line names its columns.")
        return Layout(kind, tuple(map(str.strip, fields)), lines.position, delimiter)


def _zeros(line: bytes, table: pathlib.Path, kind: str) -> str:
    """Returns what zero bytes in a first line mean, as the end of a sentence."""
    even, odd = (line[start::2].count(0) for start in (0, 1))
    if max(even, odd) < len(line) // 4:
        return ", and is no text."
    encoding = "utf-16le" if odd > even else "utf-16be"
    return (
        ", as text in UTF-16 without a byte order mark does. Make it UTF-8: "
        f"iconv -f {encoding} -t utf-8 {table.name} > new.{kind}"
    )


def _after_mark(file) -> int:
    """Returns the byte after UTF-8's mark, if there is one, and goes there."""
    mark = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(mark)
    return mark


def _found(given: str, usual: Sequence[str], names: Sequence[str]) -> str:
    """Returns the column that a name, or one of the usual ones, means; "" if there is none."""
    if given in names and given:
        return given
    there = {name.strip().lower(): name for name in reversed(names)} | {
        name: name for name in names
    }
    wanted = [given.strip().lower()] if given else usual
    return next((there[name] for name in wanted if name in there), "")


def _choose(
    what: str, given: str, usual: Sequence[str], table: pathlib.Path, layout: Layout
) -> str:
    """Returns the column that holds the image or the caption."""
    names = layout.names
    found = _found(given, usual, names)
    if not found:
        wanted = f"column {given!r}" if given else f"column for the {what} ({', '.join(usual)})"
        shown = ", ".join(repr(clean(name[:40])) for name in names[:20])
        if layout.delimiter:
            shown += f", divided at {shown_delimiter(layout.delimiter)} (--delimiter C: at C)"
        unnamed = "; if they are no names, put a first line that has names" * bool(layout.start)
        said = "Its first line names the columns" if layout.start else "Its columns are"
        if what == "caption":
            unnamed += ", or, for a set to evaluate on, --nocaptions"
        if what == "image" and any("url" in name.lower() for name in names):
            unnamed += ". URLs are not downloaded: img2dataset does that, and its tars are read"
        raise UserError(
            f"The table {table} has no {wanted}. {said}: {shown}. Give "
            f"--{what} one of them{unnamed}."
        )
    if names.count(found) > 1:
        raise UserError(
            f"The table {table} has the column {found!r} {names.count(found)} times, and which is "
            f"meant is not said. Rename the others, or give --{what} another column."
        )
    return found


def shown_delimiter(delimiter: str) -> str:
    """Returns a delimiter as people read it."""
    return NAMES.get(delimiter, repr(delimiter))
