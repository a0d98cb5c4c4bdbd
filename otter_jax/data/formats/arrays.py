"""Reads tables from JSON files: an array of objects, or {"images": [...], "annotations": [...]}.

In the second, COCO's, an annotation belongs to the image whose `id` is its `image_id`; a row is an
image with its own fields and those of its annotations, as lists. A file is read whole, in some
seven times its size of memory.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from otter_jax.data.formats.lines import LONGEST, open_text
from otter_jax.errors import UserError

ROWS = 5_000  # of a unit
LARGEST = 256 << 20  # bytes of a file; COCO's captions are 92 million
# Values of a row, and of a file; one takes up to 80 bytes, and three to write.
ROW, ARRAY = 1 << 20, 10 << 20


def rows_in(path: pathlib.Path) -> list[Mapping[str, Any]]:
    """Returns the rows of a JSON file.

    Raises UserError if it holds no rows, and ValueError or RecursionError if it is no JSON.
    """
    about = path.stat()
    return _read(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)  # the units of a file follow each other
def _read(path: pathlib.Path, changed: int, size: int) -> list[Mapping[str, Any]]:
    """Reads a file once for as long as it stays the same."""
    with open_text(path) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"it holds over {LARGEST >> 20} MiB: write it as lines of JSON, .jsonl")
    content = parsed(text.decode("utf-8-sig", "replace"), ARRAY)
    rows = content.get("images") if isinstance(content, dict) else content
    if not _are_objects(rows):
        what = f"an object with {_keys(content)}" if isinstance(content, dict) else "no such array"
        raise UserError(
            f"The JSON of {path} is {what}. A table in JSON is an array of objects, each with an "
            'image and its caption, or {"images": [...], "annotations": [...]} as COCO has it.'
        )
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return _joined(rows, annotations) if _are_objects(annotations) else rows


def parsed(text: str, most: int = ROW, **options: Any) -> Any:
    """Parses JSON, with options of json.loads.

    Raises ValueError, also for more than `most` values, or RecursionError.
    """
    if len(text) > most and sum(map(text.count, ",[{")) > most:
        raise ValueError(f"it holds over {most:,} values")
    return json.loads(text, **options)


def is_array(path: pathlib.Path) -> bool:
    """Tells whether a file is JSON as a whole, and not lines of JSON."""
    with open_text(path) as file:
        beginning = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not beginning.startswith(b"{"):
            return beginning.startswith(b"[")
        file.seek(0)
        first = file.readline(LONGEST).removeprefix(b"\xef\xbb\xbf")
        while first and not first.strip():
            first = file.readline(LONGEST)
        try:
            row = parsed(first.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return not path.name.lower().removesuffix(".gz").endswith(("jsonl", "ndjson"))
        return isinstance(row.get("images"), list) and not file.readline().strip()


def _joined(
    images: list[Mapping[str, Any]], annotations: list[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Returns COCO's images, each with the captions of its annotations as a list.

    Of images with the same id the first has them. The captions of an image that is not there make
    a row without image at the end.
    """
    rows = [dict(image) for image in images]
    by_id = {str(row.get("id")): row for row in reversed(rows)}
    for annotation in annotations:
        about = annotation.get("image_id")
        if str(about) not in by_id:
            by_id[str(about)] = {"id": about}
            rows.append(by_id[str(about)])
        if "caption" in annotation:
            by_id[str(about)].setdefault("caption", []).append(annotation["caption"])
    return rows


def _are_objects(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _keys(content: Mapping[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(content)[:6]) + "..." * (len(content) > 6)
