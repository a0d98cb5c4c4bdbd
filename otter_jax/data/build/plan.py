"""Describes a set to be made: its records, the units they are read in, and the options.

A unit is read in one go: a tar, a megabyte of a table, a folder. `parts` writes the checked records
of each unit into parts, files, and `builder` makes the set from all parts. Every data format
gives a `Plan`, and every plan is carried out in this way.
"""

import collections
import dataclasses
import decimal
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from otter_jax.data import images
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import MAX_CHARS, clean, visible
from otter_jax.errors import UserError

MAX_BYTES = images.MAX_BYTES  # of an image's file
MOST_CAPTIONS = 1_000  # of a picture: each makes a record with all of its bytes
MAX_JSON = 4 << 20  # bytes of all else that comes with a picture, in its records together
WINDOW = 64  # records of a unit held at once
ROWS = 256  # records of a part written and read at once
PARTS = 3  # the version of what `parts` writes: parts of another are not used

NO_CAPTION = ("image without caption", "missing caption", "empty caption")  # why one is dropped
UNCAPTIONED = "picture without caption, kept"  # counted in the report of a set that allows them


class SourceMissing(UserError):
    """Raised when the files that a set is made of are not there."""


class Record(NamedTuple):
    """One record as it is read from a source.

    Attributes:
      name: its name in the report: the file, and the record's name there.
      image: its bytes, or the file that holds them.
      fields: the values of the plan's features.
      order: bytes whose hash gives the record's place in the set, or the place itself, a float from
        0 to 1; None takes the hash of the image, so that records of one image follow each other.
        Of records with equal places the earlier in the source comes first.
      at: how much of its unit's size had been read when it came; 0 where that is not known.
    """

    name: str
    image: bytes | pathlib.Path
    fields: dict[str, Any]
    order: bytes | float | None = None
    at: int = 0


