"""Keeps the vectors of many pictures in a Parquet file, and brings it up to date.

An index has a row for each picture: its absolute path (as `paths.written` has it), the size and the
time of change of its file, and its vector in float16. Only pictures that are new or whose file has
changed are embedded again. The file is replaced at once when all is done; what a stopped command
has embedded stays in parts beside it, and the same command goes on.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32

from otter_jax.errors import UserError
from otter_jax.predict import pictures as reading
from otter_jax.predict import vectors
from otter_jax.predict.outputs import Parts, about_of, rows_of
from otter_jax.predict.paths import restored, written
from otter_jax.predict.pictures import Pictures, absolute
from otter_jax.predict.progress import Progress
from otter_jax.predict.tables import PATH
from otter_jax.predict.vectors import EMBEDDING, LOAD, Embeds

SIZE, CHANGED = "size", "changed"  # bytes, and nanoseconds since 1970
FILE = [PATH, SIZE, CHANGED]
COLUMNS = [(PATH, pa.string()), (SIZE, pa.int64()), (CHANGED, pa.int64())]
Stamp = tuple[int, int]  # a file's size and time of change


@dataclasses.dataclass
class Update:
    """Counts what was done with an index.

    Attributes:
      new, changed, kept: pictures that are in it.
      vanished: paths of those that were in it, and are no longer there.
      elsewhere: how many of `kept` are not of the sources that were given.
      unreadable: (path, why) of those that could not be embedded.
    """

    new: int = 0
    changed: int = 0
    kept: int = 0
    vanished: list[str] = dataclasses.field(default_factory=list)
    elsewhere: int = 0
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def update(
    model: Embeds,
    pictures: Pictures,
    out: pathlib.Path,
    *,
    load: Any,
    progress: Callable[[int, int], Progress],
    check_stop: Callable[[], None],
    threads: int = 0,
) -> Update:
    """Makes an index of pictures, or brings the one that is there up to date.

    Pictures of other sources that are in it stay, unless they have vanished: their file is gone,
    and its folder is still there, or is below a folder that is among the sources. So a disk that is
    not mounted empties no index.

    Args:
      model: that embeds.
      pictures: that it is to hold.
      out: .parquet, or .npz, which must not be there.
      load: how the model is loaded again, of JSON's types.
      progress: called with how many pictures there are, and how many of them need nothing.
      check_stop: called once a batch; raises Stopped to end, which keeps what is embedded.
      threads: that decode; 0 is one a core.

    Raises UserError if `out` is of another model, or being written.
    """
    columns = vectors.schema(COLUMNS, out, model, load)
    with Parts(out, columns, vectors.about(model)) as parts:
        plan = _plan(pictures, _stamps(out, parts))
        done = Update(kept=len(plan.kept), vanished=plan.vanished, elsewhere=plan.elsewhere)
        with progress(len(pictures.paths), len(pictures.paths) - len(plan.missing)) as shown:
            batches = reading.read(
                model.read, plan.missing, batch=model.batch_size, threads=threads
            )
            for batch in shown.waiting(batches):
                check_stop()
                done.unreadable += batch.unreadable
                if batch.paths:
                    parts.add(
                        _rows(batch.paths, plan.now, model.embed_pixels(batch.pixels), columns)
                    )
                shown.advance(len(batch))
        bad = {path for path, _ in done.unreadable}
        done.changed = len(plan.changed - bad)
        done.new = len(plan.missing) - len(bad) - done.changed

        def rows() -> Iterator[pa.RecordBatch]:
            there = rows_of(out) if out.exists() else ()
            return _valid(itertools.chain(there, parts.rows()), plan)

        # A picture that stays unreadable is no reason to write the file anew.
        differs = done.new or plan.changed or plan.vanished or any(parts.rows(FILE))
        if differs or not out.exists():
            vectors.finish(parts, rows, PATH)
    return done


class _Plan(NamedTuple):
    """Says what is to be done with an index.

    Attributes:
      now: what the files of the sources are now, by absolute path.
      kept: pictures that stay as they are in the index.
      missing: pictures to embed, in the order of the sources,
      changed: and those of them that are in the index, of another file.
      vanished: to be dropped.
      elsewhere: how many of `kept` are not of the sources.
    """

    now: dict[str, Stamp]
    kept: set[str]
    missing: list[str]
    changed: set[str]
    vanished: list[str]
    elsewhere: int


def _plan(pictures: Pictures, stamps: dict[str, Stamp]) -> _Plan:
    """Compares the files of all pictures with what is known of them."""
    now: dict[str, Stamp] = {}
    missing, changed = [], set()
    for path in map(absolute, pictures.paths):
        now[path] = _stamp(path)
        if stamps.get(path) != now[path]:
            missing.append(path)
            if path in stamps:
                changed.add(path)
    others = stamps.keys() - now.keys()
    vanished = sorted(path for path in others if _has_vanished(path, pictures.folders))
    elsewhere = len(others) - len(vanished)
    kept = stamps.keys() - changed - set(vanished)
    return _Plan(now, kept, missing, changed, vanished, elsewhere)


def _stamp(path: str) -> Stamp:
    """Returns size and time of change of a file; (-1, 0) if it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _has_vanished(path: str, folders: Sequence[str]) -> bool:
    if os.path.lexists(path):
        return False
    above = os.path.dirname(path)
    return os.path.isdir(above) or any(path.startswith(f"{folder}/") for folder in folders)


