"""Gathers the files of each key of a web-dataset tar.

The files of a key usually follow each other, but need not. While a tar is read, up to WINDOW keys
wait for more of their files; then each is passed on in its turn. A key that is not complete by then
waits for the end of the tar.

Of a plain tar only the places of files are held, some 500 bytes per key that waits, so that files
can be in any order, and links to files of the same tar be followed. The files of a compressed tar
cannot be read again: their contents are held, at most HELD bytes of them, and let go for keys that
wait for the end; those that turn out to be complete then are counted. Beside that some 200 bytes
per key are kept to notice a second file of the same name. In tars that are joined, end to end, a
key may come again: it is another one if the first is complete.
"""

import itertools
import posixpath
import sys
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping

from otter_jax.data.build.plan import MAX_BYTES, WINDOW
from otter_jax.data.build.report import Tally
from otter_jax.data.formats.archive import Archive, NoTar, Place, end_of, target_of
from otter_jax.data.formats.members import LONG_TEXT, MAX_TEXT, TEXTS, is_known, is_picture, kind_of
from otter_jax.data.formats.reading import Reading

HELD = 256 << 20  # bytes of a compressed tar
OTHERS = 8  # files of unknown kinds per key

DOUBLED = "duplicate key"
DOTS = "dots in the name: a key ends at the first one (prepare --key last-dot: at the last)"
FAR = "files of a pair too far apart in a compressed tar: unpack the tar"
LATE = "file far behind the others of its key, left out"
NO_TAR = "file that does not begin as a tar"
LINK = "link that leads to no file of its tar"
PACKED = "link in a compressed tar: unpack the tar"

# A file of a key: its content, its place, the name that a link leads to; None for a content that
# was let go.
Held = bytes | Place | str | None
Key = tuple[str, int]  # and the part of joined tars where it began


