"""Makes the parts of a set: one Parquet file per unit, with the unit's checked records.

A part is renamed into place when it is complete, so a preparation that was stopped goes on with the
units that have no part yet. A bad record stops nothing: it is counted and named in a JSON file
beside the part.
"""

import collections
import concurrent.futures.process
import dataclasses
import functools
import json
import lzma
import multiprocessing
import os
import pathlib
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data import images, worker
from otter_jax.data.build.pieces import count_records
from otter_jax.data.build.plan import (
    MAX_BYTES,
    ROWS,
    WINDOW,
    Options,
    Plan,
    Record,
    Unit,
    fingerprint,
)
from otter_jax.data.build.report import Tally
from otter_jax.errors import UserError

THREADS = 16  # per process, at most

# A record that was dropped for one of these reasons may be readable the next time.
ABSENT = ("missing file", "unreadable file", "image not downloaded", "rest of a broken file")

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

Item, Result = TypeVar("Item"), TypeVar("Result")


def part_names(plan: Plan) -> dict[str, list[str]]:
    """Returns the file names of the parts of each split."""
    return {
        split: [f"{split}-{number:06}.parquet" for number in range(len(units))]
        for split, units in plan.units.items()
    }


def make_parts(
    plan: Plan,
    folder: pathlib.Path,
    workers: int,
    beam_options: Any,
    done: Callable[[int, int], None],
) -> int:
    """Makes the parts that are missing, and returns how many records these have.

    Args:
      plan: of the set.
      folder: of its parts.
      workers: processes that read units; 1 is this one.
      beam_options: PipelineOptions of Apache Beam, which then reads them; None for no Beam.
      done: called for every part with its unit's size and its number of records, 0 for a part that
        was there.

    Raises UserError if a worker dies.
    """
    missing, made = [], 0
    for split, names in part_names(plan).items():
        for unit, name in zip(plan.units[split], names, strict=True):
            if (folder / name).exists() and not _worth_again(folder / name):
                done(unit.size, 0)
            else:
                missing.append((unit, folder / name))
    make = functools.partial(make_part, options=plan.options)
    if beam_options is not None:
        import apache_beam

        with apache_beam.Pipeline(options=beam_options) as pipeline:
            units = pipeline | apache_beam.Create(missing, reshuffle=True)
            _ = units | apache_beam.MapTuple(make)
        return sum(count_records(path) for _, path in missing)
    try:
        for unit, records in _run(make, missing, workers):
            made += records
            done(unit.size, records)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"A process that prepared {plan.name} was killed, perhaps for want of memory. What is "
            "done is kept; the same command goes on from there, in less memory with fewer workers."
        ) from error
    return made


def _run(
    make: Callable[[Unit, pathlib.Path], int],
    missing: Sequence[tuple[Unit, pathlib.Path]],
    workers: int,
) -> Iterator[tuple[Unit, int]]:
    """Yields each unit when its part is made, with the part's number of records."""
    if min(workers, len(missing)) <= 1:
        for unit, path in missing:
            yield unit, make(unit, path)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=worker.begin,
    ) as pool:
        units = {pool.submit(make, unit, path): unit for unit, path in missing}
        try:
            for future in concurrent.futures.as_completed(units):
                yield units[future], future.result()
        except BaseException:  # end at once, without waiting for the units being read
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise


def make_part(unit: Unit, path: pathlib.Path, *, options: Options) -> int:
    """Writes the part of a unit, and its tally beside it; returns the number of records."""
    tally, rows, written = Tally(), [], 0
    scratch = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # a runner may try a unit twice at once
    with pq.ParquetWriter(scratch, _PART, compression="none") as writer:
        work = functools.partial(image_to_store, options=options)
        for record, stored in in_threads(work, _readable(unit, tally)):
            if stored.why:
                tally.dropped(stored.why, record.name + stored.detail)
                continue
            for note in stored.notes:
                tally.changed(note, record.name)
            if stored.resized:
                tally.changed(f"image resized to {options.resize} pixels", record.name)
            fields = json.dumps(record.fields)
            placed = isinstance(record.order, float)
            order = (None, record.order) if placed else (record.order, None)
            digests = (stored.digest, stored.picture)
            rows.append((record.name, stored.image, *stored.size, *digests, fields, *order))
            if len(rows) == ROWS:
                written += _write(writer, rows)
        written += _write(writer, rows)
    path.with_suffix(".json").write_text(json.dumps(tally.found), encoding="utf-8")
    scratch.replace(path)
    return written


def _readable(unit: Unit, tally: Tally) -> Iterator[Record]:
    """Yields the records of a unit, up to where it cannot be read."""
    try:
        yield from unit.read(tally)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        tally.dropped("rest of a broken file", f"{_first_path(unit)}: {error}")


def _first_path(unit: Unit) -> str:
    """Returns the name of the first file that a unit reads, for people."""
    paths = (v for v in dataclasses.asdict(unit).values() if isinstance(v, pathlib.Path))
    return next((path.name for path in paths), repr(unit))


def _worth_again(part: pathlib.Path) -> bool:
    """Tells whether a part should be made again, because files were missing when it was made."""
    dropped = json.loads(part.with_suffix(".json").read_text("utf-8"))["dropped"]
    return not dropped.keys().isdisjoint(ABSENT)


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
            if content.stat().st_size > MAX_BYTES:
                return StoredImage("file over 64 MiB")
            content = content.read_bytes()
    except FileNotFoundError:
        return StoredImage("missing file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return StoredImage("unreadable file", f" ({error})")
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


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, work(item)) in the order of the items, at most WINDOW of them ahead."""
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        ahead: collections.deque = collections.deque()
        for item in items:
            ahead.append((item, pool.submit(work, item)))
            if len(ahead) > WINDOW:
                item, result = ahead.popleft()
                yield item, result.result()
        while ahead:
            item, result = ahead.popleft()
            yield item, result.result()


def _write(writer: pq.ParquetWriter, rows: list[tuple]) -> int:
    columns = zip(*rows, strict=True) if rows else [[]] * len(_PART)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _PART, strict=True)]
    writer.write_batch(pa.record_batch(arrays, _PART))
    written = len(rows)
    rows.clear()
    return written
