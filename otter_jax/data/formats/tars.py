"""Image-caption pairs from web-dataset tars.

A tar holds, per pair, KEY.jpg (or .jpeg, .png, .webp) with KEY.txt (the caption), or with KEY.json
whose "caption" counts where there is no .txt, or with both. The key is the path up to the first dot
of the file name, and names a pair within its tar: another tar may use it again. Files of other
kinds are ignored.

The members of a key usually follow each other, but need not: up to WINDOW incomplete keys are held
while a tar is read, and a key is passed on, complete or not, when that many others have begun after
it. Later members of that key count as duplicates. So memory stays flat, and the same tars always
give the same set.
"""

import dataclasses
import json
import lzma
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from otter_jax.data.build.plan import (
    MAX_BYTES,
    WINDOW,
    Options,
    Plan,
    Record,
    SourceMissing,
    listed,
    pair,
    pair_features,
)
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.formats.patterns import matches_of
from otter_jax.data.formats.reading import USUAL, Reading
from otter_jax.data.images import SUFFIXES

# By the suffix without its dot.
KINDS = {suffix[1:]: "image" for suffix in SUFFIXES} | {"txt": "txt", "json": "json"}

Tars = Sequence[str] | Mapping[str, Sequence[str]]
Members = Mapping[str, bytes | pathlib.Path]  # kind -> content, of one key; an image may be a file


@dataclasses.dataclass(frozen=True)
class Tar:
    """Reads the pairs of one tar."""

    path: pathlib.Path
    size: int

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pairs in the order of the tar, up to where it cannot be read."""
        for key, members in _groups(self.path, tally):
            found = record(key, members, f"{self.path.name}: {clean(key)}", tally)
            if found:
                yield found


def plan(name: str, tars: Tars, options: Options, reading: Reading = USUAL) -> Plan:
    """Plans a set of web-dataset tars: paths or globs for the split "train", or {split: ...}.

    Raises:
      SourceMissing: a path or glob that matches no file.
    """
    found = find(tars)
    units = {s: [Tar(tar, tar.stat().st_size) for tar in tars] for s, tars in found.items()}
    files = {split: listed(tars) for split, tars in found.items()}
    number = sum(map(len, found.values()))
    return Plan(
        name=name,
        features=pair_features(),
        units=units,
        files=files,
        origin=f"{number} tar{'s' * (number > 1)}",
        options=options,
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


class _Header(tarfile.TarInfo):
    """Raises an error at a cut or damaged header, which tarfile takes for the end of the tar."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"after {archive.offset:,} bytes: {error}") from error


def _members(tar: pathlib.Path, tally: Tally) -> Iterator[tuple[str, str, bytes]]:
    """Yields (key, kind, content) in the order of the tar, up to where it cannot be read."""
    try:
        with tarfile.open(tar, "r|*", bufsize=1 << 20, tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile remembers every header it has seen
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                stem, _, extension = file.partition(".")
                kind = KINDS.get(extension.lower())
                if not member.isfile() or not stem or not kind:
                    continue
                if member.size > MAX_BYTES:
                    tally.dropped("file over 64 MiB", f"{tar.name}: {clean(member.name)}")
                    continue
                content = archive.extractfile(member).read()
                yield (f"{folder}/{stem}" if folder else stem), kind, content
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        tally.dropped("rest of a broken tar", f"{tar.name}: {error}")


def _groups(tar: pathlib.Path, tally: Tally) -> Iterator[tuple[str, Members]]:
    """Yields each key with all its members, in the order that the module's docstring describes."""
    waiting: dict[str, dict[str, bytes]] = {}
    left: set[str] = set()
    doubled: set[str] = set()
    for key, kind, content in _members(tar, tally):
        if key in left or kind in waiting.get(key, ()):
            if key not in doubled:
                doubled.add(key)
                tally.dropped("duplicate key", f"{tar.name}: {clean(key)}")
            continue
        waiting.setdefault(key, {})[kind] = content
        leaves = None
        if len(waiting[key]) == len(set(KINDS.values())):
            leaves = key
        elif len(waiting) > WINDOW:
            leaves = next(iter(waiting))
        if leaves is not None:
            left.add(leaves)
            yield leaves, waiting.pop(leaves)
    yield from waiting.items()


def record(key: str, members: Members, name: str, tally: Tally) -> Record | None:
    """Makes the record of a key, or tallies why there is none and returns None."""
    if "image" in members and len(members) == 1:
        return tally.dropped("image without caption", name)
    text, sidecar = members.get("json", b"{}").decode("utf-8-sig", "replace"), None
    try:
        sidecar = json.loads(text)
    except (ValueError, RecursionError):
        if "image" in members:
            tally.changed("sidecar is not JSON, left out", name)
        text = "{}"
    if "txt" in members:
        caption: Any = members["txt"].decode("utf-8-sig", "replace")
    else:
        caption = sidecar.get("caption") if isinstance(sidecar, dict) else None
    image = members.get("image")
    return pair(name, image=image, caption=caption, key=key, sidecar=text, tally=tally)
