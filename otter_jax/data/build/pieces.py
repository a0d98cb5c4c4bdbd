"""Reads the parts of a set: which records are left out, and where each one comes in the set.

The order of a set is that of its records' keys, numbers of 128 bits: the leading 88 are the MD5 of
the split's name and the record's `order`, or else its image's digest, as TFDS hashes keys; or they
are the record's place. The last 40 are its number in the source. So all records of an image
follow each other, and a set does not depend on who made its parts, or when.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Int64

from otter_jax.data.build.plan import ROWS
from otter_jax.data.build.report import NAMED

KEY, NUMBER = 128, 40  # bits of a key, and those of them that are the record's number

Example = tuple[int, dict[str, Any]]  # the key that the set is ordered by, and the features


class Piece(NamedTuple):
    """A part on its way into the set: its first record's number, and the records to leave out."""

    path: pathlib.Path
    split: str
    first: int
    left_out: Bool[np.ndarray, "_"]

    def examples(self) -> Iterator[Example]:
        """Yields key and features of each record that is not left out."""
        for number, row in self._rows(["image", "fields", "order", "place", "picture"]):
            features = {"image": row["image"], **json.loads(row["fields"])}
            yield key_of(self.split, row, self.first + number), features

    def keys(self) -> Iterator[tuple[int, int]]:
        """Yields the key, and the digest of the picture, of each record that is not left out."""
        for number, row in self._rows(["order", "place", "picture"]):
            yield key_of(self.split, row, self.first + number), row["picture"]

    def labels(self) -> Iterator[str]:
        """Yields the label of each record that is not left out."""
        for _, row in self._rows(["fields"]):
            yield json.loads(row["fields"])["label"]

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        with pq.ParquetFile(self.path) as part:
            batches = itertools.chain.from_iterable(  # none of more than a group
                part.iter_batches(ROWS, row_groups=[group], columns=list(columns))
                for group in range(part.num_row_groups)
            )
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((n, row) for n, row in enumerate(rows) if not self.left_out[n])


def key_of(split: str, row: Mapping[str, Any], number: int) -> int:
    """Returns the key of a record: its `row` of a part has order, place and picture."""
    if row["place"] is None:
        order = row["order"]
        if order is None:
            order = row["picture"].to_bytes(8, "little", signed=True)
        whole = int.from_bytes(hashlib.md5(split.encode() + order).digest(), "big")
    else:
        whole = min(int(row["place"] * 2**KEY), 2**KEY - 1)
    return (whole >> NUMBER << NUMBER) | number


def pictures_in_order(pieces: Sequence[Piece]) -> Int64[np.ndarray, "_"]:
    """Returns the digest of the picture of each record of a split, in the order of the set."""
    keys, pictures = [np.zeros(0, "S16")], [np.zeros(0, np.int64)]
    for piece in pieces:
        found = list(piece.keys())
        packed = b"".join(key.to_bytes(KEY // 8, "big") for key, _ in found)
        keys.append(np.frombuffer(packed, "S16"))
        pictures.append(np.array([picture for _, picture in found], np.int64))
    return np.concatenate(pictures)[np.argsort(np.concatenate(keys))]


def count_records(part: pathlib.Path) -> int:
    """Returns the number of records in a part."""
    return pq.read_metadata(part).num_rows


def first_names(parts: Sequence[pathlib.Path], marked: Bool[np.ndarray, "_"]) -> list[str]:
    """Returns the names of the first NAMED marked records, counted over all parts."""
    wanted = np.flatnonzero(marked)[:NAMED]
    names, first = [], 0
    for part in parts:
        last = first + count_records(part)
        here = [int(n) - first for n in wanted if first <= n < last]
        if here:
            found = pq.read_table(part, columns=["name"])["name"]
            names += [found[n].as_py() for n in here]
        first = last
    return names


def column(parts: Sequence[pathlib.Path], name: str) -> Int[np.ndarray, "_"]:
    """Returns a column of numbers, of all parts joined."""
    found = [pq.read_table(part, columns=[name])[name].to_numpy() for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *found])


def repeated_in(parts: Sequence[pathlib.Path]) -> Bool[np.ndarray, "_"]:
    """Marks the records that repeat an earlier one, in all parts together."""
    digests = column(parts, "digest")
    repeated = np.ones(len(digests), bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated
