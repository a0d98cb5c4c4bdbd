"""What came out of a study: means over seeds, paired differences with intervals, and counts."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from otter_jax.errors import UserError
from otter_jax.study import cells as cell_files
from otter_jax.study.cells import Cell, Outcome
from otter_jax.study.lines import chosen, lines, validation
from otter_jax.study.plan import Keys, Setting, Study

LEVEL = 0.95  # of intervals
DIGITS = 3  # with which means are printed, and in which they tie


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds one measure of a method in a setting, over seeds.

    Attributes:
      values: of each seed; NaN for a run that diverged.
      baseline: those of the baseline, with the same seeds.
    """

    setting: Setting | Keys
    method: str
    measure: str
    values: Float[np.ndarray, " S"]
    baseline: Float[np.ndarray, " S"]

    @property
    def mean(self) -> float:
        """The mean over the runs that did not diverge, NaN without any."""
        there = self.values[np.isfinite(self.values)]
        return float(there.mean()) if len(there) else float("nan")

    @property
    def error(self) -> float:
        """The standard error of the mean, 0 for a single run."""
        there = self.values[np.isfinite(self.values)]
        return float(there.std(ddof=1) / np.sqrt(len(there))) if len(there) > 1 else 0.0

    def difference(self) -> tuple[float, float, float]:
        """Returns the mean difference to the baseline, and its interval by Student's t.

        Runs are paired by their seed; a pair with a run that diverged is left out.
        """
        each = self.values - self.baseline
        each = each[np.isfinite(each)]
        if len(each) < 2:
            value = float(each.mean()) if len(each) else float("nan")
            return value, float("nan"), float("nan")
        half = stats.t.ppf((1 + LEVEL) / 2, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
        return float(each.mean()), float(each.mean() - half), float(each.mean() + half)

    def verdict(self) -> str:
        """Returns "above", "level" or "below": where the difference's interval lies."""
        _, low, high = self.difference()
        return "above" if low > 0 else "below" if high < 0 else "level"


@dataclasses.dataclass(frozen=True)
class Finished:
    """Holds the main cells that are finished, and those that values are chosen among, if any."""

    study: Study
    main: Mapping[tuple[Setting | Keys, str], tuple[Cell, Sequence[Outcome]]]
    grids: Mapping[tuple[Setting | Keys, str], Sequence[tuple[Cell, float]]]

    @property
    def settings(self) -> list[Setting | Keys]:
        """Settings in which some main cell is finished."""
        return [s for s in self.study.settings if any(at == s for at, _ in self.main)]

    def measures(self) -> list[str]:
        """Names all measures, those of the runs that did not diverge."""
        found: dict[str, None] = {}
        for _, runs in self.main.values():
            for run in runs:
                found |= dict.fromkeys(run["scores"][self.study.weights])
        return list(found)

    def values(self, setting: Setting | Keys, method: str, measure: str) -> Float[np.ndarray, " S"]:
        """Returns a measure of each seed; NaN where a run diverged or is not finished."""
        values = np.full(self.study.seeds, np.nan)
        if (setting, method) in self.main:
            for run in self.main[setting, method][1]:
                values[run["seed"]] = run["scores"][self.study.weights].get(measure, np.nan)
        return values

    def results(self, measure: str) -> Iterator[Result]:
        """Yields the results of a measure for all settings and methods that are finished."""
        for setting in self.settings:
            baseline = self.values(setting, self.study.baseline, measure)
            for method in self.study.methods:
                if (setting, method) in self.main:
                    values = self.values(setting, method, measure)
                    yield Result(setting, method, measure, values, baseline)


def read(study: Study, out: pathlib.Path) -> Finished:
    """Reads the finished cells of a study. Raises UserError as `cells.load` does."""
    main, grids = {}, {}
    for line in lines(study):
        found = {cell: cell_files.load(cell, study, out) for cell in cell_files.grid(study, *line)}
        if not all(cell_files.is_finished(cell, runs) for cell, runs in found.items()):
            continue
        if len(found) > 1:
            grids[line] = [(cell, validation(study, runs)) for cell, runs in found.items()]
        cell = cell_files.main_cell(study, chosen(study, list(found), found))
        runs = cell_files.load(cell, study, out)
        if cell_files.is_finished(cell, runs):
            main[line] = cell, runs
    if not main:
        raise UserError(f"{out} has no finished line of {study.path} yet.")
    return Finished(study, main, grids)


def counts(finished: Finished, measures: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts for each method, over settings and measures, how it stands to the others.

    "best" is the largest mean of all methods, or a tie with it, in three digits, as the paper
    counts; "above", "level" and "below" the baseline are by the interval of the difference.
    """
    names = ("cells", "best", "above", "level", "below")
    found = {name: dict.fromkeys(names, 0) for name in finished.study.methods}
    for measure in measures:
        results = list(finished.results(measure))
        for setting in finished.settings:
            here = [result for result in results if result.setting == setting]
            top = max(round(result.mean, DIGITS) for result in here)
            for result in here:
                own = found[result.method]
                own["cells"] += 1
                own["best"] += round(result.mean, DIGITS) == top
                if result.method != finished.study.baseline:
                    own[result.verdict()] += 1
    return found
