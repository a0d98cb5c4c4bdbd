"""Writes rows about pictures: on a terminal, as CSV, as lines of JSON, or as Parquet.

All formats have the same columns, and a row each for a picture and a rank. The column `path` is
written by `paths.written`, so that no path breaks a table. Rows that go to a file are kept when the
command is stopped: the same command goes on after the last picture that has all its rows.
"""

import abc
import contextlib
import csv
import io
import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import rich.box
import rich.console
import rich.table

from otter_jax import files
from otter_jax.data.captions import clean
from otter_jax.errors import UserError
from otter_jax.predict.outputs import (
    About,
    Parts,
    check_place,
    check_same,
    locked,
    rows_of,
)
from otter_jax.predict.paths import restored, written

FORMATS = ("table", "csv", "jsonl", "parquet")
PATH = "path"  # the column by which the rows of a picture are known
Columns = Mapping[str, type]  # str, int or float by name, "path" among them
Row = Sequence[str | int | float | None]
_ARROW = {str: pa.string(), int: pa.int32(), float: pa.float32()}


class Table(abc.ABC):
    """Takes rows, in a context; leaving it by an exception keeps them for the same command.

    Attributes:
      done: paths of the pictures that have their rows already.
    """

    done: frozenset[str] = frozenset()

    @abc.abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Writes all rows of some pictures."""

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:  # noqa: B027
        """Ends the table; `kind` is None if all rows came."""


def format_of(chosen: str | None, out: pathlib.Path | None, terminal: bool) -> str:
    """Returns the format: the one chosen, else by the file's name, else by where stdout goes.

    Raises UserError if the two contradict each other, or one of them says nothing.
    """
    if out is None:
        if chosen == "parquet":
            raise UserError("--format parquet is for a file: give --out FILE.parquet.")
        return chosen or ("table" if terminal else "csv")
    ending = out.suffix.lower().removeprefix(".")
    if chosen == "table":
        raise UserError("--format table is for a terminal, and no other command reads it: "
                        "leave out --out, or give --format csv.")  # fmt: skip
    if chosen is None and ending not in FORMATS[1:]:
        raise UserError(f"--out {out}: give it the ending .csv, .jsonl or .parquet, or --format.")
    if chosen and ending in FORMATS[1:] and ending != chosen:
        raise UserError(f"--out {out} is to be {ending} by its name, and {chosen} by --format.")
    return chosen or ending


def table(
    format: str,
    columns: Columns,
    about: About,
    out: pathlib.Path | None = None,
    stdout: io.IOBase | None = None,
) -> Table:
    """Returns a table that writes to a file, or to stdout.

    Args:
      format: of FORMATS.
      columns: names and types, in the order of the rows' values.
      about: what the rows depend on, of JSON's types; a file that says otherwise is refused.
      out: file; None is stdout.
      stdout: for tests.

    Raises UserError for a file that is of another command, or that another process writes.
    """
    if format == "table":
        return _Terminal(columns)
    about = {**about, "columns": list(columns)}
    if out is None:
        return _Stream(columns, _LINES[format], stdout or sys.stdout.buffer)
    check_place(out)
    if format == "parquet":
        return _Parquet(out, columns, about)
    return _File(out, columns, _LINES[format], about)


class _Csv:
    """Writes and reads lines of CSV; no value has a line break."""

    @staticmethod
    def head(columns: Columns) -> str:
        return _Csv.line(columns, list(columns))

    @staticmethod
    def line(columns: Columns, values: Iterable[Any]) -> str:
        text = io.StringIO()
        shown = [f"{v:.6g}" if isinstance(v, float) else v for v in values]
        csv.writer(text, lineterminator="\n").writerow(shown)
        return text.getvalue()

    @staticmethod
    def path(columns: Columns, line: str) -> str:
        values = next(csv.reader([line], strict=True))
        return dict(zip(columns, values, strict=True))[PATH]


class _Jsonl:
    """Writes and reads lines of JSON, one object each."""

    @staticmethod
    def head(columns: Columns) -> str:
        return ""

    @staticmethod
    def line(columns: Columns, values: Iterable[Any]) -> str:
        shown = [float(f"{v:.6g}") if isinstance(v, float) else v for v in values]
        return json.dumps(dict(zip(columns, shown, strict=True)), ensure_ascii=False) + "\n"

    @staticmethod
    def path(columns: Columns, line: str) -> str:
        found = json.loads(line)
        if not isinstance(found, dict) or list(found) != list(columns):
            raise ValueError("other columns")
        return found[PATH]


_LINES = {"csv": _Csv, "jsonl": _Jsonl}


def _cells(columns: Columns, row: Row) -> list[Any]:
    """Returns a row's values as a file has them: paths escaped, texts on one line."""
    cells = []
    for (name, kind), value in zip(columns.items(), row, strict=True):
        if value is not None:
            value = kind(value)
        if kind is str and value is not None:
            value = written(value) if name == PATH else clean(value)
        cells.append(value)
    return cells


