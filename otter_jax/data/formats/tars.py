"""Image-caption pairs from web-dataset tars, plain or compressed.

A tar holds, per pair, the files of a key: KEY.jpg (or another of images.SUFFIXES), and those that
`members` describes. The key is the path up to the first dot of the file's name, or up to the last
where the user says so, and names a pair within its tar: another tar may use it again. Names with a
leading dot are passed over, and so are files of other kinds with no caption beside them. `keys`
says how much is held, so that memory stays flat; the same tars always give the same set.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from otter_jax.data.build.plan import (
    Options,
    Plan,
    Record,
    SourceMissing,
    listed,
    pair_features,
)
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.archive import Archive
from otter_jax.data.formats.keys import Keys
from otter_jax.data.formats.members import details, records
from otter_jax.data.formats.patterns import matches_of
from otter_jax.data.formats.reading import USUAL, Reading

Tars = Sequence[str] | Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Tar:
    """Reads the pairs of one tar."""

    path: pathlib.Path
    size: int
    reading: Reading = USUAL

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of `Keys`, up to where the tar cannot be read."""
        tar = self.path.name
        try:
            archive = Archive(self.path)
        except OSError as error:
            tally.dropped("unreadable file", f"{tar} ({error.strerror})")
            return
        with archive:
            for key, members in Keys(archive, tar, self.reading, tally):
                for record in records(key, members, f"{tar}: {clean(key)}", tally, self.reading):
                    yield record._replace(at=archive.position)


def plan(name: str, tars: Tars, options: Options, reading: Reading = USUAL) -> Plan:
    """Plans a set of web-dataset tars: paths or globs for the split "train", or {split: ...}.

    Raises:
      SourceMissing: a path or glob that matches no file.
    """
    found = find(tars)
    units = {
        s: [Tar(tar, tar.stat().st_size, reading) for tar in tars] for s, tars in found.items()
    }
    files = {split: listed(tars) for split, tars in found.items()}
    number = sum(map(len, found.values()))
    return Plan(
        name=name,
        features=pair_features(),
        units=units,
        files=files,
        origin=f"{number} tar{'s' * (number > 1)}",
        options=options,
        details=details(reading) | {"key": reading.key},
    )


def find(tars: Tars) -> dict[str, list[pathlib.Path]]:
    """Returns the files of each split: globs in the order given, each sorted, every file once.

    Raises:
      SourceMissing: a path or glob that matches no file; it is named.
    """
    if isinstance(tars, str):
        tars = [tars]
    splits = tars if isinstance(tars, Mapping) else {"train": tars}
    found: dict[str, list[pathlib.Path]] = {}
    for split, patterns in splits.items():
        files: dict[str, pathlib.Path] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = [match for match in matches_of(pattern) if os.path.isfile(match)]
            if not matches:
                raise SourceMissing(
                    f"No tar matches {pattern!r}. Check the path of the web-dataset."
                )
            for match in matches:
                files.setdefault(os.path.realpath(match), pathlib.Path(match))
        found[split] = list(files.values())
    return found
