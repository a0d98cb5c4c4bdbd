"""Describes a set that is to be made: its records, the units they are read in, the options.

A unit is what is read in one go: a tar, a megabyte of a table, a folder. `parts` reads each unit
into a part, a file of checked records, and `builder` makes the set of all parts. Every format of
data gives a `Plan`, and all plans are made in this one way.
"""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from otter_jax.data import images
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.errors import UserError

MAX_CHARS = 10_000  # of a stored caption
MAX_BYTES = 64 << 20  # of an image's file
WINDOW = 64  # records of a unit held at once
ROWS = 256  # records of a part written and read at once


class SourceMissing(UserError):
    """What a set is to be made of is not there (any more)."""


class Record(NamedTuple):
    """One record as a source has it.

    Attributes:
      name: what the report calls it: its file, and what it is called there.
      image: its bytes, or the file that holds them.
      fields: the values of the plan's features.
      order: bytes whose hash gives its place in the set, no other's in the split; None: the hash of
        its number does.
    """

    name: str
    image: bytes | pathlib.Path
    fields: dict[str, Any]
    order: bytes | None = None


@runtime_checkable
class Unit(Protocol):
    """Reads some of the records in one go. It can be pickled, and its repr says which it reads.

    Attributes:
      size: how much it is, in any one measure (bytes, files), for the progress.
    """

    size: int

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the records, always in the same order; defects go into the tally."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A range of something, from `start` to `stop` in bytes or in files: the base of units."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """The length of the range."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of what is done to every record.

    Attributes:
      resize: pixels; an image whose shorter side is longer is resized to it. 0: none is, and all
        are stored as the bytes that came.
      format: "jpeg" or "webp", of the resized ones.
      quality: of their encoder, 1 to 100.
      min_size: pixels; images whose shorter side is shorter are dropped.
      keep_duplicates: whether a record stays whose image's bytes and caption, label or labels are
        those of an earlier one.
    """

    resize: int = 0
    format: str = "jpeg"
    quality: int = 90
    min_size: int = 0
    keep_duplicates: bool = True

    def __post_init__(self):
        if self.resize < 0 or self.min_size < 0:
            raise UserError(f"resize={self.resize}, min_size={self.min_size}: pixels, 0 or more.")
        if self.format not in images.ENCODERS:
            raise UserError(f"format={self.format!r}: one of {', '.join(images.ENCODERS)}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: from 1 to 100.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A set that is to be made: of which units, and how.

    Attributes:
      name: of the set: small letters, digits and _.
      features: TFDS features of the records, beside `image`.
      units: of each split.
      files: what the units come from, {"name", "size"} of each, by split: other files make another
        set.
      origin: the same in a few words, for people.
      records: what they are called: "pairs" or "pictures".
      options: what is done to the records.
      details: what else makes another set, such as the columns of a table.
      credit: "homepage" and "license" of the data, kept with the set.
      check_classes: raises UserError if some classes have too few records; it is called before the
        set is written, with the number of records kept per name of the feature `label`.
    """

    name: str
    features: Mapping[str, Any]
    units: Mapping[str, Sequence[Unit]]
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    origin: str
    records: str = "pairs"
    options: Options = Options()
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)
    credit: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check_classes: Callable[[collections.Counter[str]], None] | None = None

    def __post_init__(self):
        check_name(self.name)

    @property
    def digest(self) -> str:
        """A name for what would be in the parts, 16 hexadecimal digits."""
        what = (
            Record._fields,  # parts that another version of this code left behind are not taken
            self.name, self.units, self.files, self.options, self.origin, *self.features,
        )  # fmt: skip
        return hashlib.sha256(repr(what).encode("utf-8", "replace")).hexdigest()[:16]


def pair(
    name: str, *, image: bytes | pathlib.Path | None, caption: Any, key: str, sidecar: str = "{}",
    tally: Tally,
) -> Record | None:  # fmt: skip
    """Makes the record of an image and its caption, or tallies what is missing and returns None.

    A caption of control characters is cleaned of them, a long one cut.
    """
    name = clean(name)
    if image is None:
        return tally.dropped("caption without image", name)
    if not isinstance(caption, str):
        return tally.dropped("missing caption", name)
    cleaned = clean(caption)
    if not cleaned:
        return tally.dropped("empty caption", name)
    if cleaned != caption.strip():
        tally.changed("caption cleaned of control characters", name)
    if "\ufffd" in caption:
        tally.changed("caption with U+FFFD for bytes that are no UTF-8", name)
    if len(cleaned) > MAX_CHARS:
        tally.changed(f"caption cut at {MAX_CHARS:,} characters", name)
    fields = {"caption": cleaned[:MAX_CHARS], "key": clean(key), "json": sidecar}
    return Record(name, image, fields)


def pair_features() -> dict[str, Any]:
    """Returns the features of what `pair` makes: caption, key, and `json`, all else that is known.

    The key names a record for people; `json` is the text of a JSON object.
    """
    return {name: tfds.features.Text() for name in ("caption", "key", "json")}


def need(root: pathlib.Path, names: Sequence[str], what: str) -> pathlib.Path:
    """Returns the file in `root` with one of these names. Raises UserError, saying `what`, if none.

    The first name that is there counts.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(f"There is no {' or '.join(names)} in {root}, {what}.")


def need_all(root: pathlib.Path, pattern: str, what: str) -> list[pathlib.Path]:
    """Returns the files in `root` of a glob, sorted. Raises UserError, saying `what`, if none."""
    found = sorted(root.glob(pattern))
    if not found:
        raise UserError(f"There is no {pattern} in {root}, {what}.")
    return found


def listed(files: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Returns names and sizes of files, as a plan has them."""
    return [{"name": clean(file.name), "size": file.stat().st_size} for file in files]


def fingerprint(*pieces: bytes) -> int:
    """Returns a hash of the pieces joined, as a signed number of 64 bits."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return int.from_bytes(digest.digest(), "little", signed=True)


def check_name(name: str) -> None:
    """Raises UserError for a name of a set that cannot be a folder of TFDS."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(
            f"A data set cannot be called {name!r}: small letters, digits and _ make a name."
        )