@runtime_checkable
class Unit(Protocol):
    """Reads some of the records in one go. It can be pickled, and its repr says which it reads.

    Attributes:
      size: in bytes or files, the same for all units of a plan; progress is counted in it.
    """

    size: int

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the records, always in the same order; defects go into the tally."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The base of units that read a range, from `start` to `stop` in bytes or files."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """The length of the range."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings by which every record is treated.

    Attributes:
      resize: pixels; images whose shorter side is longer are resized to it. 0 resizes none: all
        are stored with the bytes of the source.
      format: "jpeg" or "webp", of the resized images.
      quality: of their encoder, 1 to 100.
      min_size: pixels; images whose shorter side is shorter are dropped.
      keep_duplicates: whether a record is kept if an earlier one has the same image bytes and the
        same caption, label or labels.
      exif: "apply" stores pictures turned upright, as their EXIF orientation says; "ignore" stores
        them as their pixels lie. No stored picture has an orientation any more.
    """

    resize: int = 0
    format: str = "jpeg"
    quality: int = 90
    min_size: int = 0
    keep_duplicates: bool = True
    exif: str = "apply"

    def __post_init__(self):
        if self.resize < 0 or self.min_size < 0:
            raise UserError(f"resize={self.resize}, min_size={self.min_size}: pixels, 0 or more.")
        if self.format not in images.ENCODERS:
            raise UserError(f"format={self.format!r}: one of {', '.join(images.ENCODERS)}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: from 1 to 100.")
        if self.exif not in images.EXIF:
            raise UserError(f"exif={self.exif!r}: one of {', '.join(images.EXIF)}.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Describes a set to be made: its units, its features, and the options.

    Attributes:
      name: of the set: small letters, digits and _.
      features: TFDS features of the records, beside `image`.
      units: of each split.
      files: {"name", "size"} of each file that is read, by split; other files make another set.
        {"modified": time or digest of times} beside them tells what may have changed.
      origin: the files in a few words, for people.
      records: the word for them: "pairs" or "pictures".
      options: how the records are treated.
      details: other facts that make another set if they differ, such as the columns of a table.
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
        """Returns 16 hexadecimal digits that change whenever the contents of the parts would."""
        what = (
            PARTS,
            Record._fields,  # so that parts made by another version of this code are not used
            self.name, self.units, self.files, self.options, self.origin, *self.features,
        )  # fmt: skip
        return hashlib.sha256(repr(what).encode("utf-8", "replace")).hexdigest()[:16]


def pair(
    name: str, *, image: bytes | pathlib.Path | None, caption: Any, key: str, sidecar: str = "{}",
    captions: bool = True, tally: Tally,
) -> Record | None:  # fmt: skip
    """Makes the record of an image and its caption, or tallies what is missing and returns None.

    A number is a caption, too; what shows nothing, such as zero-width characters, is none. Control
    characters are removed, and a long caption is cut. With captions=False a picture that has none
    is kept, with caption "".
    """
    name = clean(name)
    if image is None:
        return tally.dropped("caption without image", name)
    if isinstance(caption, int | float | decimal.Decimal) and not isinstance(caption, bool):
        caption = str(caption) if math.isfinite(caption) else None
    cleaned = clean(caption) if isinstance(caption, str) else ""
    if not visible(cleaned):
        if captions:
            why = "empty caption" if isinstance(caption, str) else "missing caption"
            return tally.dropped(why, name)
        caption = cleaned = ""
        tally.changed(UNCAPTIONED, name)
    if cleaned != caption.strip():
        tally.changed("caption cleaned of control characters", name)
    if "\ufffd" in caption:
        tally.changed("caption with U+FFFD, for bytes that are (or once were) no UTF-8", name)
    if len(cleaned) > MAX_CHARS:
        tally.changed(f"caption cut at {MAX_CHARS:,} characters", name)
    fields = {"caption": cleaned[:MAX_CHARS], "key": clean(key), "json": sidecar}
    return Record(name, image, fields)


def pairs(
    name: str, *, image: bytes | pathlib.Path | None, captions: Sequence[Any], key: str,
    sidecar: str, required: bool, tally: Tally,
) -> Iterator[Record]:  # fmt: skip
    """Yields the record of an image and each of its captions, or tallies what is missing.

    With required=False, for a set to evaluate on, there is one record whatever captions there are.
    """
    if len(captions) > MOST_CAPTIONS:
        tally.changed(f"captions of a picture beyond {MOST_CAPTIONS:,}, left out", name)
        captions = captions[:MOST_CAPTIONS]
    if len(sidecar) * len(captions) > MAX_JSON:
        tally.changed("what came with a picture, over 4 MiB, left out", name)
        sidecar = "{}"
    if not required:
        if len(captions) > 1:
            tally.changed("further captions of a picture, left out by --nocaptions", name)
        captions = captions[:1] or [""]  # which `pair` counts
    for number, caption in enumerate(captions, start=1):
        record = pair(
            name if len(captions) == 1 else f"{name} (caption {number})",
            image=image,
            caption=caption,
            key=key,
            sidecar=sidecar,
            captions=required,
            tally=tally,
        )
        if record:
            yield record


def pair_features() -> dict[str, Any]:
    """Returns the features of a pair: caption, key, and `json` for everything else.

    The key names a record for people; `json` is the text of a JSON object.
    """
    return {name: tfds.features.Text() for name in ("caption", "key", "json")}


def need(root: pathlib.Path, names: Sequence[str], what: str) -> pathlib.Path:
    """Returns the file in `root` that has the first of these names that exists.

    Raises UserError if there is none; `what` says what it is, and how to get it.
    """
    for name in names:
        if (root / name).is_file() or (root / name).is_dir():
            return root / name
    raise UserError(f"There is no {' or '.join(names)} in {root}, {what}.")


def need_all(root: pathlib.Path, pattern: str, what: str) -> list[pathlib.Path]:
    """Returns the files in `root` that match a glob, sorted.

    Raises UserError if there is none; `what` says what they are, and how to get them.
    """
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    if not found:
        raise UserError(f"There is no {pattern} in {root}, {what}.")
    return found


def listed(files: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Returns {"name", "size", "modified"} of each file, for `Plan.files`."""
    return [
        {"name": clean(file.name), "size": about.st_size, "modified": about.st_mtime_ns}
        for file, about in ((file, file.stat()) for file in files)
    ]


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
