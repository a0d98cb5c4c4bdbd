"""What a cell of a table holds: an image in one of several forms, and a caption or several.

An image is a path, bytes, bytes in base64 (alone or as a data: URI), or a struct of bytes and path
as Hugging Face writes it. Captions are a text, a number, a list of them, or a text that writes such
a list as JSON or Python do.
"""

import ast
import base64
import binascii
import decimal
import itertools
import json
import math
import numbers
import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from otter_jax.data.build.plan import MOST_CAPTIONS
from otter_jax.data.captions import clean

LONGEST = 4_096  # characters of a path: PATH_MAX of Linux
NAME = 120  # characters of a name in a report
URLS = ("http://", "https://", "s3://", "gs://", "ftp://")
# How files of pictures begin: JPEG, PNG, GIF, BMP, TIFF (two), WebP's RIFF; AVIF's has a length.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s_-]{40,}={0,2}\s*")
_NO_PATH = 1_024  # characters without a dot, which are base64 of whatever it may be
_TEXT = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_ITEM = rf"(?:{_TEXT}|None|nan)"
# Possessive: a text that is nearly such a list is not tried in its square of ways.
_LIST = re.compile(rf"\[\s*+{_ITEM}(?:[\s,]++{_ITEM})*+[\s,]*+\]", re.DOTALL)
NULL = "\\N"  # as MySQL, Hive and PostgreSQL write it in text


class Image(NamedTuple):
    """An image of a cell: its bytes or file, or why there is none, and the path that is its key."""

    image: bytes | pathlib.Path | None
    path: str = ""
    why: str = ""


def image_of(value: Any, root: pathlib.Path) -> Image:
    """Finds the image that a cell holds; paths are relative to `root`."""
    path = ""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        path = value.get("path") if isinstance(value.get("path"), str) else ""
        value = value.get("bytes") or path
    if isinstance(value, bytes | bytearray | memoryview):
        return Image(bytes(value), path) if value else Image(None, path, "caption without image")
    if value is None or value in ("", NULL) or (isinstance(value, float) and value != value):
        return Image(None, path, "caption without image")
    if not isinstance(value, str):
        return Image(None, path, f"image that is {kind_of(value)}, not a path or bytes")
    if value.startswith("data:"):
        decoded = _decoded(value.partition(",")[2]) if "base64" in value[:80] else None
        return Image(decoded, path, "" if decoded else "data: URI that is no picture in base64")
    if value.startswith(URLS):
        return Image(None, value, "URL instead of an image: download them first")
    if value.startswith(("b'", 'b"')):  # as Python prints bytes
        value = value[2:-1]
        if _BASE64.fullmatch(value) is None:
            return Image(None, path, "image that is bytes as Python prints them: write base64")
    decoded = _decoded(value)
    if decoded:
        return Image(decoded, path)
    if len(value) > LONGEST:
        return Image(None, path, f"text of over {LONGEST:,} characters instead of an image")
    return Image(_file(value, root), path or value)


def captions_of(value: Any) -> tuple[list[str], str, str]:
    """Returns the captions that a cell holds, why one is none, and how they were read.

    The last two are reasons for a tally, or "".
    """
    if isinstance(value, str):
        texts = _listed(value)
        if texts == [] or value.strip() == NULL:
            return [], "missing caption", ""
        if texts is None:
            return [value], "", ""
        return texts, "", "caption that is a list written as text, read as its captions"
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace")], "", ""
    if _is_list(value):
        texts, whys, notes = [], [], []
        for item in value:
            if _is_list(item) or item is None:
                whys += ["caption that is a list of lists, no text"] if _is_list(item) else []
                continue
            of_item, why, note = captions_of(item)
            texts += of_item
            whys.append(why)
            notes.append(note)
        why = next(filter(None, whys), "" if texts else "missing caption")
        return texts, why, next(filter(None, notes), "")
    if value is None:
        return [], "missing caption", ""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | decimal.Decimal):
        return [], f"caption that is {kind_of(value)}, no text", ""
    if not math.isfinite(value):
        return [], "missing caption", ""
    return [str(value)], "", "caption that is a number, taken as text"


def kind_of(value: Any) -> str:
    """Returns what a value is, in words."""
    if isinstance(value, bool | np.bool_):
        return "true or false"
    if isinstance(value, Mapping):
        return "an object"
    if _is_list(value):
        return "a list"
    return "a number" if isinstance(value, numbers.Number) else f"a {type(value).__name__}"


def short(text: str, most: int = NAME) -> str:
    """Returns a text on one line, of `most` characters: the middle of a longer one is left out."""
    half = most // 2
    if len(text) > 2 * most:
        text = f"{text[:most]}{text[-most:]}"
    text = clean(text)
    return text if len(text) <= most else f"{text[: half - 3]}...{text[-half:]}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _decoded(text: str) -> bytes | None:
    """Returns the file that base64 means; None for any other text, such as a path."""
    if _BASE64.fullmatch(text[:256]) is None:  # a path has a dot, or is shorter
        return None
    plain = re.sub(r"\s+", "", text).rstrip("=").translate({45: "+", 95: "/"})
    try:
        content = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    is_known = content.startswith(_MAGIC) or content[4:8] == b"ftyp"
    return content if is_known or len(text) > _NO_PATH else None


def _file(text: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the file that a path names, or if it is not there that its writer may have meant."""
    path, others = root / text, [root / other for other in _meant(text) if other != text]
    if not others or path.exists():
        return path
    written = others[0] if text.startswith(("~", "$", "file://")) else path
    return next((other for other in others if other.exists()), written)


def _meant(text: str) -> Iterator[str]:
    """Yields what a path may mean on this machine, beside what it says."""
    if text.startswith("file://"):
        yield "/" + urllib.parse.unquote(text.removeprefix("file://").partition("/")[2])
    if text.startswith(("~", "$")):
        yield os.path.expanduser(os.path.expandvars(text))
    yield text.strip()
    yield text.replace("\\", "/")  # Windows
    if not text.isascii():  # macOS writes accents as characters of their own
        yield from (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))


def _listed(text: str) -> list[str] | None:
    """Returns the texts of a list that is written as JSON, Python or NumPy do; None of others.

    What is null in it is left out.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if _LIST.fullmatch(text) is None:
            return None
        try:
            parts = itertools.islice(re.finditer(_TEXT, text, re.DOTALL), MOST_CAPTIONS + 1)
            found = [ast.literal_eval(part[0]) for part in parts]
        except (ValueError, SyntaxError):
            return None
    if not isinstance(found, list):
        return None
    found = [item for item in found if item is not None and item == item]  # NaN is not itself
    return found if all(isinstance(item, str) for item in found) else None
