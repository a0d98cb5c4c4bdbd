"""Finds out which kind of data a path is, and plans a set of it: tables, tars or sidecars."""

import pathlib
from collections.abc import Sequence

from otter_jax.data.build.plan import Options, Plan
from otter_jax.data.captions import clean
from otter_jax.data.formats import archive, sidecars, tables, tars
from otter_jax.data.formats.folders import NAMED, tables_of
from otter_jax.data.formats.patterns import matches_of
from otter_jax.data.formats.reading import OF_FILES, OF_TABLES, USUAL, Reading
from otter_jax.errors import UserError
from otter_jax.files import is_within

HINTS = {  # by suffixes that people try
    ".txt": " If it is a table, call it .csv.",
    ".xlsx": " Save the workbook as .csv.",
    ".xls": " Save the workbook as .csv.",
    ".arrow": " Write it as .parquet.",
    ".feather": " Write it as .parquet.",
    ".zip": " Unpack it.",
    ".bz2": " Unpack it.",
    ".xz": " Unpack it.",
    ".zst": " Unpack it.",
}


def plan_of(
    sources: Sequence[str],
    name: str,
    options: Options,
    reading: Reading = USUAL,
) -> Plan:
    """Plans a set `name` of `sources`: files, folders or globs, all of one kind.

    Raises UserError for a source that is not there, of no known kind, or of another kind than the
    first, and for a `reading` that is of another kind.
    """
    kinds: dict[str, list[pathlib.Path]] = {}
    seen = set()
    for source in sources:
        for kind, path in _paths(source, reading):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1:
        several = ", ".join(f"{kind} ({paths[0]})" for kind, paths in kinds.items())
        raise UserError(f"The sources are of several kinds: {several}. Make a set of each.")
    ((kind, paths),) = kinds.items()
    if kind == "tables":
        reading.check(f"tables, such as {paths[0].name}", OF_TABLES)
        return tables.plan(name, paths, options, reading)
    reading.check(f"{kind}, such as {paths[0].name}", OF_FILES)
    if kind == "tars":
        return tars.plan(name, [str(path) for path in paths], options, reading)
    if len(paths) > 1:
        raise UserError(f"Give one folder of pictures, not {len(paths)}: the one they are all in.")
    return sidecars.plan(name, paths[0], options, reading)


def _paths(source: str, reading: Reading) -> list[tuple[str, pathlib.Path]]:
    """Returns kind and path of all files and folders that a source names."""
    matches = matches_of(source)
    if not matches:
        raise UserError(f"There is nothing at {source}.")
    found = []
    for match in map(pathlib.Path, matches):
        if not match.is_dir():
            found.append((_kind(match), match))
            continue
        listing = _listing(match)
        inside = [path for path in listing if path.name.lower().endswith(archive.SUFFIXES)]
        if inside:
            _print_taken(match, inside, [path for path in listing if path not in inside])
        inside = inside or tables_of(match, reading)
        leads = next((p for p in inside if reading.untrusted and not is_within(p, match)), None)
        if leads:
            raise UserError(f"{leads} leads out of {match}, which --untrusted refuses: remove it.")
        found += [(_kind(path), path) for path in inside] or [("pictures", match)]
    return found


def _print_taken(
    folder: pathlib.Path, tars: list[pathlib.Path], others: list[pathlib.Path]
) -> None:
    """Prints which tars of a folder are taken, and what lies beside them and is not."""
    names = ", ".join(clean(tar.name) for tar in tars[:NAMED])
    more = f" and {len(tars) - NAMED:,} more" * (len(tars) > NAMED)
    beside = ""
    if others:
        some = ", ".join(clean(path.name) for path in others[:3])
        beside = f" Beside them lie {len(others):,} files and folders that are not, such as {some}."
    print(f"{clean(str(folder))}: all of its tars are taken, {names}{more}.{beside}")


def _listing(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files and folders in a folder, without hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _kind(path: pathlib.Path) -> str:
    """Returns "tars" or "tables". Raises UserError for a file that is neither by its name."""
    name = path.name.lower()
    if name.endswith(archive.SUFFIXES):
        return "tars"
    if name.endswith(tables.SUFFIXES):
        return "tables"
    hint = next((hint for suffix, hint in HINTS.items() if name.endswith(suffix)), "")
    raise UserError(
        f"What is {path}? A source is a folder, a tar ({', '.join(archive.SUFFIXES)}) or a table "
        f"({', '.join(tables.SUFFIXES)}).{hint}"
    )