class _Stream(Table):
    """Writes lines to a stream as they come."""

    def __init__(self, columns: Columns, lines: type[_Csv] | type[_Jsonl], stream: io.IOBase):
        self._columns, self._lines, self._stream = columns, lines, stream

    def __enter__(self) -> "_Stream":
        self._write(self._lines.head(self._columns))
        return self

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows, and lets them go to whoever reads."""
        lines = (self._lines.line(self._columns, _cells(self._columns, row)) for row in rows)
        self._write("".join(lines))

    def _write(self, text: str) -> None:
        write_to(self._stream, text.encode())


def write_to(stream: io.IOBase, content: bytes) -> None:
    """Writes to a pipe or a file at once; ends the program if nobody reads the pipe any more."""
    try:
        rest = memoryview(content)
        while rest:  # with python -u a part may be written
            rest = rest[stream.write(rest) :]
        stream.flush()
    except BrokenPipeError:  # whoever reads, such as head, has enough: end as other programs do
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout again at its end
        raise SystemExit(128 + signal.SIGPIPE) from None


class _File(_Stream):
    """Writes lines to a file, after the whole pictures that are there."""

    def __init__(
        self,
        out: pathlib.Path,
        columns: Columns,
        lines: type[_Csv] | type[_Jsonl],
        about: About,
    ):
        self._columns, self._lines, self._out, self._about = columns, lines, out, about
        self._beside = out.with_name(f"{out.name}.about.json")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_File":
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._out, self._out))
            said = self._said()
            self.done, size = self._whole(said["finished"]) if said else (frozenset(), 0)
            self._say(finished=False)
            self._stream = stack.enter_context(self._out.open("r+b"))
            self._stream.truncate(size)
            self._stream.seek(size)
            if not size:
                self._write(self._lines.head(self._columns))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._say(finished=True)

    def _said(self) -> dict[str, Any]:
        """Returns what is said of the file; {} of a new one. Raises UserError for another's."""
        if not self._out.stat().st_size:  # the lock has made it
            return {}
        try:
            said = json.loads(self._beside.read_text("utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{self._out} is there already, and no {self._beside.name} beside it says that it "
                "is of this command. Give another --out, or delete it."
            ) from None
        check_same(self._out, {k: v for k, v in said.items() if k != "finished"}, self._about)
        return said

    def _say(self, *, finished: bool) -> None:
        said = json.dumps({**self._about, "finished": finished}, indent=1, ensure_ascii=False)
        files.write_text(self._beside, said + "\n")

    def _whole(self, finished: bool) -> tuple[frozenset[str], int]:
        """Returns the pictures whose rows are all there, and where in the file the last ends.

        Of a file that is not finished the last picture may lack rows, and counts as missing.
        """
        head = self._lines.head(self._columns).encode()
        done: set[str] = set()
        last, begin, end = "", len(head), len(head)  # of the last picture's rows
        with self._out.open("rb") as file:
            first = file.read(len(head))
            if first != head:
                if head.startswith(first):  # it was cut there
                    return frozenset(), 0
                raise UserError(f"{self._out} is not as this command writes it: delete it.")
            for number, line in enumerate(file, start=1 + bool(head)):
                if not line.endswith(b"\n"):
                    break
                try:
                    path = self._lines.path(self._columns, line.decode())
                except (ValueError, csv.Error, KeyError) as error:
                    raise UserError(
                        f"{self._out}: line {number:,} is not as this command writes it ({error}). "
                        "Delete the file, or give another --out."
                    ) from None
                if path != last:
                    done.add(last)
                    last, begin = path, end
                end += len(line)
        if finished:
            return frozenset(map(restored, {*done, last} - {""})), end
        return frozenset(map(restored, done - {""})), begin


class _Parquet(Table):
    """Writes Parquet by parts."""

    def __init__(self, out: pathlib.Path, columns: Columns, about: About):
        self._columns, self._out = columns, out
        schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
        self._parts = Parts(out, schema, about)

    def __enter__(self) -> "_Parquet":
        self._parts.__enter__()
        there = [*self._before([PATH]), *self._parts.rows([PATH])]
        self.done = frozenset(restored(path) for batch in there for path in batch[0].to_pylist())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._parts.flush()
                self._parts.finish(itertools.chain(self._before(), self._parts.rows()))
        finally:
            self._parts.__exit__(kind, *error)

    def add(self, rows: Sequence[Row]) -> None:
        """Takes the rows for the next part."""
        if rows:
            cells = zip(*(_cells(self._columns, row) for row in rows), strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(cells, self._parts.schema, strict=True)]
            self._parts.add(pa.record_batch(arrays, self._parts.schema))

    def _before(self, columns: list[str] | None = None) -> Iterable[pa.RecordBatch]:
        return rows_of(self._out, columns) if self._out.exists() else ()


class _Terminal(Table):
    """Draws a table; what stands in the first column several times in turn is written once."""

    def __init__(self, columns: Columns):
        self._columns, self._headed = columns, False
        self._console = rich.console.Console(markup=False, emoji=False, highlight=False)

    def add(self, rows: Sequence[Row]) -> None:
        """Draws the rows; the names of the columns stand above the first."""
        drawn = rich.table.Table(
            box=rich.box.SIMPLE_HEAD, show_header=not self._headed, pad_edge=False, expand=True
        )
        self._headed = True
        for name, kind in self._columns.items():
            if kind is str:
                drawn.add_column(name, ratio=2 if name == PATH else 1, overflow="fold")
            else:
                drawn.add_column(name, justify="right", width=max(len(name), 7))
        last = None
        for row in rows:
            cells = _cells(self._columns, row)
            if last not in (None, cells[0]):
                drawn.add_section()
            last, cells[0] = cells[0], "" if cells[0] == last else cells[0]
            drawn.add_row(*map(_shown, cells))
        self._console.print(drawn)


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
