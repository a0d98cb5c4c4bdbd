"""Makes the parts of a unit: Parquet files of its checked records, each of half a minute's work.

A part is renamed into place when it is complete, so a preparation that was stopped goes on after
the last one: the unit is read again from its beginning, but the records that have a part are passed
over without decoding their images. A bad record stops nothing: it is counted and named in the part,
or, if it cannot even be read, in a JSON file that is written when the unit has all parts.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import lzma
import os
import pathlib
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data import images
from otter_jax.data.build.left_out import Without
from otter_jax.data.build.plan import (
    MAX_BYTES,
    ROWS,
    WINDOW,
    Options,
    Record,
    Unit,
    fingerprint,
)
from otter_jax.data.build.report import Tally, write_json
from otter_jax.data.in_flight import in_threads
from otter_jax.files import read_bytes

SECONDS = 30.0  # of work in a part, about: what a stop may cost
HELD = 256 << 20  # bytes of pictures that are worked on at once
GROUP = 64 << 20  # bytes of pictures that are written, and read again, at once
ABOUT = "otter_jax"  # the key of what a part says about itself

# What was dropped for one of these reasons may be readable the next time.
ABSENT = ("missing file", "unreadable file", "rest of a broken file")

_PART = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),  # before resizing
        ("height", pa.int32()),
        # Of the source's image and caption; chance makes two of 15 million equal once in 10^5 sets.
        ("digest", pa.int64()),
        ("picture", pa.int64()),  # of the source's image alone
        ("fields", pa.string()),  # JSON
        # Where the record comes in the set: by the hash of `order`, at `place`; both null: by the
        # hash of `picture`.
        ("order", pa.binary()),
        ("place", pa.float64()),
    ]
)

SAID = ("caption", "label", "labels")  # fields that make two records of one image different

# Called with how much of the plan's size is done, and the number of its records, None if an earlier
# start has made them.
Done = Callable[[int, int | None], None]


def silent(size: int, records: int | None) -> None:
    """Says nothing of progress."""


def read_about(part: pathlib.Path) -> dict[str, Any]:
    """Returns what a part says about itself.

    `read` is the number of records that were read for it, `names` a digest of their names, `absent`
    has the paths of files that were not there, and `tally` what was dropped and changed.
    """
    return json.loads(pq.read_metadata(part).metadata[ABOUT.encode()])


def make_unit(
    unit: Unit,
    stem: pathlib.Path,
    *,
    options: Options,
    seconds: float = SECONDS,
    done: Done = silent,
) -> int:
    """Reads a unit, and writes the parts that are missing; returns the records of these.

    Args:
      unit: to be read.
      stem: FOLDER/NAME of its parts, FOLDER/NAME-0000.parquet and so on.
      options: for the images.
      seconds: of work in a part, about. Parts of several makers at once must hold all records.
      done: called every few records with how much of the unit's size they are, as far as it is
        known, and their number; once in all for what an earlier start has made, with None.
    """
    try:
        return _Writer(unit, stem, options, seconds, done).make()
    except _SourceChanged:
        drop_parts(stem)
        return _Writer(unit, stem, options, seconds, done).make()


class _SourceChanged(Exception):
    """Raised when a unit's records are not those that its parts were made of."""


