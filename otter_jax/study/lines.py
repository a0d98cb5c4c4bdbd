"""Lines of a study: a method in a setting, the cells it is chosen from, and what is chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

from otter_jax.study.cells import Cell
from otter_jax.study.plan import Keys, Setting, Study

Line = tuple[Setting | Keys, str]


def lines(study: Study, only: tuple[int, int] | None = None) -> list[Line]:
    """Returns the lines of a study, or part K of N, so that few programs are in several parts.

    Closed forms, which need no accelerator, are the last.
    """
    found = [(setting, method) for setting in study.settings for method in study.methods]
    batches = list(dict.fromkeys(setting.batch for setting in study.settings))
    methods = list(study.methods)
    found.sort(
        key=lambda line: (
            study.methods[line[1]].is_linear,
            batches.index(line[0].batch),
            methods.index(line[1]),
        )
    )
    if only is None:
        return found
    number, parts = only
    return [line for i, line in enumerate(found) if i * parts // len(found) == number - 1]


def chosen(study: Study, grid: Sequence[Cell], found: Mapping[Cell, Any]) -> Cell:
    """Returns the cell of a grid with the largest mean of the study's measures of validation.

    A run that has diverged counts as 0; of equal cells the first is taken.
    """
    return max(grid, key=lambda cell: validation(study, found[cell]))


def validation(study: Study, results: Mapping[str, Any]) -> float:
    """Returns the mean over seeds and over the measures that values are chosen by."""
    values = [
        run["scores"][study.weights].get(name, 0.0)
        for run in results["seeds"]
        for name in study.choose.by
    ]
    return sum(values) / len(values)
