# ruff: noqa: E501
"""Damages bytes as downloads, disks and enemies do; the same random numbers give the same damage."""

import gzip
import re
import struct
import zlib

# What readers of text, JSON, paths and numbers stumble over.
TOKENS = (
    b'"', b"'", b"\\", b"\0", b"\n", b"\r", b"\t", b",", b";", b"[", b"]", b"{", b"}", b":", b"[" * 2_000,
    b'{"a":' * 2_000, b"(" * 500, b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5_000, b"true", b"\xff\xfe",
    b"\xfe\xff", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", "\u202e".encode(),
    b"/dev/zero", b"/proc/self/status", b"../../../etc/passwd", b"~", b"$HOME", b"file:///", b"data:image/png;base64,",
    b"b'", b"\\N", b"[['a']]", b"['a'" + b" " * 9_000, b"A" * 5_000, b"QUJD" * 300, b"-1", b"0", b"1.5", b"{}", b"[]",
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)  # fmt: skip
LARGEST = 2 << 20  # bytes


def damaged(content: bytes, rng) -> bytes:
    """Returns a content after one to six kinds of damage."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(KINDS)(found, rng)
        del found[LARGEST:]
    return bytes(found)


def _place(found, rng):
    """A byte; headers and ends are as likely as all that is between."""
    near = min(64, len(found))
    return rng.choice((rng.randint(0, near), rng.randint(0, len(found)), len(found) - rng.randint(0, near)))  # fmt: skip


def _span(found, rng):
    start = _place(found, rng)
    return start, min(len(found), start + rng.choice((1, 2, 8, 64, 512, 4_096)))


def _flip(found, rng):
    for _ in range(rng.choice((1, 1, 4, 32))):
        if found:
            found[min(_place(found, rng), len(found) - 1)] ^= 1 << rng.randrange(8)


def _set(found, rng):
    start, stop = _span(found, rng)
    found[start:stop] = bytes(rng.choices(range(256), k=stop - start))


def _cut(found, rng):
    del found[_place(found, rng) :]


def _leave_out(found, rng):
    start, stop = _span(found, rng)
    del found[start:stop]


def _repeat(found, rng):
    start, stop = _span(found, rng)
    found[start:start] = found[start:stop] * rng.choice((1, 2, 30, 1_000))


def _insert(found, rng):
    place = _place(found, rng)
    found[place:place] = rng.choice(TOKENS) * rng.choice((1, 1, 1, 3, 200))


def _number(found, rng):
    """Sets a field of 1 to 8 bytes to a number at a limit."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) & (1 << 8 * size) - 1
    start = _place(found, rng)
    found[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _digits(found, rng):
    """Writes another number in the place of one in a text."""
    there = list(re.finditer(rb"\d+", bytes(found[: 1 << 16])))
    if there:
        start, stop = rng.choice(there).span()
        found[start:stop] = str(rng.choice((*NUMBERS, -1, 10**30, 0.5))).encode()


def _swap(found, rng):
    one, other = _span(found, rng), _span(found, rng)
    found[one[0] : one[1]], found[other[0] : other[1]] = (
        found[other[0] : other[1]], found[one[0] : one[1]],
    )  # fmt: skip


KINDS = (_flip, _flip, _set, _cut, _leave_out, _repeat, _insert, _insert, _number, _number, _digits, _swap)  # fmt: skip


def repacked(content: bytes, rng) -> bytes:
    """Packs, so that damage reaches what is inside."""
    return gzip.compress(content, rng.choice((1, 9)))


def checked_png(content: bytes) -> bytes:
    """Mends the checksums of a PNG's chunks, so that damage reaches their contents."""
    found, at = bytearray(content), 8
    while at + 12 <= len(found):
        (length,) = struct.unpack_from(">I", found, at)
        end = at + 8 + length
        if end + 4 > len(found):
            break
        struct.pack_into(">I", found, end, zlib.crc32(found[at + 4 : end]))
        at = end + 4
    return bytes(found)


def checked_tar(content: bytes) -> bytes:
    """Mends the checksums of all blocks that may be headers of a tar."""
    found = bytearray(content)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar":
            block = found[at : at + 512]
            block[148:156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(found)
