"""Digests of files, by which damage to a checkpoint is noticed before anything uses it."""

import concurrent.futures
import json
import pathlib
import zlib
from collections.abc import Iterable

from otter_jax.files import open_regular, read_json, write_text

FILE = "digests.json"
_BLOCK = 1 << 20  # bytes read at once
_DAMAGED = (OSError, ValueError, TypeError, IndexError)  # what reading FILE raises then
_THREADS = 8  # zlib lets go of Python's lock while it reads a block


def write(folder: pathlib.Path, *parts: str) -> None:
    """Writes the CRC-32 of every file in these subfolders of `folder` into one file of it.

    Those of other subfolders stay.
    """
    path = folder / FILE
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known = {name: digest for name, digest in known.items() if name.split("/")[0] not in parts}
    write_text(path, json.dumps(known | _digests(folder, _files(folder, parts)), indent=0))


def damaged(folder: pathlib.Path, part: str) -> list[str]:
    """Returns the files in a subfolder that are missing, or are not as they were written.

    A CRC-32 notices every flipped bit, and any other damage but for once in 4 billion times. A
    folder without digests, which an older version wrote, is taken as it is.
    """
    if not (folder / FILE).exists():
        return []
    try:
        known = _known(folder, part)
    except _DAMAGED:
        return [FILE]
    found = _digests(folder, known)
    return [name for name in known if found[name] != known[name]]


def whole(folder: pathlib.Path, part: str) -> list[str]:
    """Returns the files in a subfolder that have a digest, and are as they were written."""
    try:
        known = _known(folder, part)
    except _DAMAGED:
        return []
    found = _digests(folder, known)
    return [name for name in known if found[name] == known[name]]


def _known(folder: pathlib.Path, part: str) -> dict[str, str]:
    known = read_json(folder / FILE)
    return {name: known[name] for name in known if pathlib.Path(name).parts[0] == part}


def _files(folder: pathlib.Path, parts: Iterable[str]) -> list[str]:
    paths = (path for part in parts for path in sorted((folder / part).rglob("*")))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(_digest, [folder / name for name in names]), strict=True))


def _digest(path: pathlib.Path) -> str:
    """Returns eight hexadecimal digits, or why the file cannot be read."""
    crc = 0
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError as error:
        return str(error)
    return f"{crc:08x}"
