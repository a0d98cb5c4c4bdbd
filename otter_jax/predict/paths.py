r"""Writes paths so that they cannot break a table, and reads them back.

Almost all are written as they are. Where a path has a backslash, a control character or bytes that
are no UTF-8, these are written as C and Python do: `\\`, `\n`, `\r`, `\t`, and `\xff` for a byte.
`printf %b` gives the path back.
"""

import os
import re

_ODD = re.compile("[\\\\\x00-\x1f\x7f\ud800-\udfff]")
_NAMES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BACK = {written[1:].encode(): char.encode() for char, written in _NAMES.items()}
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[\\nrt])")


def written(path: str) -> str:
    r"""Returns a path on one line of valid Unicode.

    >>> written("a\nb")
    'a\\nb'
    """
    return _ODD.sub(_escape, path)


def restored(text: str) -> str:
    """Returns the path that was written as `text`; bytes that are no UTF-8 as os.fsdecode does."""
    if "\\" not in text:
        return text
    return os.fsdecode(_ESCAPE.sub(_unescape, text.encode("utf-8", "surrogateescape")))


def _escape(found: re.Match) -> str:
    char = found[0]
    return _NAMES.get(char) or f"\\x{ord(char) & 0xFF:02x}"


def _unescape(found: re.Match) -> bytes:
    code = found[1]
    return bytes([int(code[1:], 16)]) if code[:1] == b"x" else _BACK[code]