def _stamps(out: pathlib.Path, parts: Parts) -> dict[str, Stamp]:
    """Returns what the index and its parts know of each picture's file; the last word counts."""
    found: dict[str, Stamp] = {}
    there = rows_of(out, FILE) if out.exists() else ()
    for batch in itertools.chain(there, parts.rows(FILE)):
        for path, *stamp in zip(*(batch[name].to_pylist() for name in FILE), strict=True):
            found[restored(path)] = tuple(stamp)
    return found


def _rows(
    paths: Sequence[str],
    stamps: dict[str, Stamp],
    embeddings: Float32[np.ndarray, "N D"],
    columns: pa.Schema,
) -> pa.RecordBatch:
    sizes, times = zip(*(stamps[path] for path in paths), strict=True)
    values = (list(map(written, paths)), sizes, times)
    arrays = [pa.array(v, kind) for v, (_, kind) in zip(values, COLUMNS, strict=True)]
    kind = columns.field(EMBEDDING).type
    return pa.record_batch([*arrays, vectors.packed(embeddings, kind)], columns)


def _valid(rows: Iterable[pa.RecordBatch], plan: _Plan) -> Iterator[pa.RecordBatch]:
    """Yields the rows of pictures that are as the rows say, or of other sources, each once."""
    passed = set(plan.vanished)
    for batch in rows:
        known = zip(*(batch[name].to_pylist() for name in FILE), strict=True)
        valid = []
        for text, *stamp in known:
            path = restored(text)
            now = plan.now.get(path, tuple(stamp)) == tuple(stamp)
            valid.append(now and path not in passed)
            if now:
                passed.add(path)
        yield batch.filter(pa.array(valid, pa.bool_()))


class Index:
    """Reads an index: its vectors block by block, and the paths of a few rows.

    Attributes:
      file: the Parquet file.
      count: how many pictures it has.
      model: the identity of the model that embedded them.
      dim: D.
      load: how the model is loaded again, and its name.
    """

    def __init__(self, file: pathlib.Path):
        """Raises UserError if `file` is no index."""
        self.file = file
        make = f"Make one: embed MODEL photos --out {file.with_suffix('.parquet')}"
        if not file.is_file():
            raise UserError(f"There is no index {file}. {make}")
        about = about_of(file)
        schema = pq.read_schema(file)
        if about.get("command") != "embed" or schema.names[:3] != FILE:
            raise UserError(f"{file} is no index of pictures: its columns are "
                            f"{', '.join(schema.names[:9])}. {make}")  # fmt: skip
        self.model, self.dim = about["model"], about["dim"]
        self.load: dict[str, Any] = json.loads(schema.metadata[LOAD])
        with pq.ParquetFile(file) as table:
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        self._starts = np.cumsum([0, *groups])
        self.count = int(self._starts[-1])

    def blocks(self) -> Iterator[Float32[np.ndarray, "_ D"]]:
        """Yields all vectors in their order, a few thousand at a time."""
        return vectors.blocks(rows_of(self.file, [EMBEDDING]), self.dim)

    def paths(self, rows: Iterable[int]) -> dict[int, str]:
        """Returns the paths of rows, which are read with those of their row groups."""
        by_group: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            group = int(np.searchsorted(self._starts, row, "right")) - 1
            by_group.setdefault(group, []).append(row)
        found = {}
        with pq.ParquetFile(self.file) as table:
            for group, numbers in by_group.items():
                column = table.read_row_group(group, [PATH])[PATH]
                taken = pc.take(column, [n - int(self._starts[group]) for n in numbers])
                found.update(zip(numbers, map(restored, taken.to_pylist()), strict=True))
        return found
