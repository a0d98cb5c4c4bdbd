"""Unpacks files, and stops where they unpack to far more than any data does.

A megabyte of bzip2 can hold a terabyte of zeros, for hours or days of reading; of xz, a dictionary
that takes gigabytes of memory. Pictures hardly pack at all, captions and headers of tars to a
hundredth at most.
"""

import bz2
import gzip
import io
import lzma
from typing import Any

import pyarrow as pa

FREE = 256 << 20  # bytes that any file may unpack to
RATIO = 200  # of the bytes beyond
DICTIONARY = 256 << 20  # bytes of memory for xz; `xz -9` takes 64 MiB
BLOCK = 1 << 20  # bytes unpacked at once
PACKINGS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x5d\0\0\x80", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


def packing_of(head: bytes) -> str:
    """Returns what a file is packed with, by its first bytes; "" if it is not."""
    return next((name for mark, name in PACKINGS if head.startswith(mark)), "")


def unpacked(file: io.BufferedIOBase, packing: str) -> io.BufferedReader:
    """Returns what reads the content of a packed file; closing it closes the file.

    Reading raises OSError where it unpacks to more than FREE and RATIO times what was read of it.
    """
    return io.BufferedReader(_Unpacked(file, packing), BLOCK)


class _Unpacked(io.RawIOBase):
    """Reads an unpacked stream, and compares how much comes out with how much went in."""

    def __init__(self, file: io.BufferedIOBase, packing: str):
        self._file, self._packing = file, packing
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._stream, self._place = _stream(self._file, self._packing), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = self._stream.read1(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        if self._place > FREE + RATIO * self._file.tell():
            raise OSError(f"it unpacks to over {RATIO} times its size")
        return len(content)

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte from the beginning on, or from here."""
        offset += self._place if whence == io.SEEK_CUR else 0
        if offset < self._place:
            self._begin()
        room = memoryview(bytearray(min(BLOCK, offset - self._place)))
        while self._place < offset and self.readinto(room[: offset - self._place]):
            pass
        return self._place

    def close(self) -> None:
        self._file.close()
        super().close()


def _stream(file: io.BufferedIOBase, packing: str) -> Any:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=file)
    if packing == "bzip2":
        return bz2.BZ2File(file)
    if packing == "xz":
        return _Xz(file)
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")  # of 128 MiB at most


class _Xz:
    """Unpacks xz, several streams or one, with a limit to its memory, which lzma.open has not."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._ahead = file, b""
        self._decompressor: lzma.LZMADecompressor | None = None

    def read1(self, size: int) -> bytes:
        """Returns up to `size` bytes; none at the end of the file. Raises LZMAError, EOFError."""
        while size:
            if self._decompressor is None or self._decompressor.eof:
                self._ahead = self._ahead or self._file.read(BLOCK)
                self._ahead = self._ahead.lstrip(b"\0") if self._decompressor else self._ahead
                if not self._ahead:
                    return b""
                self._decompressor = lzma.LZMADecompressor(memlimit=DICTIONARY)
            if self._decompressor.needs_input and not self._ahead:
                self._ahead = self._file.read(BLOCK)
                if not self._ahead:
                    raise EOFError("the file ends before its xz stream does")
            found = self._decompressor.decompress(self._ahead, size)
            self._ahead = self._decompressor.unused_data
            if found:
                return found
        return b""
