"""Leaves pairs out of a set that a table names, such as the noisiest by `otter-jax noise`."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from otter_jax.data.build.plan import Plan, Record, Unit, fingerprint
from otter_jax.data.build.report import Tally
from otter_jax.errors import UserError
from otter_jax.files import open_regular

WHY = "left out by --drop"


@dataclasses.dataclass(frozen=True)
class Drop:
    """Names pairs that are left out of a set.

    Attributes:
      table: a Parquet with a column `key`, and `caption` where a key has several. It may have a
        column `score`, the larger the worse.
      share: of the rows with the largest scores that are left out, above 0 and below 1; None takes
        all rows of a table without scores.
      digest: of the file.
    """

    table: str
    share: float | None
    digest: str

    @classmethod
    def of(cls, table: pathlib.Path, share: float | None) -> "Drop":
        """Checks a table. Raises UserError if it cannot be read, or does not go with `share`."""
        try:
            with open_regular(table) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            names = pq.read_schema(table).names
        except (OSError, pa.ArrowException) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(
                f"--drop {table}: it cannot be read as Parquet ({why}). `otter-jax noise` writes "
                "such a table; one of your own needs a column `key`."
            ) from None
        if "key" not in names:
            raise UserError(
                f"--drop {table} has no column `key`, only {', '.join(names)}: it cannot be told "
                "which pairs are meant."
            )
        if share is not None and not 0 < share < 1:
            raise UserError(f"--share {share:g}: a share of the pairs, above 0 and below 1.")
        if ("score" in names) != (share is not None):
            raise UserError(
                f"--drop {table} has scores of all pairs: say which share of them to leave out, "
                "the worst first, as --share 0.1."
                if share is None
                else f"--share is for a table with a column `score`, and {table} has none: "
                "all of its pairs are left out."
            )
        return cls(str(table.absolute()), share, digest)

    def __contains__(self, fields: dict[str, Any]) -> bool:
        """Tells whether the record of these fields is left out."""
        found, by_caption = _fingerprints(self)
        return _fingerprint(fields["key"], fields.get("caption", "") if by_caption else "") in found


@dataclasses.dataclass(frozen=True)
class Without:
    """Reads a unit without the pairs that are left out."""

    unit: Unit
    drop: Drop

    @property
    def size(self) -> int:
        """That of the unit."""
        return self.unit.size

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the records that are left; the others are counted."""
        for record in self.unit.read(tally):
            if record.fields in self.drop:
                tally.dropped(WHY, record.name)
            else:
                yield record


def leave_out(plan: Plan, drop: Drop | None) -> Plan:
    """Returns the plan of the set without these pairs; None leaves out none.

    Raises UserError if the records of the set have no keys.
    """
    said = "" if drop is None else f"{drop.digest}, share {drop.share}"
    details = {**plan.details, "table of pairs left out": said}
    if drop is None:
        return dataclasses.replace(plan, details=details)
    if "key" not in plan.features:
        raise UserError(f"--drop: the records of {plan.name} have no keys, which the table names.")
    units = {split: [Without(unit, drop) for unit in own] for split, own in plan.units.items()}
    return dataclasses.replace(plan, details=details, units=units)


@functools.lru_cache(1)
def _fingerprints(drop: Drop) -> tuple[frozenset[int], bool]:
    """Reads the pairs to leave out, once a process; tells whether captions count, too."""
    names = pq.read_schema(drop.table).names
    by_caption = "caption" in names
    columns = ["key", *(["caption"] if by_caption else [])]
    table = pq.read_table(drop.table, columns=[*columns, *(["score"] if drop.share else [])])
    if drop.share:
        scores = table["score"].to_numpy()
        worst = np.argsort(-scores, kind="stable")[: round(drop.share * len(scores))]
        table = table.take(pa.array(np.sort(worst)))
    keys = table["key"].to_pylist()
    captions = table["caption"].to_pylist() if by_caption else [""] * len(keys)
    return frozenset(map(_fingerprint, keys, captions)), by_caption


def _fingerprint(key: str, caption: str) -> int:
    return fingerprint(
        str(key).encode("utf-8", "replace"), b"\0", caption.encode("utf-8", "replace")
    )
