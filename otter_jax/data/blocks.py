"""Counts the blocks that a picture is made of, before a decoder walks through them in Python.

Pillow reads comments, texts and tags when it opens a file. A megabyte of them can take minutes, or
many times the file's memory: a tag of a TIFF may be all of the file, and so may each of 65,535.
The limits are far beyond what programs write.
"""

import re
import struct
from collections.abc import Iterator

from otter_jax.data import headers

COMMENTS = 1_000  # blocks of comments in a GIF, of 255 bytes at most
TEXTS = 200  # texts and profiles in a PNG; each may unpack to a megabyte
TAGS = 4_096  # in a directory of a TIFF
NUMBERS = 500_000  # in the tags of a TIFF: two for each strip or tile
SMALL = 10_000  # blocks that may be of any size; others have
LEAST = 32  # bytes or more, as a rule
_TYPES = {  # of a TIFF: bytes of a value
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8,
    18: 8,
}  # fmt: skip
_OF_BYTES = (1, 2, 6, 7)
_INNER = (34_665, 34_853, 40_965)  # tags that lead to directories: EXIF, GPS, interoperability
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
_PACKED_TEXTS = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")


def excess(data: bytes, jpeg: headers.Jpeg | None = None) -> str:
    """Says what a picture has far too much of, beside scans and pixels; "" if nothing.

    `jpeg` is the header of a JPEG, if it has been read.
    """
    if data.startswith(b"GIF8"):
        return _of_gif(data)
    if data.startswith(b"\x89PNG"):
        return _of_png(data)
    if _TIFF.match(data):
        return _of_tiff(data)
    if data.startswith(b"\xff\xd8"):
        jpeg = jpeg or headers.read_jpeg(data)
        return "segments before pixels" if jpeg.exif is None else _of_tiff(jpeg.exif)
    if data[4:8] == b"ftyp":  # libavif finds the EXIF block; where it lies takes a parser to say
        for number, found in enumerate(_TIFF.finditer(data)):
            if number == TEXTS or _of_tiff(data[found.start() :]):
                return "EXIF tags"
    return ""


def _of_gif(data: bytes) -> str:
    """Walks to the second frame, as Pillow does to see whether there is one."""
    at, end, blocks, comments, frames = 13, len(data), 0, 0, 0
    most = SMALL + end // LEAST
    if end > at and data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1
    while at < end and frames < 2 and data[at] != 0x3B:
        kind, first = data[at], blocks
        if kind == 0x21:
            is_comment = data[at + 1 : at + 2] == b"\xfe"
            at += 2
        elif kind == 0x2C:
            is_comment = False
            flags = data[at + 9] if at + 9 < end else 0
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            frames += 1
        else:  # a stray byte
            at, blocks = at + 1, blocks + 1
            if blocks > most:
                return "stray bytes"
            continue
        while at < end and data[at]:
            at += data[at] + 1
            blocks += 1
            if blocks > most:
                return "blocks of a few bytes"
        at, blocks = at + 1, blocks + 1
        comments += blocks - first if is_comment else 0
        if comments > COMMENTS:
            return "comments"
    return ""


def _of_png(data: bytes) -> str:
    at, chunks, texts = 8, 0, 0
    most = SMALL // 10 + len(data) // (16 * LEAST)  # usual are 8,192 bytes
    while at + 12 <= len(data):
        chunks += 1
        texts += data[at + 4 : at + 8] in _PACKED_TEXTS
        if texts > TEXTS:
            return "texts or colour profiles"
        if chunks > most:
            return "chunks of a few bytes"
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return ""


def _of_tiff(data: bytes) -> str:
    """Looks at the first two directories, and at those that their tags lead to."""
    if not _TIFF.match(data):
        return ""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    first = _number(data, 8 if big else 4, order + ("Q" if big else "I"))
    left, seen, held, numbers = [(first, 1)], set(), 0, 0
    while left:
        start, following = left.pop()
        if start in seen or not start:
            continue
        seen.add(start)
        count = _number(data, start, order + ("Q" if big else "H"))
        if min(count, (len(data) - start) // 12) > TAGS:
            return "tags"
        for tag, kind, values, value in _entries(data, start, count, order, big):
            size = _TYPES.get(kind, 0) * values
            held += size if size > (8 if big else 4) else 0
            numbers += 0 if kind in _OF_BYTES else values * (kind in _TYPES)
            if held > len(data) + (1 << 16) or numbers > NUMBERS:
                return "content in tags" if numbers <= NUMBERS else "numbers in tags"
            if tag in _INNER:
                left.append((value, 0))
        if following:
            end = start + (8 + 20 * count if big else 2 + 12 * count)
            left.append((_number(data, end, order + ("Q" if big else "I")), 0))
    return ""


def _entries(
    data: bytes, start: int, count: int, order: str, big: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Yields tag, type, number of values, and value or where the values are."""
    form, at = (order + "HHQQ", start + 8) if big else (order + "HHII", start + 2)
    size = struct.calcsize(form)
    for place in range(at, min(at + count * size, len(data) - size + 1), size):
        yield struct.unpack_from(form, data, place)


def _number(data: bytes, at: int, form: str) -> int:
    """Returns a number, 0 beyond the end."""
    return struct.unpack_from(form, data, at)[0] if at + struct.calcsize(form) <= len(data) else 0
