"""Cells of a study: one method in one setting with chosen values, all its seeds; a file each."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.objective import Objective
from otter_jax.study.fields import differences
from otter_jax.study.plan import Keys, Setting, Study

FIRST_CHOOSING = 1000  # the first of the seeds that values are chosen by


@dataclasses.dataclass(frozen=True)
class Cell:
    """Defines one cell.

    Attributes:
      stage: "choose" or "main".
      values: learning rate, start of the scales, and the method's own, sorted by name.
    """

    setting: Setting | Keys
    method: str
    stage: str
    values: tuple[tuple[str, Any], ...]
    seeds: tuple[int, ...]

    def path(self, out: pathlib.Path) -> pathlib.Path:
        """Returns the file of the results of its runs, as far as they are made."""
        return out / "cells" / f"{self.name}.json"

    @property
    def name(self) -> str:
        """Names it by its setting, method, stage and values, as a path."""
        return f"{self.setting}/{self.method}/{self.stage}_{'_'.join(self._values())}"

    def __str__(self) -> str:
        return f"{self.setting} {self.method} {' '.join(self._values())}"

    def _values(self) -> list[str]:
        return [f"{name}={_short(value)}" for name, value in self.values]

    def objective(self, study: Study) -> Objective:
        """Returns the objective of its runs."""
        return study.methods[self.method].with_values(dict(self.values))

    def definition(self, study: Study) -> dict[str, Any]:
        """Returns all that its results depend on beside the features, as JSON has it."""
        train = study.methods[self.method].train
        found = {
            "setting": self.setting.fields(),
            "method": self.method,
            "stage": self.stage,
            "values": dict(self.values),
            "objective": dataclasses.asdict(self.objective(study)),
            "train": train if isinstance(train, Mapping) else dataclasses.asdict(train),
            "seeds": list(self.seeds),
        }
        method = study.methods[self.method]
        if method.is_linear:
            found |= {"objective": {}, "closed_form": method.base}
        return json.loads(json.dumps(found))


Run = tuple[Cell, int]  # a cell, and one of its seeds
Outcome = Mapping[str, Any]  # of a run, as JSON has it: seed, scores, device, seconds


def grid(study: Study, setting: Setting | Keys, method: str) -> list[Cell]:
    """Returns the cells among which the values of a method in a setting are chosen.

    If there is one alone, nothing is chosen, and it has no runs.
    """
    found = list(study.methods[method].grid(study.choose))
    seeds = tuple(range(FIRST_CHOOSING, FIRST_CHOOSING + study.choose.seeds))
    seeds = seeds if len(found) > 1 else ()
    return [Cell(setting, method, "choose", tuple(sorted(one.items())), seeds) for one in found]


def main_cell(study: Study, chosen: Cell) -> Cell:
    """Returns the cell of the main runs with the values of the cell that was chosen."""
    return dataclasses.replace(chosen, stage="main", seeds=tuple(range(study.seeds)))


def save(cell: Cell, runs: Sequence[Outcome], study: Study, out: pathlib.Path) -> None:
    """Writes the results of a cell's runs so far, as a file that appears whole."""
    path = cell.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = sorted(runs, key=lambda run: run["seed"])
    files.write_text(path, json.dumps({"definition": cell.definition(study), "seeds": runs}))


def load(cell: Cell, study: Study, out: pathlib.Path) -> list[Outcome]:
    """Returns the results of a cell's runs so far, by their seeds.

    Those of seeds that are not the cell's, as the study had more of them once, are left out.

    Raises UserError if the file is damaged or cannot be read, or Redefined if its runs were defined
    otherwise.
    """
    path = cell.path(out)
    if not path.exists():
        return []
    try:
        found = files.read_json(path)
        before = found["definition"] | {"objective": _complete(found["definition"]["objective"])}
        runs = {run["seed"]: run for run in _checked(found["seeds"], study.weights)}
        if len(runs) < len(found["seeds"]):
            raise ValueError("two runs of one seed")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it to run this cell again."
        ) from error
    now = cell.definition(study)
    if changed := [line for line in differences(before, now) if not line.startswith("seeds: ")]:
        raise Redefined(path, changed)
    return [runs[seed] for seed in cell.seeds if seed in runs]


def _checked(runs: Any, weights: str) -> Sequence[Outcome]:
    """Returns the runs of a cell's file. Raises an error of Python if they are none."""
    for run in runs:
        if type(run["seed"]) is not int or weights not in run["scores"]:
            raise ValueError(f"a run without its seed, or its scores under {weights} weights")
        numbers = [value for own in run["scores"].values() for value in dict(own).values()]
        if not all(isinstance(value, (int, float)) for value in (*numbers, run["seconds"] or 0)):
            raise ValueError(f"what is no number, in the run of seed {run['seed']}")
    return runs


def is_finished(cell: Cell, runs: Sequence[Outcome]) -> bool:
    """Tells whether these are all of a cell's runs."""
    return len(runs) == len(cell.seeds)


class Redefined(UserError):
    """Tells that runs of a cell were made, and that the study file now says something else."""

    def __init__(self, path: pathlib.Path, changed: Sequence[str]):
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        super().__init__(
            f"{path} has runs, and its definition has changed: {'; '.join(changed[:6])}{more}. "
            "Give the method another name, take another --out, or remove that file."
        )


def _complete(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an objective with fields that it had not when it was written, at their defaults."""
    return dataclasses.asdict(Objective()) | objective if objective else {}


def _short(value: Any) -> str:
    """Writes a value, in six digits if that is all of it."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
