"""Your own labelled pictures, from a folder with a folder per class.

The layout is ROOT/CLASS/picture, which becomes the split "train", or ROOT/SPLIT/CLASS/picture,
where the splits have the names of their folders. A picture is a file directly in its class folder
with one of `images.SUFFIXES`; those of HEIC and other formats that are not read are named. Links
are followed; hidden files (with a leading dot) are ignored, and so are files beside the class
folders that are no pictures, and folders called __MACOSX.

A picture that cannot be read stops nothing: it is counted and named in report.json beside the
records. A class with fewer than two pictures stops the build, since none could be held out.

The order of a split is stratified: the pictures of each class are spread evenly over it, with one
at the beginning and one at the end. So a slice from either end that has at least as many pictures
as there are classes has all classes, train[:20%] as well as train[20%:].
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from otter_jax.data import headers
from otter_jax.data.build.plan import Options, Plan, Record, SourceMissing, fingerprint
from otter_jax.data.build.report import Tally
from otter_jax.data.captions import clean
from otter_jax.data.images import SUFFIXES
from otter_jax.errors import UserError

LEAST = 2  # pictures of a class: one to learn from, one to be tested on
NAMED_CLASSES = 10  # that have too few, in the message
SLICE = 1_000  # files of a unit
NEAR = 1e-6  # of the distance of a class's pictures in the set; places so near are the same
MACOS = "__MACOSX"  # in a ZIP archive made there: what it knows of each file, but no picture
LAYOUTS = "ROOT/CLASS/picture or ROOT/SPLIT/CLASS/picture"


class File(NamedTuple):
    """A file in a class folder."""

    path: str  # relative to the root; with surrogates where it is no UTF-8
    size: int  # bytes
    modified: int  # nanoseconds since 1970
    is_picture: bool  # by its suffix


Classes = dict[str, list[File]]  # of a split: folder name -> files


@dataclasses.dataclass(frozen=True)
class Slice:
    """Reads some files of class folders, each with the label of its class."""

    root: pathlib.Path
    files: tuple[tuple[str, File, float], ...]  # label, file, place in the set

    @property
    def size(self) -> int:
        """The number of files."""
        return len(self.files)

    def read(self, tally: Tally) -> Iterator[Record]:
        """Yields the pictures in the order of the files."""
        for label, file, place in self.files:
            key = clean(file.path)
            if not file.is_picture:
                tally.dropped(_why(file.path), key)
                continue
            yield Record(key, self.root / file.path, {"label": label, "key": key}, place)


def plan(name: str, root: str | os.PathLike, options: Options, *, learned: bool = True) -> Plan:
    """Plans a set of the pictures in the folder `root`: image, label, and the path as key.

    With learned=False a class may have any number of pictures: it is only evaluated on.

    Raises:
      SourceMissing: there is no such folder, or nothing in it.
      UserError: the layout is another than the module describes, two class folders have the same
        name once cleaned, or a class has fewer than two pictures.
    """
    root = pathlib.Path(os.path.abspath(os.path.expanduser(root)))
    splits = find(root)
    labels = _labels(root, splits)
    files = {
        split: [
            (labels[folder], file, place)
            for folder in classes
            for file, place in placed(classes[folder])
        ]
        for split, classes in splits.items()
    }
    every = list(itertools.chain.from_iterable(files.values()))
    unread = next((f.path for _, f, _ in every if not f.is_picture and _format(f.path)), "")
    names = sorted(set(labels.values()))
    check = functools.partial(check_enough, root, names, unread=unread)
    if learned:
        check(collections.Counter(label for label, file, _ in every if file.is_picture))
    return Plan(
        name=name,
        features={
            "label": tfds.features.ClassLabel(names=sorted(set(labels.values()))),
            "key": tfds.features.Text(),
        },
        units={
            split: [Slice(root, tuple(of[i : i + SLICE])) for i in range(0, len(of), SLICE)]
            for split, of in files.items()
        },
        files={split: [_extent(split, classes)] for split, classes in splits.items()},
        origin=f"the folder {clean(root.name)}",
        records="pictures",
        options=options,
        check_classes=check if learned else None,
    )


def placed(files: Sequence[File]) -> list[tuple[File, float]]:
    """Returns the files of a class with their places in the set: its pictures spread from 0 to 1.

    Which picture comes where, and before those of other classes at the same place, is chosen by a
    hash of the paths alone.
    """
    chance = {file: (fingerprint(os.fsencode(file.path)) + 2**63) / 2**64 for file in files}
    pictures = sorted((file for file in files if file.is_picture), key=chance.__getitem__)
    places = {
        file: (i + NEAR * chance[file]) / (len(pictures) - 1 + NEAR)
        for i, file in enumerate(pictures)
    }
    return [(file, places.get(file, 0.0)) for file in files]


def check_enough(
    root: pathlib.Path, names: Iterable[str], count: Mapping[str, int], *, unread: str = ""
) -> None:
    """Raises UserError if some of the classes in `root` have fewer than LEAST pictures.

    `unread` is a file there of a format that is not read, if there is any, for the message.
    """
    few = [name for name in names if count[name] < LEAST]
    if few:
        first = ", ".join(f"{name} ({count[name]})" for name in few[:NAMED_CLASSES])
        more = len(few) - NAMED_CLASSES
        of_others = f" {clean(unread)} is a {_why(unread)}." if unread else ""
        raise UserError(
            f"Classes in {root} that cannot be both learned and tested, because they "
            f"have fewer than {LEAST} readable pictures: {first}"
            f"{f' and {more:,} more' if more > 0 else ''}. "
            f"Add pictures, or remove the folder of the class.{of_others}"
        )


def _format(path: str) -> str:
    """Returns the format of a picture that is not read, by its suffix; "" for any other file."""
    return headers.FOREIGN.get(os.path.splitext(path)[1].lower(), "")


def _why(path: str) -> str:
    """Returns why a file is no picture that can be read."""
    format = _format(path)
    return f"{format} picture, not read: convert it to JPEG or PNG" if format else "not a picture"


def find(root: str | os.PathLike) -> dict[str, Classes]:
    """Returns the files of each split, by class folder; splits, folders and files are sorted.

    Raises:
      SourceMissing: there is no such folder, or nothing in it.
      UserError: no pictures in folders, both layouts at once, or a split name that TFDS rejects.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise SourceMissing(
            f"There is no folder {root}. Give the folder that holds a folder of pictures per class."
        )
    tops, beside = _list(root, "")
    found = {top: _list(root, top) for top in tops}
    inner = [f"{top}/{name}" for top, (folders, _) in found.items() for name in folders]
    splits = {"train": {top: files for top, (_, files) in found.items()}}
    misplaced = []
    if inner:
        splits = {top: {} for top in tops}
        for path in inner:
            top, folder = path.split("/")
            deeper, splits[top][folder] = _list(root, path)
            misplaced += [f"{path}/{name}/" for name in deeper]
        beside += [file for _, files in found.values() for file in files]
    misplaced += [file.path for file in beside if file.is_picture]
    if tops and misplaced:
        raise UserError(
            f"The layout of {root} is mixed: there is the folder {clean((inner or tops)[0])}/, so "
            f"all pictures must lie in {'ROOT/SPLIT/CLASS' if inner else 'ROOT/CLASS'}/, but there "
            f"is {clean(misplaced[0])}. Keep to one layout: {LAYOUTS}."
        )
    for split, classes in splits.items():
        if not any(file.is_picture for files in classes.values() for file in files):
            error = UserError if any(root.iterdir()) else SourceMissing
            raise error(
                f"There are no class folders with pictures ({', '.join(SUFFIXES)}) in "
                f"{root / clean(split) if inner else root}. The layout must be {LAYOUTS}."
            )
        if not re.fullmatch(r"[\w-]+", split) or split == "all":  # TFDS reserves "all"
            raise UserError(
                f"A split cannot be called {split!r}: letters, digits, _ and - make a name, and "
                f'"all" is taken. Rename that folder in {root}.'
            )
    return splits


