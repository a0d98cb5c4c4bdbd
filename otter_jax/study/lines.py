"""Lines of a study: a method in a setting, the cells it is chosen from, and what is chosen."""

import math
from collections.abc import Mapping, Sequence

from otter_jax.errors import UserError
from otter_jax.study.cells import Cell, Outcome
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


def chosen(study: Study, grid: Sequence[Cell], found: Mapping[Cell, Sequence[Outcome]]) -> Cell:
    """Returns the cell of a grid with the largest mean of the study's measures of validation.

    A run that has diverged counts as 0; of equal cells the first is taken.
    """
    return max(grid, key=lambda cell: validation(study, found[cell]))


def validation(study: Study, runs: Sequence[Outcome]) -> float:
    """Returns the mean over runs and over the measures that values are chosen by; NaN of no runs.

    Raises UserError if a run that did not diverge has no such measure.
    """
    if not runs:
        return math.nan
    total = 0.0
    for run in runs:
        scores = run["scores"][study.weights]
        for name in study.choose.by:
            if name not in scores and "diverged_at" not in run:
                raise UserError(
                    f"{study.path}: choose.by={name!r}: runs have no such measure; they have "
                    f"{', '.join(scores)}. Those that are made are kept."
                )
            total += scores.get(name, 0.0)
    return total / (len(runs) * len(study.choose.by))
