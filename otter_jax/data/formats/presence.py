"""Looks whether any pair of a table is there, before time is spent on all of them."""

import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from otter_jax.data.captions import clean
from otter_jax.data.formats.cells import captions_of, image_of, short
from otter_jax.data.images import SUFFIXES
from otter_jax.errors import UserError

PATH = 300  # characters of a path in a message
NEARBY = 100  # folders beside a table that are tried as root
TRIED = 20  # files that are looked for there; names such as 0.jpg are in many folders


def has_pairs(
    table: pathlib.Path, cells: Iterable[tuple[Any, Any]], root: pathlib.Path, captions: bool
) -> bool:
    """Looks for the first image that is there, with a caption; returns False without rows.

    Args:
      table: for the message.
      cells: what the columns of images and captions hold, row by row.
      root: of relative paths.
      captions: whether an image needs one.

    Raises UserError if there are rows, and no such pair; it names the first image or caption.
    """
    missing: list[tuple[str, pathlib.Path]] = []
    number, why, what, of_caption = 0, "", "", ""
    for cell, caption in cells:
        number += 1
        found = image_of(cell, root)
        if found.image is None:
            why, what = why or found.why, what or found.path
        elif isinstance(found.image, pathlib.Path) and not _is_file(found.image):
            if len(missing) < TRIED:
                missing.append((found.path, found.image))
        else:
            texts, reason, _ = captions_of(caption)
            if not captions or any(map(clean, texts)):
                return True
            of_caption = of_caption or reason or "empty caption"
    if of_caption:
        raise UserError(
            f"{_counted(table, number)} no image with a caption. The first: {of_caption}. Is "
            "another column meant? --caption names it."
        )
    if missing:
        raise UserError(_nothing_at(table, number, missing, root))
    if why:
        named = f" ({short(what)})" if what else ""
        advice = " img2dataset downloads them, and its tars are read." if "URL" in why else ""
        raise UserError(
            f"{_counted(table, number)} no image. The first: {why}{named}.{advice} Is another "
            "column meant? --image names it."
        )
    return number > 0


def _nothing_at(
    table: pathlib.Path,
    number: int,
    missing: Sequence[tuple[str, pathlib.Path]],
    root: pathlib.Path,
) -> str:
    """Returns the message that no file of a table is there, with what may be meant instead."""
    text, path = missing[0]
    said = f"{_counted(table, number)} no image that is there"
    said = f"{said}; the first is looked for at {short(str(path), PATH)}"
    ending = next((s for s in SUFFIXES if _is_file(path.with_name(path.name + s))), "")
    if ending:
        return f"{said}. There is one with {ending} at its end: write the names with it."
    alike = _alike(path)
    if alike:
        return f"{said}. There is {alike}: write the names with the capitals that the files have."
    is_absolute = pathlib.Path(text).is_absolute() or pathlib.PureWindowsPath(text).drive
    if is_absolute or text.startswith(("~", "$", "file:")):
        return f"{said}. Mend the paths, or make them relative and give their folder as --root DIR."
    other = next(
        (f for f in _nearby(table) if all(_is_file(f / text) for text, _ in missing)), None
    )
    if other:
        return f"{said}. It is there with --root {shlex.quote(str(other))}"
    return f"{said}: paths are relative to {root}. Give another folder as --root DIR."


def _alike(path: pathlib.Path) -> str:
    """Returns the file in the same folder whose name differs in capitals alone; "" if none does."""
    try:
        names = os.listdir(path.parent)
    except (OSError, ValueError):
        return ""
    return next((name for name in names if name.casefold() == path.name.casefold()), "")


def _counted(table: pathlib.Path, number: int) -> str:
    return f"The table {table} has {number:,} row{'s' * (number > 1)} and"


def _nearby(table: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folders that paths may be meant from: here, above the table, and beside it."""
    home = table.resolve().parent
    yield pathlib.Path.cwd()
    yield from (home, *list(home.parents)[:3])
    for above in (home, home.parent):
        try:
            beside = sorted(folder for folder in above.iterdir() if folder.is_dir())
        except OSError:
            continue
        yield from beside[:NEARBY]


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return False