def _list(root: pathlib.Path, folder: str) -> tuple[list[str], list[File]]:
    """Lists the folders in a folder below the root, and its files, without hidden ones."""
    folders, files = [], []
    try:
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == MACOS:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                picture = entry.name.lower().endswith(SUFFIXES) and entry.is_file()
                about = entry.stat() if picture else None
                size, modified = (about.st_size, about.st_mtime_ns) if about else (0, 0)
                files.append(File(os.path.join(folder, entry.name), size, modified, picture))
    except OSError as error:
        raise UserError(
            f"The folder {clean(str(root / folder))} cannot be read: {error.strerror}."
        ) from error
    return folders, files


def _labels(root: pathlib.Path, splits: dict[str, Classes]) -> dict[str, str]:
    """Returns the class name of each folder of all splits: its name, cleaned and composed (NFC).

    Raises:
      UserError: two folders have the same name then, or one has none. In different splits they may
        have it, if they are the same but for how Unicode composes them.
    """
    folders: dict[str, str] = {}  # name -> folder that has it, composed
    names: dict[str, str] = {}
    for classes in splits.values():
        here: dict[str, str] = {}
        for folder in sorted(classes):
            composed = unicodedata.normalize("NFC", folder)
            name = clean(composed)
            other = here.get(name, folders.setdefault(name, composed))
            if not name or name in here or other != composed:
                apart = f" apart from {other!r}" if name else ""
                raise UserError(
                    f"The class folder {folder!r} in {root} cannot be told{apart} once spaces "
                    "around a name, control characters and what is no UTF-8 are cleaned away, and "
                    "accents are composed with their letters (NFC). Rename it."
                )
            here[name], names[folder] = folder, name
    return names


def _extent(split: str, classes: Classes) -> dict[str, Any]:
    """Identifies a split's pictures by number, bytes, and a hash of their paths and sizes.

    Unreadable pictures are included.
    """
    pictures = [file for files in classes.values() for file in files if file.is_picture]
    lines = b"".join(os.fsencode(f"{file.path}\0{file.size}\n") for file in pictures)
    times = b"".join(os.fsencode(f"{file.path}\0{file.modified}\n") for file in pictures)
    return {
        "name": f"{len(pictures):,} pictures in {split}",
        "size": sum(file.size for file in pictures),
        "digest": hashlib.sha256(lines).hexdigest()[:16],
        "modified": hashlib.sha256(times).hexdigest()[:16],
    }
