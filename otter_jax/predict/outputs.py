"""Keeps what a stopped command has written, so that the same command goes on.

Every output says what it is of: the command, the model, the classes and so on. Text files have that
in FILE.about.json, Parquet in its metadata. Only a command that says the same goes on with a file;
for any other it is an error, and the file stays as it is. Parquet cannot grow, so its rows are
collected in parts, in the folder FILE.parts, and FILE is there when it is whole.
"""

import contextlib
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax import files
from otter_jax.errors import UserError

ABOUT = b"otter_jax"  # the key of what a Parquet file says of itself
SECONDS = 30.0  # of work in a part: what SIGKILL may cost
ROWS = 8_192  # of a row group
DIGESTS = ("classes", "texts")  # what a file says of its command by a digest alone
About = Mapping[str, Any]


def check_same(path: pathlib.Path, there: About, ours: About) -> None:
    """Raises UserError that names what differs between a file's command and this one."""
    told = [
        f"{'other' if name in there else 'no'} {name}"
        if name in DIGESTS
        else f"{name} {there.get(name, 'nothing')!r}, not {ours.get(name, 'nothing')!r}"
        for name in sorted(there.keys() | ours.keys())
        if there.get(name) != ours.get(name)
    ]
    if told:
        raise UserError(
            f"{path} is there, of another command: it has {'; '.join(told)}. Give another --out, "
            "or delete it."
        )


def locked(path: pathlib.Path, out: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock `path` of an output. Raises UserError if another process writes it."""
    return files.locked(
        path,
        lambda: (
            f"{out} is being written by another process: wait for its end, or give another --out."
        ),
    )


def check_place(out: pathlib.Path, flag: str = "--out") -> None:
    """Raises UserError for a place that cannot hold a new file, before time is spent.

    `flag` is the one that names it.
    """
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        raise UserError(f"{flag} {out} is {kind}: give the name of a file.")
    above = out.absolute().parent
    if not above.is_dir():
        raise UserError(f"{flag} {out}: there is no folder {above}. Make it: mkdir -p {above}")
    try:  # permissions alone do not tell: /proc and full disks refuse as well
        with tempfile.NamedTemporaryFile(dir=above, prefix=".otter_jax."):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {out}: no file can be made in {above} ({error.strerror})."
        ) from None


def about_of(table: pathlib.Path) -> dict[str, Any]:
    """Returns what a Parquet file says of itself; {} if it is not of this program.

    Raises UserError for what is no Parquet file.
    """
    try:
        said = (pq.read_schema(table).metadata or {}).get(ABOUT)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{table} is no whole Parquet file ({error}). Give another one, or delete it."
        ) from None
    return json.loads(said) if said else {}


def rows_of(table: pathlib.Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, ROWS at most at a time, with no more of it in memory."""
    with pq.ParquetFile(table, pre_buffer=False) as file:  # or all of it is read ahead
        yield from file.iter_batches(ROWS, columns=columns)


class Parts:
    """Collects the rows of a Parquet file in parts, which a later start finds; a context.

    Leaving the context by an exception keeps what is there.
    """

    def __init__(self, out: pathlib.Path, schema: pa.Schema, about: About):
        """`about` must be the same for a later start to go on, what `schema` says need not."""
        self.out, self.about = out, dict(about)
        said = {ABOUT: json.dumps(self.about).encode()}
        self.schema = schema.with_metadata({**(schema.metadata or {}), **said})
        self._folder = out.with_name(f"{out.name}.parts")
        self._rows: list[pa.RecordBatch] = []
        self._stack = contextlib.ExitStack()
        self._flushed = time.monotonic()

    def __enter__(self) -> "Parts":
        """Raises UserError if the file or parts are of another command, or being written."""
        if self.out.exists():
            check_same(self.out, about_of(self.out), self.about)
        for part in self._parts():
            check_same(self._folder, about_of(part), self.about)
        self._folder.mkdir(exist_ok=True)
        self._stack.enter_context(locked(self._folder / "lock", self.out))
        for scratch in self._folder.glob("*.tmp"):
            scratch.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self._folder.exists():
                self.flush()
                if not self._parts():
                    shutil.rmtree(self._folder)

    def rows(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields the rows of all parts, in their order."""
        for part in self._parts():
            yield from rows_of(part, columns)

    def add(self, rows: pa.RecordBatch) -> None:
        """Takes rows; writes a part now and then."""
        self._rows.append(rows)
        held = sum(batch.num_rows for batch in self._rows)
        if held >= ROWS or time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes a part of the rows that are held."""
        self._flushed = time.monotonic()
        if not self._rows:
            return
        numbers = [int(part.stem) for part in self._parts()]
        part = self._folder / f"{max(numbers, default=-1) + 1:06}.parquet"
        _write(part, self.schema, self._rows)
        self._rows.clear()

    def finish(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Writes the file of these rows, which is there at once when it is whole; drops the parts.

        The rows may be those of the file as it was, and of the parts, which are all written.
        """
        self.flush()
        _write(self.out, self.schema, rows)
        self.drop()

    def drop(self) -> None:
        """Removes the parts."""
        shutil.rmtree(self._folder)

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("*.parquet"))


def _write(out: pathlib.Path, schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> None:
    """Writes a Parquet file in row groups of about ROWS."""
    held: list[pa.RecordBatch] = []
    vectors = {field.name: pa.types.is_fixed_size_binary(field.type) for field in schema}
    codecs = {name: "none" if noise else "zstd" for name, noise in vectors.items()}
    settings = {"compression": codecs, "use_dictionary": False}
    with (
        files.written_whole(out) as scratch,
        pq.ParquetWriter(scratch, schema, **settings) as writer,
    ):
        for batch in rows:
            held.append(batch)
            if sum(each.num_rows for each in held) >= ROWS:
                writer.write_table(_joined(held, schema))
                held.clear()
        if held:
            writer.write_table(_joined(held, schema))


def _joined(rows: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([batch.cast(schema) for batch in rows], schema)
