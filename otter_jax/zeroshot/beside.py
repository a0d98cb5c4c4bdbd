"""Finds what other runs have as results on the same sets, for one table of several runs."""

import pathlib
from collections.abc import Sequence
from typing import Any

from otter_jax.errors import UserError
from otter_jax.run import directory
from otter_jax.run.directory import Evaluation
from otter_jax.zeroshot.tables import Result, Row, rows_of

SAME = ("labels", "templates")  # of a set's `about`: classes with each image's labels, and prompts


def check(workdir: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
    """Raises UserError for a folder without results of evaluations, and for one that stands twice.

    `workdir` is the run that they are to stand beside.
    """
    there = {workdir.resolve(): "the run that is evaluated, whose rows are in the tables anyway"}
    for folder in folders:
        if folder.resolve() in there:
            raise UserError(f"--beside {folder} is {there[folder.resolve()]}: leave it out.")
        there[folder.resolve()] = "there twice"
        if not directory.evaluations(folder):
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
    there = directory.evaluations(folder)
    for each in sorted(there, key=lambda each: each.path.stat().st_mtime, reverse=True):
        for theirs, about in _sets(each):
            if all(theirs["about"][key] == result["about"][key] for key in SAME):
                before = f"{name} step {about['step']} "
                return rows_of(theirs, about.get("weights", ("student", "ema")), before)
    return []


def _sets(evaluation: Evaluation) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the sets of an evaluation, and what it says of itself; [] if it is none of names."""
    about = evaluation.read() or {}
    try:
        found = [(each, about) for each in about["sets"].values()]
        return [pair for pair in found if {*SAME} <= pair[0]["about"].keys()]
    except (KeyError, TypeError, AttributeError):
        return []  # of a transfer, of an older version, or damaged