class _Writer:
    """Writes the parts of a unit, each of some seconds of work, and goes on after those there."""

    def __init__(
        self, unit: Unit, stem: pathlib.Path, options: Options, seconds: float, done: Done
    ):
        self._unit, self._stem, self._options = unit, stem, options
        self._seconds, self._done = seconds, done
        self._number = self._written = self._at = self._told = self._size = 0
        self._rows: list[tuple] = []
        self._begin()

    def make(self) -> int:
        tally = Tally()
        records = _readable(self._unit, tally)
        for part in parts_of(self._stem):
            self._pass(records, read_about(part))
        self._tell(None)
        work = functools.partial(image_to_store, options=self._options)
        try:
            for record, stored in in_threads(
                work, records, ahead=WINDOW, size=_bytes_of, most=HELD
            ):
                self._add(record, stored)
                enough = time.monotonic() - self._began > self._seconds
                if enough or len(self._rows) == ROWS or self._size > GROUP:
                    self._flush()
                if enough:
                    self._finish()
            self._flush()
            self._finish()
        finally:
            self._discard()
        write_json(_whole(self._stem), tally.found)
        self._at = self._unit.size
        self._tell(0)
        return self._written

    def _begin(self) -> None:
        """Begins a part, whose file is made once there is something to write."""
        self._began, self._tally = time.monotonic(), Tally()
        self._read, self._names, self._absent = 0, hashlib.blake2b(digest_size=8), []
        self._file: pq.ParquetWriter | None = None

    def _count(self, record: Record) -> None:
        self._read += 1
        self._names.update(record.name.encode("utf-8", "surrogatepass") + b"\n")
        self._at = max(self._at, record.at)

    def _pass(self, records: Iterator[Record], about: Mapping[str, Any]) -> None:
        """Passes over the records of a part that is there. Raises _SourceChanged for others."""
        for record in itertools.islice(records, about["read"]):
            self._count(record)
        if self._names.hexdigest() != about["names"]:
            raise _SourceChanged
        self._number += 1
        self._begin()

    def _add(self, record: Record, stored: "StoredImage") -> None:
        self._count(record)
        if stored.why:
            self._tally.dropped(stored.why, record.name + stored.detail)
            if stored.why in ABSENT:
                self._absent.append(os.path.abspath(record.image))
            return
        for note in stored.notes:
            self._tally.changed(note, record.name)
        if stored.resized:
            self._tally.changed(f"image resized to {self._options.resize} pixels", record.name)
        fields = json.dumps(record.fields)
        placed = isinstance(record.order, float)
        order = (None, record.order) if placed else (record.order, None)
        digests = (stored.digest, stored.picture)
        self._size += len(stored.image)
        self._rows.append((record.name, stored.image, *stored.size, *digests, fields, *order))

    def _flush(self) -> None:
        """Writes the rows, to a file that takes its place when the part is finished."""
        if not self._read:
            return
        if self._file is None:  # a runner may try a unit twice at once
            self._scratch = self._stem.with_name(f"{self._stem.name}.{uuid.uuid4().hex}.tmp")
            self._file = pq.ParquetWriter(self._scratch, _PART, compression="none")
        count, self._size = write_rows(self._file, self._rows), 0
        self._written += count
        self._tell(count)

    def _finish(self) -> None:
        """Renames the part into place, with what is to be known about it."""
        if self._file is None:
            return
        about = {
            "read": self._read,
            "names": self._names.hexdigest(),
            "absent": self._absent,
            "tally": self._tally.found,
        }
        self._file.add_key_value_metadata({ABOUT: json.dumps(about)})
        self._file.close()
        self._file = None
        self._scratch.replace(_part(self._stem, self._number))
        self._number += 1
        self._begin()

    def _discard(self) -> None:
        """Removes the file of a part that is not finished."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk
                self._file.close()
            self._scratch.unlink(missing_ok=True)

    def _tell(self, count: int | None) -> None:
        """Tells how far reading has come since the last time."""
        at = min(self._at, self._unit.size)
        if count or at > self._told:
            self._done(at - self._told, count)
            self._told = at


def parts_of(stem: pathlib.Path) -> list[pathlib.Path]:
    """Returns the parts of a unit that are there, in order."""
    paths = (_part(stem, number) for number in itertools.count())
    return list(itertools.takewhile(pathlib.Path.exists, paths))


def is_made(stem: pathlib.Path) -> bool:
    """Tells whether all parts of a unit are there; removes those that should be made again.

    That are those from the first one on for which a file was missing that is there now. A unit
    that could not be read to its end is read again, from there on.
    """
    for number, part in enumerate(parts_of(stem)):
        if any(map(is_there, read_about(part)["absent"])):
            drop_parts(stem, number)
            break
    if not _whole(stem).exists():
        return False
    return json.loads(_whole(stem).read_text("utf-8"))["dropped"].keys().isdisjoint(ABSENT)


def drop_parts(stem: pathlib.Path, first: int = 0) -> None:
    """Removes the parts of a unit from number `first` on."""
    _whole(stem).unlink(missing_ok=True)
    for part in reversed(parts_of(stem)[first:]):  # so that those left always follow each other
        part.unlink()


def tallies(stem: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields what was counted when a unit was read, and when its records were checked."""
    yield json.loads(_whole(stem).read_text("utf-8"))
    for part in parts_of(stem):
        yield read_about(part)["tally"]


