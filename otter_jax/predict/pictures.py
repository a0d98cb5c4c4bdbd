"""Finds the pictures that a command is given, and reads them in batches, in flat memory.

A source is a picture, a folder with all below it, a glob, or "-": paths on stdin, one a line, or
separated by NUL as `find -print0` writes them. What is not there is an error at once. Within
folders and globs only files are taken whose names end as pictures' do; the others are counted.
"""

import dataclasses
import glob
import io
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from otter_jax.data.formats.patterns import matches_of, walk
from otter_jax.data.images import MAX_BYTES, SUFFIXES, UnreadableImage
from otter_jax.data.in_flight import in_threads
from otter_jax.errors import UserError
from otter_jax.files import open_regular

STDIN = "-"
AHEAD = 2  # batches that are decoded while a device works on another


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Lists pictures, each once, in the order of the sources and by name within a folder.

    Attributes:
      paths: of all pictures, as the sources write them.
      passed_over: how many files in folders and globs are none, by their names.
      folders: absolute paths of the folders among the sources.
    """

    paths: tuple[str, ...]
    passed_over: int = 0
    folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, sources: Sequence[str], stdin: io.IOBase | None = None) -> "Pictures":
        """Finds the pictures of all sources; `stdin` is for tests.

        Bytes of a path that are no UTF-8 are kept as os.fsdecode keeps them.

        Raises UserError for a source that is not there, a folder that cannot be read, and for no
        picture at all. A path on stdin may be missing: it is among the pictures that cannot be
        read.
        """
        found: dict[str, str] = {}  # by absolute path
        folders: list[str] = []
        passed = 0
        for path, is_picture in _files_of(sources, stdin, folders):
            if is_picture:
                found.setdefault(absolute(path), path)
            passed += not is_picture
        if not found:
            shown = " ".join(map(str, sources))
            none = f"none of the {passed:,} files there ends as pictures do" if passed else "empty"
            raise UserError(
                f"There is no picture in {shown!r}: {none}. Pictures end in {', '.join(SUFFIXES)}."
            )
        return cls(tuple(found.values()), passed, tuple(map(absolute, folders)))

    def told(self) -> str:
        """Returns what was found, in words."""
        words = f"{len(self.paths):,} picture{'s' * (len(self.paths) != 1)}"
        if self.passed_over:
            others = f"{self.passed_over:,} other file{'s' * (self.passed_over != 1)}"
            return f"{words}; {others} passed over"
        return words


@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds pictures that follow each other, and those between them that cannot be read.

    Attributes:
      paths: of the pictures in `pixels`.
      pixels: as a model sees them; the last batch may have fewer, even none.
      unreadable: (path, why) of each that has no pixels.
    """

    paths: list[str]
    pixels: UInt8[np.ndarray, "N H W 3"]
    unreadable: list[tuple[str, str]]

    def __len__(self) -> int:
        """Returns how many pictures it brings further, readable or not."""
        return len(self.paths) + len(self.unreadable)


def read(
    decode: Callable[[bytes], UInt8[np.ndarray, "H W 3"]],
    paths: Iterable[str],
    *,
    batch: int,
    threads: int = 0,
) -> Iterator[Batch]:
    """Yields the pictures in their order, in whole batches, decoded by threads ahead of time.

    At most AHEAD + 1 batches are held, however many paths there are.

    Args:
      decode: turns a file's bytes into pixels, of one size; raises UserError or UnreadableImage.
      paths: of the pictures.
      batch: readable pictures in each batch but the last, such as Model.batch_size.
      threads: that decode; 0 is one a core, at most 16.
    """

    def pixels_of(path: str) -> UInt8[np.ndarray, "H W 3"] | str:
        try:
            return decode(content_of(path))
        except (UserError, UnreadableImage) as error:
            cause = error.__cause__  # alone, it does not name the picture again
            return str(cause if isinstance(cause, UnreadableImage) else error)

    taken: list[str] = []
    pixels: list[UInt8[np.ndarray, "H W 3"]] = []
    unreadable: list[tuple[str, str]] = []
    for path, result in in_threads(pixels_of, paths, ahead=AHEAD * batch, threads=threads):
        if isinstance(result, str):
            unreadable.append((path, result))
            continue
        taken.append(path)
        pixels.append(result)
        if len(pixels) == batch:
            yield Batch(taken, np.stack(pixels), unreadable)
            taken, pixels, unreadable = [], [], []
    if pixels or unreadable:
        last = np.stack(pixels) if pixels else np.zeros((0, 0, 0, 3), np.uint8)
        yield Batch(taken, last, unreadable)


def content_of(path: str | pathlib.Path) -> bytes:
    """Returns the bytes of a picture's file.

    Raises UnreadableImage for what is missing, no regular file, empty, or over MAX_BYTES.
    """
    if "\0" in str(path):
        raise UnreadableImage("missing file: no path has a NUL")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnreadableImage(kind)
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"file over {MAX_BYTES >> 20} MiB")
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnreadableImage("missing file") from None
    except OSError as error:
        raise UnreadableImage(f"unreadable file ({error.strerror})") from None
    if not content:
        raise UnreadableImage("empty file")
    return content


def absolute(path: str) -> str:
    """Returns the absolute path; links are followed only where .. would be wrong otherwise."""
    return os.path.realpath(path) if ".." in pathlib.Path(path).parts else os.path.abspath(path)


def _files_of(
    sources: Sequence[str], stdin: io.IOBase | None, folders: list[str]
) -> Iterator[tuple[str, bool]]:
    """Yields the files of all sources, and whether each is to be taken for a picture.

    Adds the folders among the sources to `folders`.
    """
    listed = False
    for source in map(str, sources):
        named = True
        if source == STDIN:
            matches = [] if listed else _lines(stdin or sys.stdin.buffer)
            listed = True  # a stream can be read once
        else:
            matches = matches_of(source)
            named = os.path.exists(source) or not glob.has_magic(source)
            if not matches:
                raise UserError(
                    f"There is no {source}: give a picture, a folder, a glob in quotes such as "
                    "'photos/*.jpg', or - for paths on stdin."
                )
        for path in matches:
            if os.path.isdir(path):
                folders.append(path)
                yield from _within(path)
            else:
                yield path, named or _is_picture(path)


def _within(path: str) -> Iterator[tuple[str, bool]]:
    for folder, names in walk(pathlib.Path(path)):
        for name in sorted(names):
            yield str(pathlib.Path(folder, name)), _is_picture(name)


def _is_picture(path: str) -> bool:
    name = os.path.basename(path)
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _lines(stdin: io.IOBase) -> list[str]:
    """Returns the paths on stdin. Raises UserError if it is a terminal, which nobody types into."""
    if stdin.isatty():
        raise UserError(
            "- stands for paths on stdin, and nothing is piped into it: find photos -name '*.jpg' "
            "| this command."
        )
    content = stdin.read()
    if b"\0" in content:
        return [os.fsdecode(path) for path in content.split(b"\0") if path]
    paths = [path.removesuffix(b"\r") for path in content.split(b"\n")]  # as Windows ends lines
    return [os.fsdecode(path) for path in paths if path]
