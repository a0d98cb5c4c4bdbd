"""Reads lines from a range of bytes of a text file, gzipped or not.

The position of a line is "byte N". Text is UTF-8; bytes that are not become U+FFFD. Text that
begins with the byte order mark of UTF-16 is read as if it were UTF-8, from its beginning.
"""

import codecs
import collections
import io
import pathlib
from collections.abc import Iterator

from otter_jax.data.formats.packed import packing_of, unpacked
from otter_jax.files import open_regular

RANGE = 1 << 20  # bytes of a text that are read in one go
LONGEST = 32 << 20  # bytes of a line, or of the lines of a row: a picture of 24 MiB in base64
LONG = "\0\n"  # comes in the place of a longer line, which is passed over
TOO_LONG = "a line over 32 MiB"
BACK = 24  # lines that are held, so that one can go back to them
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def byte_ranges(path: pathlib.Path, size: int = RANGE, start: int = 0) -> list[tuple[int, int]]:
    """Cuts a text into ranges (begin, end) of some `size` bytes; all end with a line."""
    end, spans = path.stat().st_size, []
    with open_regular(path) as file:
        while start < end:
            file.seek(min(start + size, end) - 1)
            file.readline()  # to the end of the line that it is in
            spans.append((start, file.tell()))
            start = file.tell()
    return spans


def lines_in(path: pathlib.Path, start: int = 0, stop: int = -1) -> Iterator[tuple[str, str]]:
    """Yields each line in a byte range, after its position "byte N"; without a byte order mark."""
    with open_text(path) as file:
        file.seek(start)
        for place, line in placed(Lines(file, start, stop)):
            yield place, line if start or place != "byte 0" else line.removeprefix("\ufeff")


def open_text(path: pathlib.Path) -> io.BufferedIOBase:
    """Opens a text to read its bytes: unpacked if it is gzipped, UTF-16 as UTF-8."""
    file = open_regular(path)
    if packing_of(file.read(8)) == "gzip":
        file = unpacked(file, "gzip")
    file.seek(0)
    if file.read(2) in _UTF_16:
        return io.BufferedReader(_Recoded(file), RANGE)
    file.seek(0)
    return file


def is_packed(path: pathlib.Path) -> bool:
    """Tells whether a file is gzipped, by its content: some unpack .gz and keep the name."""
    with open_regular(path) as file:
        return packing_of(file.read(8)) == "gzip"


def is_cut_freely(path: pathlib.Path) -> bool:
    """Tells whether reading may begin anywhere: not in what is gzipped or UTF-16."""
    if is_packed(path):
        return False
    with open_regular(path) as file:
        return file.read(2) not in _UTF_16


class _Recoded(io.RawIOBase):
    """Reads a file of UTF-16 as the bytes of UTF-8, without its mark."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._text = io.TextIOWrapper(self._file, "utf-16", errors="replace", newline="")
        self._left, self._at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            self._left = self._text.read(RANGE).encode("utf-8", "replace")
        number = min(len(buffer), len(self._left))
        buffer[:number], self._left = self._left[:number], self._left[number:]
        self._at += number
        return number

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        if offset < self._at:
            self._text.detach()
            self._begin()
        while self._at < offset and self.readinto(memoryview(bytearray(offset - self._at))):
            pass
        return self._at

    def close(self) -> None:
        self._text.close()
        super().close()


class Lines:
    """Yields the lines of a file up to byte `stop`, or to the end if that is negative.

    In the place of a line of over LONGEST bytes comes LONG.

    Attributes:
      position: the byte where the next line begins.
    """

    def __init__(self, file: io.BufferedIOBase, position: int = 0, stop: int = -1):
        self._file, self.position, self._stop = file, position, stop
        # The last lines, and those that were gone back to: their lengths, and what they are.
        self._past: collections.deque[tuple[int, bytes]] = collections.deque(maxlen=BACK)
        self._next: collections.deque[tuple[int, bytes]] = collections.deque()
        self._held = 0  # bytes of the last lines

    def back_to(self, position: int) -> None:
        """Goes back to the beginning of one of the last BACK lines, or of LONGEST bytes of them.

        They are held, since a packed file would have to be unpacked from its beginning.
        """
        while self.position > position:
            line = self._past.pop()
            self._next.appendleft(line)
            self.position -= line[0]
            self._held -= len(line[1])

    def __iter__(self) -> Iterator[str]:
        while self._stop < 0 or self.position < self._stop:
            length, line = self._next.popleft() if self._next else self._read()
            if not length:
                return
            self.position += length
            self._remember(length, line)
            yield line.decode("utf-8", "replace")

    def _read(self) -> tuple[int, bytes]:
        line = self._file.readline(LONGEST)
        length = len(line)
        if length < LONGEST or line.endswith(b"\n"):
            return length, line
        while piece := self._file.readline(RANGE):
            length += len(piece)
            if piece.endswith(b"\n"):
                break
        return length, LONG.encode()

    def _remember(self, length: int, line: bytes) -> None:
        if len(self._past) == BACK:
            self._held -= len(self._past[0][1])
        self._past.append((length, line))
        self._held += len(line)
        while self._held > 2 * LONGEST:  # a row of LONGEST bytes, and the line that is too much
            self._held -= len(self._past.popleft()[1])


def placed(lines: Lines) -> Iterator[tuple[str, str]]:
    """Yields the position of each line, and the line."""
    place = f"byte {lines.position}"
    for line in lines:
        yield place, line
        place = f"byte {lines.position}"


def fields_of(line: str) -> list[str]:
    """Returns the fields of a line of TSV; [] of an empty one."""
    fields = line.rstrip("\r\n").split("\t")
    if fields == [""]:
        return []
    if '"' not in line:  # most lines: planning a table reads all of them
        return fields
    quoted = (len(f) > 1 and f[0] == f[-1] == '"' for f in fields)
    return [f[1:-1].replace('""', '"') if q else f for f, q in zip(fields, quoted, strict=True)]
