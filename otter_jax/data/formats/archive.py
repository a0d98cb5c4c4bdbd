"""Reads the members of a tar, plain or compressed, in their order.

A tar is read to the end of its file, past end markers: tars joined by `cat` are one. What tarfile
takes for the end, a damaged header or the end of a file that was cut, is an error here, and so are
sizes that no file has: a header can claim 2^60 bytes. Of a compressed tar the content of a member
can be read only while it is the current one; of a plain tar at any time, by its place.
"""

import contextlib
import lzma
import os
import pathlib
import posixpath
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from otter_jax.data import headers
from otter_jax.data.formats.packed import packing_of, unpacked
from otter_jax.files import open_regular

# Of names, and by content.
SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
# What tarfile's parsers let out at a broken header, and what unpacking raises.
_HEADER = (ValueError, IndexError, KeyError, OverflowError, RecursionError)
_PACKED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
MAX_EXTENDED = 1 << 16  # bytes of the long names and attributes of a member
MAX_LINKS = 40  # from one to the next; the limit that systems have, too


class Place(NamedTuple):
    """Says where the content of a member is: its first byte in the unpacked tar, and its size."""

    offset: int
    size: int


class NoTar(tarfile.ReadError):
    """Raised for a file that does not begin as a tar does."""


class _Header(tarfile.TarInfo):
    """Raises an error at a cut or damaged header, which tarfile takes for the end of the tar."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > MAX_EXTENDED:  # it would be read at once
            raise tarfile.InvalidHeaderError(f"a name or attributes of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: "_Tar") -> "_Header":
        begin = archive.offset
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            archive.ended = True
            raise
        except tarfile.EmptyHeaderError as error:
            if archive.ended:
                raise  # the end of the file follows the end of the tar
            if not begin:
                raise NoTar("the file is empty") from error
            raise tarfile.ReadError("the file ends, without an end marker") from error
        except tarfile.HeaderError as error:
            if not begin:
                raise NoTar(str(error)) from error
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or archive.offset <= begin:
            archive.offset = begin
            raise tarfile.ReadError(f"a member of {header.size:,} bytes")
        archive.part += archive.ended
        archive.ended = False
        return header


class _Tar(tarfile.TarFile):
    """Goes through the headers of a tar that is open.

    Attributes:
      ended: whether the block before was an end marker.
      part: the number of end markers that files came after.
    """

    tarinfo = _Header
    ended = False
    part = 0


class Archive(contextlib.AbstractContextManager):
    """A tar that is open.

    Attributes:
      packing: "gzip", "bzip2", "xz" or "zstd"; "" for a plain tar.
      part: the number of the current member's tar, of those that are joined.
    """

    def __init__(self, path: pathlib.Path):
        """Raises OSError if there is no such file, or it cannot be read."""
        self._file = open_regular(path)  # closed by __exit__
        self._size = os.fstat(self._file.fileno()).st_size
        self._head = self._file.read(1 << 10)
        self.packing = packing_of(self._head)
        self._stream: Any = self._file
        self.part = 0

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._file.tell()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yields the members in their order, from the beginning of the tar.

        Raises NoTar, which says what the file is instead, or another ReadError where it is broken.
        """
        self._file.seek(0)
        self._stream = unpacked(self._file, self.packing) if self.packing else self._file
        tar = None
        try:
            tar = _Tar(fileobj=self._stream, ignore_zeros=True)
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile remembers every header it has seen
                size = member.size if member.isreg() and not member.issparse() else 0
                if not self.packing and member.offset_data + size > self._size:
                    tar.offset = member.offset
                    raise tarfile.ReadError(f"the file ends within a member of {size:,} bytes")
                self.part = tar.part
                yield member
        except NoTar as error:
            what = headers.format_of(self._head) or headers.contents(self._head)
            if self.packing:
                what = f"packed with {self.packing}"
            raise NoTar(f"{what} ({error})") from error
        except (*_HEADER, *_PACKED, tarfile.TarError) as error:
            why = "its header cannot be read" if isinstance(error, _HEADER) else error
            place = min(tar.offset, self._stream.tell()) if tar else 0  # sizes may be untrue
            raise tarfile.ReadError(f"after {place:,} bytes: {why}") from error

    def content(self, place: Place) -> bytes:
        """Returns the content of a member; in a compressed tar it must be the current one.

        Raises ReadError if it cannot be read.
        """
        try:
            if self.packing:
                content = self._stream.read(place.size)
            else:
                content = os.pread(self._file.fileno(), place.size, place.offset)
        except _PACKED as error:
            raise tarfile.ReadError(f"after {place.offset:,} bytes: {error}") from error
        if len(content) < place.size:
            raise tarfile.ReadError(f"after {place.offset:,} bytes: the file ends within a member")
        return content

    def places(self, names: Collection[str]) -> dict[str, Place]:
        """Finds the places of those of these names that are members of a plain tar."""
        found: dict[str, Place] = {}
        with contextlib.suppress(tarfile.ReadError):  # they have been met before
            for member in self.members():
                name = posixpath.normpath(member.name)
                if name in names and member.isreg() and not member.issparse():
                    found.setdefault(name, Place(member.offset_data, member.size))
        return found


def target_of(member: tarfile.TarInfo) -> str:
    """Returns the name that a link leads to; a file only if a member of the tar has that name."""
    folder = "" if member.islnk() else posixpath.dirname(member.name)
    return posixpath.normpath(posixpath.join(folder, member.linkname))


def end_of(target: str, links: Mapping[str, str]) -> str:
    """Returns the name that is no link to which links lead, "" if they lead nowhere.

    `links` holds the target of every link of a tar, by name.
    """
    for _ in range(MAX_LINKS):
        if target not in links:
            return target
        target = links[target]
    return ""
