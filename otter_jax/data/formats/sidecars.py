"""Image-caption pairs from a folder: NAME.jpg (or another of images.SUFFIXES), and NAME.txt.

Folders in it are read too. NAME goes up to the last dot; what else may belong to it is as in a
web-dataset, `members` describes it. Hidden files (with a leading dot) are passed over, and so are
files of other kinds with no caption beside them.
"""

import dataclasses
import errno
import functools
import hashlib
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Iterator

from otter_jax.data.build.plan import Options, Plan, Record, Span, pair_features
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.members import LONG_TEXT, MAX_TEXT, details, is_known, kind_of, records
from otter_jax.data.formats.patterns import walk
from otter_jax.data.formats.reading import OUTSIDE, USUAL, Reading
from otter_jax.data.images import SUFFIXES
from otter_jax.errors import UserError
from otter_jax.files import is_within, read_bytes

FILES = 20_000  # of a unit


@dataclasses.dataclass(frozen=True)
class Files(Span):
    """Reads the pairs of files number `start` to `stop` of a folder.

    A pair belongs to the unit of its first file.
    """

    root: pathlib.Path
    folder: str
    reading: Reading = USUAL

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of their names."""
        names = _files_in(str(self.root / self.folder))
        stems = itertools.groupby(names, key=_stem)
        following = 0
        for stem, files in stems:
            files, first = list(files), following
            following += len(files)
            if self.start <= first < self.stop:
                for record in self._records(stem, files, tally):
                    yield record._replace(at=following - self.start)

    def _records(self, stem: str, files: list[str], tally: Tally) -> Iterator[Record]:
        key = os.path.join(self.folder, stem)
        name, members = clean(key), {}
        paths = [self.root / self.folder / file for file in files]
        if self.reading.untrusted and not all(is_within(path, self.root) for path in paths):
            tally.dropped(OUTSIDE, name)
            return
        for file, path in zip(files, paths, strict=True):
            kind = kind_of(_suffix(file))
            if kind in members:
                tally.dropped("second image or caption of a name", clean(file))
                continue
            if kind == "image" or kind.startswith("."):
                members[kind] = path
                continue
            try:
                members[kind] = read_bytes(path, MAX_TEXT)
            except OSError as error:
                large = error.errno == errno.EFBIG
                why = LONG_TEXT if large else "unreadable file"
                tally.dropped(why, clean(file) + ("" if large else f" ({error.strerror})"))
                return
        yield from records(key, members, name, tally, self.reading)


def plan(name: str, root: pathlib.Path, options: Options, reading: Reading = USUAL) -> Plan:
    """Plans a set of the pairs in the folder `root`.

    Raises UserError if there is no picture or no caption in it.
    """
    root = root.resolve()
    units, number, size = [], 0, 0
    contents, times = hashlib.sha256(), hashlib.sha256()
    for folder, _ in walk(root, reading.untrusted):
        relative = os.path.relpath(folder, root) if folder != str(root) else ""
        within = _files_in(folder)
        for file in within:
            path = os.path.join(folder, file)
            if os.path.exists(path):  # not a dead link
                about = os.stat(path)
                size += about.st_size
                own = os.path.join(relative, file)
                contents.update(os.fsencode(f"{own}\0{about.st_size}\n"))
                times.update(os.fsencode(f"{own}\0{about.st_mtime_ns}\n"))
        files = len(within)
        units += [
            Files(i, min(i + FILES, files), root, relative, reading) for i in range(0, files, FILES)
        ]
        number += files
    if not number:
        raise UserError(
            f"There are no pictures with captions in {root}: NAME.txt or NAME.json beside NAME and "
            f"{', '.join(SUFFIXES)}. (Tables, and tars in "
            "folders below it, are given by their own paths, or globs.)"
        )
    extent = {"name": clean(root.name), "size": size, "digest": contents.hexdigest()[:16]}
    extent["modified"] = times.hexdigest()[:16]
    return Plan(
        name=name,
        features=pair_features(),
        units={"train": units},
        files={"train": [extent]},
        origin=f"{number:,} files in {clean(root.name)}",
        options=options,
        details=details(reading),
    )


@functools.lru_cache(maxsize=1)  # the units of a large folder follow each other
def _files_in(folder: str) -> tuple[str, ...]:
    """Lists the files in a folder that belong to pictures or captions, those of a name together."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_file(entry)]
    names.sort(key=lambda name: (_stem(name), name))
    found: list[str] = []
    for _, files in itertools.groupby(names, key=_stem):
        files = list(files)
        if any(is_known(_suffix(file)) for file in files):
            found += files
    return tuple(found)


def _is_file(entry: os.DirEntry) -> bool:
    """Tells whether an entry is a file, or a link that leads nowhere, and not hidden."""
    if entry.name.startswith("."):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link in a circle
        return True


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])  # as macOS does not write it


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1]
