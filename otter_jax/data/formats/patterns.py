"""Finds the files that a pattern names: globs, and braces as shells and web-datasets have them.

And those in a folder and below it.
"""

import glob
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

from otter_jax.data.captions import clean
from otter_jax.errors import UserError
from otter_jax.files import is_within

MOST = 1_000_000  # names that braces may stand for
_ELSEWHERE = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")


def matches_of(pattern: str) -> list[str]:
    """Returns the paths that exist of a path, a glob or braces; [] if none does.

    "~" and variables such as $HOME at its beginning are expanded, and file:// is taken away.

    Those of braces come in their order, and those of a glob sorted.

    Raises UserError if some names of braces exist and others do not; it names the first. And for
    what is no path, such as a URL or a web-dataset's pipe.
    """
    path = os.path.expanduser(pattern)
    if pattern.startswith("$") and not os.path.exists(pattern):  # no shell reads configs
        path = os.path.expandvars(pattern)
    if pattern.startswith("file://"):  # and a host, which is this one
        path = "/" + urllib.parse.unquote(pattern.removeprefix("file://").partition("/")[2])
    if os.path.exists(path):
        return [path]
    if _ELSEWHERE.match(path):
        raise UserError(
            f"{pattern} is no path on this machine: what lies elsewhere is not fetched. Download "
            "it, or mount it, and give its path."
        )
    names = braces(path)
    if len(names) == 1:
        return _glob(path)
    found = [[n] if os.path.exists(n) else _glob(n) for n in names]
    missing = [name for name, paths in zip(names, found, strict=True) if not paths]
    if missing and any(found):
        raise UserError(
            f"Of the {len(names):,} names of {pattern}, {len(missing):,} match nothing; the first "
            f"is {missing[0]}. A glob, with * in quotes, takes those that are there."
        )
    return list(dict.fromkeys(path for paths in found for path in paths))


def _glob(pattern: str) -> list[str]:
    """Returns the paths that match, sorted, without hidden ones; ** follows no links.

    Links from a folder to one above it would be followed for ever.
    """
    parts = pathlib.Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    first = parts.index("**")
    inner = os.path.join(*parts[first:], *(["*"] if parts[-1] == "**" else []))
    found = set()
    for start in glob.glob(os.path.join(*parts[:first])) if first else [""]:
        for path in pathlib.Path(start).glob(inner):
            if not any(part.startswith(".") for part in path.relative_to(start).parts):
                found.add(str(path))
    return sorted(found)


def braces(pattern: str) -> list[str]:
    """Returns the names that {a,b} and {000..012} in a pattern stand for, in order.

    A range may be followed by ..STEP; its numbers have as many digits as its first or last one,
    if either begins with 0. Braces with neither are left as they are.

    Raises UserError for over a million names.
    """
    found = next((m for m in _BRACES.finditer(pattern) if _parts(m[1]) is not None), None)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], braces(pattern[found.end() :])
    parts = _parts(found[1])
    if len(parts) * len(after) > MOST:
        raise UserError(f"The braces of {pattern} stand for over {MOST:,} names.")
    return [f"{before}{part}{rest}" for part in parts for rest in after]


def _parts(inside: str) -> list[str] | range | None:
    """Returns what a pair of braces stands for; None if that is itself."""
    limits = _RANGE.fullmatch(inside)
    if not limits:
        return inside.split(",") if "," in inside else None
    first, last, step = int(limits[1]), int(limits[2]), max(1, int(limits[3] or 1))
    if abs(last - first) // step > MOST:
        return range(abs(last - first))
    padded = any(re.match(r"-?0\d", limit) for limit in limits.group(1, 2))
    width = max(map(len, limits.group(1, 2))) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def walk(root: pathlib.Path, untrusted: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yields a folder and those below it, without hidden ones, and the names of the files in each.

    Links are followed, but no folder is entered twice. Raises UserError for a folder that cannot be
    read, and for an `untrusted` one if a link leads out of `root`.
    """
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        seen.add(os.path.realpath(folder))
        if untrusted and not is_within(folder, root):
            raise UserError(
                f"{clean(folder)} leads out of {clean(str(root))}, which --untrusted refuses: "
                "remove the link."
            )
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in seen
        )
        yield folder, names


def _refuse(error: OSError) -> None:
    raise UserError(f"The folder {clean(str(error.filename))} cannot be read: {error.strerror}.")