class Keys:
    """Yields the keys of a tar, each with the contents of its files by kind, as `members` has them.

    They come by their first files; those that waited for the end of the tar come after the others.
    What cannot be read is tallied.
    """

    def __init__(self, archive: Archive, name: str, reading: Reading, tally: Tally):
        """`name` is the tar's, for the tally."""
        self._archive, self._name, self._reading, self._tally = archive, name, reading, tally
        self._waiting: dict[Key, dict[str, Held]] = {}
        self._apart: dict[Key, dict[str, Held]] = {}  # keys that wait for the end
        self._left: dict[Key, str] = {}  # keys that are passed on, and the kinds of their files
        self._told: set[Key] = set()  # keys that are tallied for a file that was left out
        self._parts: dict[str, int] = {}  # that the last key of a name is of, if not the first
        self._links: dict[str, str] = {}  # the targets of all links, by name
        self._held = 0  # bytes of contents

    def __iter__(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        for key, kind, held in self._files():
            self._add(key, kind, held)
            while len(self._waiting) > WINDOW or (self._held > HELD and len(self._waiting) > 1):
                first = next(iter(self._waiting))
                files = self._waiting.pop(first)
                self._held -= sum(map(_size, files.values()))
                if self._is_complete(files):
                    self._left[first] = sys.intern(" ".join(sorted(files)))
                    yield from self._read(first[0], files, {})
                else:
                    self._apart[first] = {kind: _let_go(held) for kind, held in files.items()}
        plain = not self._archive.packing
        places = self._archive.places(self._targets()) if plain and self._links else {}
        for (key, _), files in itertools.chain(self._apart.items(), self._waiting.items()):
            yield from self._read(key, files, places)

    def _files(self) -> Iterator[tuple[str, str, Held]]:
        """Yields key, kind and content of the files in their order, up to where the tar breaks."""
        number, first, known = 0, "", False
        try:
            for member in self._archive.members():
                file = posixpath.basename(member.name)
                link = member.issym() or member.islnk()
                if link:
                    self._links[posixpath.normpath(member.name)] = target_of(member)
                if not (member.isreg() or link) or not file or file.startswith("."):
                    continue
                number, first = number + 1, first or member.name
                key, suffix = self._parse(member.name)
                last = posixpath.splitext(f"x{suffix}")[1]  # of "..jpg", too
                known = known or is_known(last or suffix)
                if last and last != suffix and is_known(last):
                    self._tally.dropped(DOTS, f"{self._name}: {member.name}")
                elif link:
                    yield key, kind_of(suffix), target_of(member)
                else:
                    yield from self._file(key, kind_of(suffix), member)
        except tarfile.ReadError as error:
            why = NO_TAR if isinstance(error, NoTar) else "rest of a broken tar"
            self._tally.dropped(why, f"{self._name}: {error}")
            return
        if not known:
            files = f"{number:,} files, such as {first}" if number else "nothing in it"
            self._tally.dropped("tar without pictures and captions", f"{self._name}: {files}")

    def _parse(self, path: str) -> tuple[str, str]:
        """Returns the key of a file, and its suffix."""
        path = unicodedata.normalize("NFC", path.removeprefix("./"))
        folder, _, file = path.rpartition("/")
        if self._reading.key == "last-dot":
            stem, suffix = posixpath.splitext(file)
        else:
            stem, dot, rest = file.partition(".")
            suffix = dot + rest
        return (f"{folder}/{stem}" if folder else stem), suffix

    def _file(
        self, key: str, kind: str, member: tarfile.TarInfo
    ) -> Iterator[tuple[str, str, Held]]:
        """Yields a file, or tallies why it cannot be read."""
        other, place = kind.startswith("."), Place(member.offset_data, member.size)
        name = f"{self._name}: {member.name}"
        text = kind in TEXTS and member.size > MAX_TEXT
        if text and not member.issparse():
            self._tally.dropped(LONG_TEXT, name)
            return
        if member.size > MAX_BYTES or member.issparse():
            if other:
                yield key, kind, b""  # no picture that could be read
            elif member.issparse():
                self._tally.dropped("sparse file in a tar", name)
            else:
                self._tally.dropped("file over 64 MiB", name)
            return
        if not self._archive.packing:
            yield key, kind, place
            return
        content = self._archive.content(place)
        yield key, kind, content if not other or is_picture(content) else b""

    def _add(self, name: str, kind: str, held: Held) -> None:
        """Takes in a file of a key, or tallies why not."""
        other, key = kind.startswith("."), self._key(name, kind)
        if key in self._left:
            if not other and key not in self._told:
                self._told.add(key)
                twice = kind in self._left[key].split()
                tally = self._tally.dropped if twice else self._tally.changed
                tally(DOUBLED if twice else LATE, f"{self._name}: {name}")
            return
        apart = key in self._apart
        files = self._apart[key] if apart else self._waiting.setdefault(key, {})
        if kind in files:
            if not other and key not in self._told:
                self._told.add(key)
                self._tally.dropped(DOUBLED, f"{self._name}: {name}")
        elif not other or sum(kind.startswith(".") for kind in files) < OTHERS:
            files[kind] = _let_go(held) if apart else held
            self._held += 0 if apart else _size(held)

    def _key(self, name: str, kind: str) -> Key:
        """Returns the key that a file belongs to, the last of this name or a new one."""
        last, part = (name, self._parts.get(name, 0)), self._archive.part
        if part == last[1]:
            return last
        if last in self._left:
            files = self._left[last].split()
        else:
            files = list(self._apart.get(last) or self._waiting.get(last) or ())
        if not files or kind in files or ("image" in files and {"txt", "json"} & {*files}):
            self._parts[name] = part
            return name, part
        return last

    def _is_complete(self, files: Mapping[str, Held]) -> bool:
        """Tells whether the files of a key are those of a pair, and can be read at once."""
        if any(isinstance(held, str) for held in files.values()):
            return False
        if not self._archive.packing:
            return "image" in files and len(files) > 1
        return _is_pair(files) or ("image" in files and not self._reading.captions)

    def _targets(self) -> set[str]:
        """Returns the names that links of the keys that wait lead to."""
        waiting = itertools.chain(self._apart.values(), self._waiting.values())
        targets = (held for files in waiting for held in files.values() if isinstance(held, str))
        return {end_of(target, self._links) for target in targets}

    def _read(
        self, key: str, files: Mapping[str, Held], places: Mapping[str, Place]
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yields a key with the contents of its files, or tallies why it cannot be read."""
        contents, name = {}, f"{self._name}: {key}"
        for kind, held in files.items():
            if kind.startswith(".") and "image" in files:
                continue  # not needed
            if isinstance(held, str):
                place = places.get(end_of(held, self._links))
                most = MAX_TEXT if kind in TEXTS else MAX_BYTES
                if self._archive.packing or place is None or place.size > most:
                    large = LONG_TEXT if kind in TEXTS else "file over 64 MiB"
                    why = PACKED if self._archive.packing else large if place else LINK
                    self._tally.dropped(why, f"{name} ({kind.strip('.')} -> {held})")
                    return
                held = place
            if held is None and _is_pair(files):
                self._tally.dropped(FAR, name)
                return
            try:
                contents[kind] = self._archive.content(held) if isinstance(held, Place) else held
            except tarfile.ReadError as error:
                self._tally.dropped("unreadable file", f"{name} ({error})")
                return
        yield key, {kind: content or b"" for kind, content in contents.items()}


def _is_pair(files: Mapping[str, Held]) -> bool:
    """Tells whether a picture and a caption are among the files of a key of a compressed tar."""
    image = "image" in files or any(k.startswith(".") and held != b"" for k, held in files.items())
    return image and not files.keys().isdisjoint({"txt", "json"})


def _let_go(held: Held) -> Held:
    """Lets go of a content; a file of an unknown kind that is no picture has none."""
    return None if isinstance(held, bytes) and held else held


def _size(held: Held) -> int:
    return len(held) if isinstance(held, bytes) else 0
