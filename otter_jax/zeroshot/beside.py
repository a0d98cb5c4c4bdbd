"""Finds what other runs have as results on the same sets, for one table of several runs."""

import pathlib
from collections.abc import Sequence
from typing import Any

from otter_jax.errors import UserError
from otter_jax.files import read_json
from otter_jax.zeroshot.tables import Result, Row, rows_of

SAME = ("labels", "templates")  # of a set's `about`: classes with each image's labels, and prompts


def check(folders: Sequence[pathlib.Path]) -> None:
    """Raises UserError for a folder that holds no results of evaluations."""
    for folder in folders:
        if not any((folder / "results").glob("step_*.json")):
            raise UserError(
                f"--beside {folder}: there are no results of an evaluation in {folder / 'results'}."
                f" To make them: otter-jax eval --workdir {folder}"
            )


def called(folders: Sequence[pathlib.Path]) -> list[str]:
    """Returns a name for each run: that of its folder, or its path if these are not different."""
    names = [folder.name for folder in folders]
    return names if all(names) and len({*names}) == len(names) else [*map(str, folders)]


def rows_beside(folder: pathlib.Path, name: str, result: Result) -> list[Row]:
    """Returns the rows of another run, called `name`, on a set with a result; [] if it has none.

    A set is the same if its classes, its images' labels and its templates are, whatever its name is
    there. Of several evaluations of it the one that was written last is taken.
    """
    paths = (folder / "results").glob("step_*.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        for theirs, about in _sets(path):
            if all(theirs["about"][key] == result["about"][key] for key in SAME):
                before = f"{name} step {about['step']} "
                return rows_of(theirs, about.get("weights", ("student", "ema")), before)
    return []


def _sets(path: pathlib.Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the sets of a file of results, and what it says of itself; [] if it is none."""
    try:
        about = read_json(path)
        found = [(each, about) for each in about["sets"].values()]
        return [pair for pair in found if {*SAME} <= pair[0]["about"].keys()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # of a transfer, of an older version, or damaged
