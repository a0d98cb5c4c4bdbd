"""Image-caption pairs from a folder: NAME.jpg (.jpeg, .png, .webp) and its caption in NAME.txt.

Folders in it are read too. NAME.json may take the place of NAME.txt, or stand beside it, as in a
web-dataset. Hidden files (with a leading dot) are ignored, and so are files of other kinds.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterator

from otter_jax.data.build.plan import Options, Plan, Record, Span, pair_features
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats import tars
from otter_jax.data.formats.reading import USUAL, Reading
from otter_jax.errors import UserError

FILES = 20_000  # of a unit


@dataclasses.dataclass(frozen=True)
class Files(Span):
    """Reads the pairs of files number `start` to `stop` of a folder.

    A pair belongs to the unit of its first file.
    """

    root: pathlib.Path
    folder: str

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of their names."""
        names = _files_in(str(self.root / self.folder))
        stems = itertools.groupby(names, key=_stem)
        following = 0
        for stem, files in stems:
            files, first = list(files), following
            following += len(files)
            if self.start <= first < self.stop:
                found = self._record(stem, files, tally)
                if found:
                    yield found

    def _record(self, stem: str, files: list[str], tally: Tally) -> Record | None:
        key = os.path.join(self.folder, stem)
        name, members = clean(key), {}
        for file in files:
            path = self.root / self.folder / file
            kind = tars.KINDS[_suffix(file)]
            if kind in members:
                tally.dropped("second image or caption of a name", clean(str(path.name)))
                continue
            try:
                members[kind] = path if kind == "image" else path.read_bytes()
            except OSError as error:
                return tally.dropped("unreadable file", f"{clean(file)} ({error})")
        return tars.record(key, members, name, tally) if members else None


def plan(name: str, root: pathlib.Path, options: Options, reading: Reading = USUAL) -> Plan:
    """Plans a set of the pairs in the folder `root`.

    Raises UserError if there is no picture or no caption in it.
    """
    root = root.resolve()
    units, number, size, seen = [], 0, 0, set()

    def refuse(error):
        raise UserError(
            f"The folder {clean(str(error.filename))} cannot be read: {error.strerror}."
        )

    for folder, inner, _ in os.walk(root, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(folder))
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in seen
        )
        paths = [os.path.join(folder, name) for name in _files_in(folder)]
        size += sum(os.path.getsize(path) for path in paths if os.path.exists(path))  # a dead link
        files = len(paths)
        relative = os.path.relpath(folder, root) if folder != str(root) else ""
        units += [Files(i, min(i + FILES, files), root, relative) for i in range(0, files, FILES)]
        number += files
    if not number:
        raise UserError(
            f"There are no pictures with captions in {root}: NAME.jpg, .jpeg, .png or .webp with "
            "NAME.txt. (Tables are given by their own path.)"
        )
    return Plan(
        name=name,
        features=pair_features(),
        units={"train": units},
        files={"train": [{"name": clean(root.name), "size": size}]},
        origin=f"{number:,} files in {clean(root.name)}",
        options=options,
    )


@functools.lru_cache(maxsize=1)  # the units of a large folder follow each other
def _files_in(folder: str) -> tuple[str, ...]:
    """Lists the pictures and captions in a folder, sorted so that those of a name are together."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    known = (name for name in names if _suffix(name) in tars.KINDS)
    return tuple(sorted(known, key=lambda name: (_stem(name), name)))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()[1:]
