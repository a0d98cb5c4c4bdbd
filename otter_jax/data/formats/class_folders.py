"""Your own labelled pictures, from a folder with a folder per class.

The layout is ROOT/CLASS/picture, which becomes the split "train", or, where folders lie in the
folders, ROOT/SPLIT/CLASS/picture, with the splits called as the folders are. A picture is a .jpg,
.jpeg, .png or .webp file directly in its class folder. Links are followed; what is hidden (a
leading dot) is passed over, and so are files beside the class folders that are no pictures.

A picture that cannot be read stops nothing: it is counted and named in report.json beside the
records. A class with fewer than two pictures stops the build: no part of it could be held out.
"""

import collections
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from otter_jax.data.build.parts import check, in_threads
from otter_jax.data.build.plan import Options, Record, check_name
from otter_jax.data.build.report import Tally, read_report, table, write_report
from otter_jax.data.captions import clean
from otter_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


LEAST = 2  # pictures of a class: one to learn from, one to be tested on


NAMED_CLASSES = 10  # of those with fewer, in the message


LAYOUTS = "ROOT/CLASS/picture or ROOT/SPLIT/CLASS/picture"


class File(NamedTuple):
    """What lies in a class folder."""

    path: str  # relative to the root; with surrogates where it is no UTF-8
    size: int  # bytes
    is_picture: bool  # by its suffix


Classes = dict[str, list[File]]  # of a split: folder name -> files


class Folders(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Labelled pictures from a folder per class: image, label, and the path in the root as key."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name: str, root: str | os.PathLike, data_dir: str | os.PathLike):
        """A set called `name` of the pictures in the folder `root`.

        Raises:
          UserError: a name that cannot be a folder of TFDS, a set that would lie in the root, a
            root that is not there or not laid out as the module says, class folders with the same
            name once cleaned, or a class with fewer than two pictures.
        """
        check_name(name)
        self.name = name  # TFDS names a set by its class; here one class makes many
        self._root = pathlib.Path(os.path.abspath(os.path.expanduser(root)))
        home = pathlib.Path(data_dir).expanduser() / name
        if home.resolve().is_relative_to(self._root.resolve()):  # it would be a class the next time
            raise UserError(
                f"The data set {name} would be built in the folder that holds its pictures, "
                f"{self._root}: give it another name or another folder of data sets."
            )
        self._splits = find(self._root)
        self._labels = _labels(self._root, self._splits)
        self._kept: collections.Counter[str] = collections.Counter()  # readable ones, by label
        self._report: dict[str, Any] = {}
        files = (labelled for classes in self._splits.values() for labelled in self._files(classes))
        self._check_enough(collections.Counter(label for label, file in files if file.is_picture))
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Labelled pictures from a folder per class; report.json says which.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=sorted(self._labels.values())),
                    "key": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[bytes, dict]]]:
        return {
            split: self._generate_examples(split, found) for split, found in self._splits.items()
        }

    def _files(self, classes: Classes) -> Iterator[tuple[str, File]]:
        """The files of a split with their labels."""
        return ((self._labels[folder], file) for folder in classes for file in classes[folder])

    def _pictures(self, classes: Classes, tally: Tally) -> Iterator[tuple[str, File]]:
        """Those of them that are pictures; the others are tallied."""
        for label, file in self._files(classes):
            if file.is_picture:
                yield label, file
            else:
                tally.dropped("not a picture", clean(file.path))

    def _generate_examples(self, split: str, classes: Classes) -> Iterator[tuple[bytes, dict]]:
        tally, pictures = Tally(), 0

        def read(labelled):
            return check(Record("", self._root / labelled[1].path, {}), Options())

        for (label, file), checked in in_threads(read, self._pictures(classes, tally)):
            key = clean(file.path)
            if checked.why:
                tally.dropped(checked.why, key + checked.detail)
                continue
            pictures += 1
            self._kept[label] += 1
            # TFDS shuffles by a hash of the path, so the order on disk does not follow the classes.
            yield os.fsencode(file.path), {"image": checked.image, "label": label, "key": key}
        name = clean(self._root.name)
        self._report[split] = {
            "records": "pictures",
            "origin": f"the folder {name}",
            "kept": pictures,
            **tally.found,
            "folder": {"name": name, **_extent(classes)},
        }
        if not pictures:
            raise UserError(
                f"The data set {self.name} would have no pictures in {split}: none of those in "
                f"{self._root} can be read.\n{table(self._report)}"
            )
        if len(self._report) == len(self._splits):
            self._check_enough(self._kept, f"\n{table(self._report)}")
        write_report(self.data_path, self._report)

    def _check_enough(self, pictures: collections.Counter[str], report: str = "") -> None:
        few = [name for name in sorted(self._labels.values()) if pictures[name] < LEAST]
        if few:
            first = ", ".join(f"{name} ({pictures[name]})" for name in few[:NAMED_CLASSES])
            more = len(few) - NAMED_CLASSES
            raise UserError(
                f"Classes in {self._root} that cannot be both learned and tested, because they "
                f"have fewer than {LEAST} readable pictures: {first}"
                f"{f' and {more:,} more' if more > 0 else ''}. "
                f"Add pictures, or remove the folder of the class.{report}"
            )