def _part(stem: pathlib.Path, number: int) -> pathlib.Path:
    return stem.with_name(f"{stem.name}-{number:04}.parquet")


def _whole(stem: pathlib.Path) -> pathlib.Path:
    """Returns the file that is there when a unit has all parts: what was counted when reading."""
    return stem.with_name(f"{stem.name}.json")


def is_there(path: str) -> bool:
    """Tells whether a file can be read."""
    try:
        return os.path.isfile(path) and os.access(path, os.R_OK)
    except ValueError:  # a NUL in the name
        return False


def _readable(unit: Unit, tally: Tally) -> Iterator[Record]:
    """Yields the records of a unit, up to where it cannot be read."""
    try:
        yield from unit.read(tally)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        tally.dropped("rest of a broken file", f"{_first_path(unit)}: {error}")


def _first_path(unit: Unit) -> str:
    """Returns the name of the first file that a unit reads, for people."""
    unit = unit.unit if isinstance(unit, Without) else unit
    paths = (v for v in dataclasses.asdict(unit).values() if isinstance(v, pathlib.Path))
    return next((path.name for path in paths), repr(unit))


def _bytes_of(record: Record) -> int:
    """Returns how many bytes a record's image has, as far as that is known."""
    if isinstance(record.image, bytes):
        return len(record.image)
    try:
        return record.image.stat().st_size
    except (OSError, ValueError):
        return 0


class StoredImage(NamedTuple):
    """Holds a record's image as stored, or the reason `why` it was dropped, with its `detail`."""

    why: str = ""
    detail: str = ""
    image: bytes = b""
    size: tuple[int, int] = (0, 0)  # width and height before resizing
    resized: bool = False
    notes: tuple[str, ...] = ()  # what else was changed
    digest: int = 0  # of the source's bytes, and the caption, label or labels
    picture: int = 0  # of the source's bytes alone


def image_to_store(record: Record, options: Options) -> StoredImage:
    """Reads a record's image, checks that it can be decoded, and resizes it if it is large."""
    try:
        content = record.image
        if isinstance(content, pathlib.Path):
            content = read_bytes(content, MAX_BYTES)
    except FileNotFoundError:
        return StoredImage("missing file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        large = isinstance(error, OSError) and error.errno == errno.EFBIG
        why = "file over 64 MiB" if large else "unreadable file"
        return StoredImage(why, "" if large else f" ({error})")
    if not content:
        return StoredImage("empty file")
    if len(content) > MAX_BYTES:
        return StoredImage("file over 64 MiB")
    # Duplicates have the same image and these fields; key and JSON may differ.
    said = [record.fields.get(name) for name in SAID]
    try:
        size, stored, resized, notes = images.shrink(
            content,
            options.resize,
            format=options.format,
            quality=options.quality,
            exif=options.exif,
        )
    except images.UnreadableImage as error:
        return StoredImage(error.kind, f" ({error})" if str(error) != error.kind else "")
    if min(size) < options.min_size:
        return StoredImage("image too small", f" ({size[0]} x {size[1]})")
    digest = fingerprint(content, repr(said).encode("utf-8", "surrogatepass"))
    return StoredImage(
        image=stored,
        size=size,
        resized=resized,
        notes=notes,
        digest=digest,
        picture=fingerprint(content),
    )


def write_rows(writer: pq.ParquetWriter, rows: list[tuple]) -> int:
    """Writes rows into a part, and removes them from the list; returns their number."""
    columns = zip(*rows, strict=True) if rows else [[]] * len(_PART)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _PART, strict=True)]
    writer.write_batch(pa.record_batch(arrays, _PART))
    written = len(rows)
    rows.clear()
    return written
