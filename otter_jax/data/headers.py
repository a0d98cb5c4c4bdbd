"""Reads what the bytes of a picture say of themselves before any pixel is decoded.

That is the format, the orientation that EXIF gives it, and how many scans a JPEG has. All of it
costs a few microseconds, where Pillow would take a hundred to open the file.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Formats that are not read, by the suffix of their files; they are named, never passed over.
FOREIGN = {
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".svg": "SVG",
    ".psd": "Photoshop",
}
_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"\0\0\1\0", "icon (ICO)"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"II\xbc", "JPEG XR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"P4\n", "Netpbm"),
    (b"P5\n", "Netpbm"),
    (b"P6\n", "Netpbm"),
)
_BRANDS = (  # of files in boxes, as MP4 has them
    ((b"avif", b"avis"), "AVIF"),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
)
_SVG = ("<?xml", "<svg", "<!--", "<!doctype svg")
_OTHER = (  # that are no pictures
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull gets the file)"),
)
_ORIENTATION = 0x0112  # the tag's number, EXIF 2.32 section 4.6.4
_SIZES = {1: "B", 3: "H", 4: "I"}  # types of whole numbers that writers give it
_ENTRIES = 1_000  # of a directory, and segments of a file, that are looked at
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # all but restarts, fill and stuffed bytes


class Tag(NamedTuple):
    """Says where the orientation's value lies in a file, and how it is written there.

    Attributes:
      value: 1 to 8.
      place: its first byte.
      form: of struct, such as "<H".
      chunk: first byte of the PNG chunk around it, whose checksum covers it; 0 if there is none.
    """

    value: int
    place: int
    form: str
    chunk: int = 0


def format_of(data: bytes) -> str:
    """Returns the name of a picture's format by its first bytes, "" for what is no picture."""
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, size, 4))}
        for known, name in _BRANDS:
            if not brands.isdisjoint(known):
                return name
    text = _text(data)
    return "SVG" if "<svg" in text and text.startswith(_SVG) else ""


def contents(data: bytes) -> str:
    """Says what bytes are that are no picture, such as "an HTML page"."""
    for beginning, name in _OTHER:
        if data.startswith(beginning):
            return name
    if data[4:8] == b"ftyp":
        return "a video"
    if not data.strip(b"\0"):
        return "zeros alone" if data else "nothing"
    text = _text(data)
    if text.startswith(("<!doctype html", "<html", "<head")) or "<html" in text:
        return "an HTML page"
    return "text" if text else "of no known format"


def _text(data: bytes) -> str:
    """Returns the beginning of a text in small letters; "" if it holds what no text does."""
    text = data[:1024].decode("utf-8-sig", "ignore").strip().lower()
    return "" if re.search("[\0-\x08\x0e-\x1f\x7f]", text) else text


def orientation(data: bytes) -> Tag | None:
    """Finds the orientation in the EXIF block of a JPEG, PNG or WebP; None if it is upright.

    What a TIFF or an AVIF says of its orientation is part of the format: every decoder applies it.
    """
    if data.startswith(b"\xff\xd8"):
        return read_jpeg(data).orientation
    if data.startswith(b"\x89PNG"):
        for start, kind in _png_chunks(data):
            if kind == b"eXIf":
                return _tag(data, start + 8, chunk=start)
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        for start, kind in _riff_chunks(data):
            if kind == b"EXIF":
                prefix = 6 * data.startswith(b"Exif\0\0", start + 8)
                return _tag(data, start + 8 + prefix)
    return None


def upright(data: bytes, tag: Tag) -> bytes:
    """Returns the same file with its orientation set to 1; all other bytes stay."""
    changed = bytearray(data)
    struct.pack_into(tag.form, changed, tag.place, 1)
    if tag.chunk:
        end = tag.chunk + 8 + int.from_bytes(data[tag.chunk : tag.chunk + 4], "big")
        struct.pack_into(">I", changed, end, zlib.crc32(changed[tag.chunk + 4 : end]))
    return bytes(changed)


class Jpeg(NamedTuple):
    """Holds what the segments of a JPEG say before its first scan.

    Attributes:
      orientation: None if it is upright.
      several: whether it may have more than one scan, as a progressive JPEG has.
      pixels: of its size.
      exif: its EXIF blocks, joined; None if there are too many segments to find the first scan.
    """

    orientation: Tag | None
    several: bool
    pixels: int = 0
    exif: bytes | None = None


def read_jpeg(data: bytes) -> Jpeg:
    """Reads the segments of a JPEG up to its first scan (ITU T.81, annex B)."""
    tag, several, components, pixels, at = None, False, 0, 0, 2
    exif: list[bytes] = []
    for _ in range(_ENTRIES):
        if at + 4 > len(data):
            return Jpeg(tag, several, pixels, b"".join(exif))
        if data[at] != 0xFF:  # a stray byte, which decoders forgive
            at = data.find(b"\xff", at)
            if at < 0:
                return Jpeg(tag, several, pixels, b"".join(exif))
            continue
        marker = data[at + 1]
        if marker == 0xFF or marker == 0 or 0xD0 <= marker <= 0xD8:
            at += 1 + (marker != 0xFF)
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            if data.startswith(b"Exif\0\0", at + 4):
                exif.append(data[at + 10 : at + 2 + length])
                tag = _tag(data, at + 10) if tag is None else tag
        elif marker == 0xDA:
            several = several or (at + 4 < len(data) and data[at + 4] < components)
            return Jpeg(tag, several, pixels, b"".join(exif))
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            several = marker & 3 == 2  # progressive
            components = data[at + 9] if at + 9 < len(data) else 0
            height, width = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            pixels = height * width
        at += 2 + length
    return Jpeg(tag, several, pixels)


def count_scans(data: bytes, limit: int) -> int:
    """Counts the scans of a JPEG, up to its end or until there are more than `limit`."""
    if data.count(b"\xff\xda") <= limit:  # fast, and it counts too many at worst
        return data.count(b"\xff\xda")
    scans, at = 0, 2
    while scans <= limit:
        found = _MARKER.search(data, at)
        if not found or data[found.start() + 1] == 0xD9:
            break
        at = found.start()
        scans += data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return scans


def _png_chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the first byte and the kind of each chunk."""
    at = 8
    while at + 12 <= len(data):
        yield at, data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _riff_chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the first byte and the kind of each chunk."""
    at = 12
    while at + 8 <= len(data):
        yield at, data[at : at + 4]
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2


def _tag(data: bytes, at: int, chunk: int = 0) -> Tag | None:
    """Finds the orientation in a TIFF block that begins at `at`; None if there is none, or 1."""
    order = {b"II": "<", b"MM": ">"}.get(data[at : at + 2])
    if order is None or at + 8 > len(data):
        return None
    start = at + struct.unpack_from(order + "I", data, at + 4)[0]
    if start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, start)
    for entry in range(start + 2, start + 2 + 12 * min(count, _ENTRIES), 12):
        if entry + 12 > len(data):
            return None
        number, kind, values = struct.unpack_from(order + "HHI", data, entry)
        if number == _ORIENTATION:
            if kind not in _SIZES or values != 1:
                return None
            form = order + _SIZES[kind]
            (value,) = struct.unpack_from(form, data, entry + 8)
            return Tag(value, entry + 8, form, chunk) if 2 <= value <= 8 else None
    return None