def find(root: str | os.PathLike) -> dict[str, Classes]:
    """The files of each split, by class folder; splits, folders and files are sorted.

    Raises:
      UserError: no such folder, no pictures in folders, both layouts at once, or a split whose
        name TFDS cannot have.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
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
        if not _extent(classes)["files"]:
            raise UserError(
                f"There are no class folders with pictures ({', '.join(SUFFIXES)}) in "
                f"{root / clean(split) if inner else root}. The layout must be {LAYOUTS}."
            )
        if not re.fullmatch(r"[\w-]+", split) or split == "all":  # "all" is TFDS's word for all
            raise UserError(
                f"A split cannot be called {split!r}: letters, digits, _ and - make a name, and "
                f'"all" is taken. Rename that folder in {root}.'
            )
    return splits


def check_same_folder(home: pathlib.Path, root: str | os.PathLike) -> None:
    """That the set in `home` was built from `root`, by paths and sizes of the pictures of a split.

    A root that is no longer there, or has nothing in it any more, is taken for the one it was
    built from.

    Raises:
      UserError: it was built from another folder, or from none; or root has no such layout.
    """
    report = read_report(home)
    built = {split: part["folder"] for split, part in report.items() if "folder" in part}
    remedy = "Give this data another name, or remove that folder to build it again."
    if not built:
        raise UserError(f"The data set in {home} was not built from a folder. {remedy}")
    root = pathlib.Path(root).expanduser()
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    given = {split: _extent(classes) for split, classes in find(root).items()}
    name = next(iter(built.values()))["name"]
    recorded = {key for part in built.values() for key in part}  # older sets have no digest
    if built != {
        split: {key: value for key, value in {"name": name, **extent}.items() if key in recorded}
        for split, extent in given.items()
    }:
        was = ", ".join(f"{part['files']:,} files in {split}" for split, part in built.items())
        raise UserError(
            f"The data set in {home} was built from another folder than {root}, by number, size or "
            f"path of the pictures: from {name}, {was}. {remedy}"
        )


def _list(root: pathlib.Path, folder: str) -> tuple[list[str], list[File]]:
    """Names of the folders in a folder below the root, and its files; hidden ones are left out."""
    folders, files = [], []
    try:
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                picture = entry.name.lower().endswith(SUFFIXES) and entry.is_file()
                size = entry.stat().st_size if picture else 0
                files.append(File(os.path.join(folder, entry.name), size, picture))
    except OSError as error:
        raise UserError(
            f"The folder {clean(str(root / folder))} cannot be read: {error.strerror}."
        ) from error
    return folders, files


def _labels(root: pathlib.Path, splits: dict[str, Classes]) -> dict[str, str]:
    """Folder -> class name, of all splits: the name on one line and without surrogates.

    Raises:
      UserError: two folders with one name then, or one with none.
    """
    folders: dict[str, str] = {}
    for folder in sorted({folder for classes in splits.values() for folder in classes}):
        name = clean(folder)
        if not name or name in folders:
            other = f" apart from {folders[name]!r}" if name else ""
            raise UserError(
                f"The class folder {folder!r} in {root} cannot be told{other} once spaces around "
                "a name, control characters and what is no UTF-8 are cleaned away. Rename it."
            )
        folders[name] = folder
    return {folder: name for name, folder in folders.items()}


def _extent(classes: Classes) -> dict[str, Any]:
    """Number and bytes of a split's pictures, readable or not, and a digest of paths and sizes."""
    pictures = [file for files in classes.values() for file in files if file.is_picture]
    lines = b"".join(os.fsencode(f"{file.path}\0{file.size}\n") for file in pictures)
    return {
        "files": len(pictures),
        "bytes": sum(file.size for file in pictures),
        "digest": hashlib.sha256(lines).hexdigest()[:16],
    }
