"""What tars and folders share: the files that make up a key, and the pairs they make.

A key has a picture and its caption in KEY.txt, or in KEY.json under "caption" or "captions", a text
or a list of texts, each of which makes a pair; where there are both, KEY.txt counts. A KEY.txt of
several lines is one caption, or with --lines one per line. KEY.cls, a class's number or name, goes
into the record's JSON. A file of no known suffix is taken for the picture if there is no other and
its content is one. Text is UTF-8, or what a byte order mark says, or UTF-16 by its zeros.
"""

import codecs
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from otter_jax.data import headers
from otter_jax.data.build.plan import Record, pairs
from otter_jax.data.build.report import Tally
from otter_jax.data.formats.cells import captions_of
from otter_jax.data.formats.reading import USUAL, Reading
from otter_jax.data.images import SUFFIXES
from otter_jax.files import open_regular

# What a file is, by its suffix.
KINDS = dict.fromkeys(SUFFIXES, "image") | {".txt": "txt", ".json": "json", ".cls": "cls"}
MAX_TEXT = 4 << 20  # bytes of KEY.txt, KEY.json or KEY.cls; JSON takes 20 times as much memory
LONG_TEXT = "text of over 4 MiB"
TEXTS = ("txt", "json", "cls")
HEAD = 1 << 10  # bytes that tell whether a file is a picture

# Of one key, by kind: "image", "txt", "json", "cls", and ".suffix" of a file of another kind. The
# content, or for an image and other kinds the file that holds it.
Members = Mapping[str, bytes | pathlib.Path]

_MARKS = (  # UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def details(reading: Reading) -> dict[str, str]:
    """Returns what a set was told about its tars or its folder, for `Plan.details`."""
    captions = "needed" if reading.captions else "not needed"
    lines = "a caption each" if reading.lines else "joined"
    return {"captions": captions, "lines of KEY.txt": lines, "paths": reading.paths}


def kind_of(suffix: str) -> str:
    """Returns the kind of a file: a value of KINDS, or its suffix in small letters."""
    return KINDS.get(suffix.lower(), suffix.lower() or ".")


def is_known(suffix: str) -> bool:
    """Tells whether a suffix is that of a picture, read or not, or of what belongs to one."""
    return suffix.lower() in KINDS or suffix.lower() in headers.FOREIGN


def is_picture(content: bytes | pathlib.Path) -> bool:
    """Tells whether a file begins as a picture does."""
    if isinstance(content, pathlib.Path):
        try:
            with open_regular(content) as file:
                content = file.read(HEAD)
        except (OSError, ValueError):
            return False
    return bool(headers.format_of(content[:HEAD]))


def records(
    key: str, members: Members, name: str, tally: Tally, reading: Reading = USUAL
) -> Iterator[Record]:
    """Yields the records of a key, one per caption, or tallies why there is none.

    Files of other kinds alone are passed over.
    """
    known = {kind: content for kind, content in members.items() if not kind.startswith(".")}
    if "image" not in known:
        others = [kind for kind in members if kind.startswith(".")]
        found = _picture(known, {kind: members[kind] for kind in others}, name, tally)
        if found is None and others:
            return
        if found is not None:
            known["image"] = found
    image = known.get("image")
    if image is None:
        tally.dropped("caption without image", name)
        return
    if reading.captions and not {"txt", "json"} & known.keys():
        tally.dropped("image without caption", name)
        return
    about, text = _sidecar(known, name, tally)
    captions = _captions(known, about, name, tally, reading)
    yield from pairs(
        name,
        image=image,
        captions=captions,
        key=key,
        sidecar=text,
        required=reading.captions,
        tally=tally,
    )


def _picture(
    known: Members, others: Members, name: str, tally: Tally
) -> bytes | pathlib.Path | None:
    """Returns the one among files of other kinds that is a picture; tallies them if none is."""
    foreign = next((kind for kind in others if kind in headers.FOREIGN), None)
    if foreign:
        why = f"{headers.FOREIGN[foreign]} picture, not read: convert it to JPEG or PNG"
        return tally.dropped(why, f"{name}{foreign}")
    if not known or not others:
        return None
    kind = next((kind for kind, content in others.items() if is_picture(content)), None)
    if kind is None:
        return tally.dropped("file of an unknown kind in place of an image", name + min(others))
    tally.changed("image known by its content, not by its suffix", f"{name}{kind.rstrip('.')}")
    return others[kind]


def _captions(known: Members, about: Any, name: str, tally: Tally, reading: Reading) -> list[str]:
    """Returns the captions of a key; tallies what is none."""
    if "txt" in known:
        text = text_of(known["txt"], name, tally).strip()
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        if reading.lines:
            return lines or [""]
        if len(lines) > 1:
            tally.changed("caption of several lines, joined (--lines makes a pair of each)", name)
        return [" ".join(lines)]
    found = about if isinstance(about, dict) else {}
    caption = found.get("caption")
    captions, why, note = captions_of(found.get("captions") if caption in (None, []) else caption)
    if note:
        tally.changed(note, name)
    if why and (captions or reading.captions):
        tally.dropped(why, name)
    return captions


def _sidecar(known: Members, name: str, tally: Tally) -> tuple[Any, str]:
    """Returns what KEY.json holds, None for nothing, and the record's JSON: that, and the class."""
    text, about = "{}", None
    if "json" in known:
        text = text_of(known["json"], name, tally)
        try:
            about = json.loads(text)
        except (ValueError, RecursionError):
            tally.changed("sidecar is not JSON, left out", name)
            text = "{}"
    if "cls" in known:
        label = text_of(known["cls"], name, tally).strip()
        if about is not None and not isinstance(about, dict):
            tally.changed("sidecar is no JSON object, left out", name)
        fields = about if isinstance(about, dict) else {}
        number = re.fullmatch(r"[+-]?[0-9]{1,18}", label)
        text = json.dumps(fields | {"cls": int(label) if number else label})
    return about, text


def text_of(content: bytes, name: str, tally: Tally) -> str:
    """Returns the text that bytes are, without a byte order mark; other than UTF-8 is tallied.

    Bytes that are neither become U+FFFD.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:HEAD] and len(content) % 2 == 0:
        even, odd = (content[start:HEAD:2] for start in (0, 1))
        if odd.count(0) > len(odd) // 2 >= even.count(0):
            encoding = "utf-16-le"
        elif even.count(0) > len(even) // 2 >= odd.count(0):
            encoding = "utf-16-be"
    if encoding:
        tally.changed("text in UTF-16 or UTF-32, not UTF-8", name)
    return content.decode(encoding or "utf-8-sig", "replace")
