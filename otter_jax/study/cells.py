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
        """Returns the file of its results."""
        return out / "cells" / f"{self.name}.json"

    @property
    def name(self) -> str:
        """Names it by its setting, method, stage and values, as a path."""
        return f"{self.setting}/{self.method}/{self.stage}_{'_'.join(self._values())}"

    def part_path(self, out: pathlib.Path) -> pathlib.Path:
        """Returns the file of the results of its first runs, until all are made."""
        return out / "cells" / f"{self.name}.part"

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


def grid(study: Study, setting: Setting | Keys, method: str) -> list[Cell]:
    """Returns the cells among which the values of a method in a setting are chosen."""
    seeds = tuple(range(FIRST_CHOOSING, FIRST_CHOOSING + study.choose.seeds))
    return [
        Cell(setting, method, "choose", tuple(sorted(values.items())), seeds)
        for values in study.methods[method].grid(study.choose)
    ]


def main_cell(study: Study, chosen: Cell) -> Cell:
    """Returns the cell of the main runs with the values of the cell that was chosen."""
    return dataclasses.replace(chosen, stage="main", seeds=tuple(range(study.seeds)))


def save(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a file of JSON that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content))


def load(cell: Cell, study: Study, out: pathlib.Path) -> dict[str, Any] | None:
    """Returns the results of a finished cell, None if there are none.

    Raises UserError if the file is damaged, or its cell was defined otherwise.
    """
    return _load(cell.path(out), cell, study, "finished")


def load_part(cell: Cell, study: Study, out: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the results of the runs of a cell that is not finished. Raises as `load` does."""
    found = _load(cell.part_path(out), cell, study, "begun")
    return found["seeds"] if found else []


def save_run(
    cell: Cell, runs: Sequence[Mapping[str, Any]], study: Study, out: pathlib.Path
) -> dict[str, Any]:
    """Writes the results of a cell's runs, those of a part until all are there; returns them."""
    runs = sorted(runs, key=lambda run: run["seed"])
    content = {"definition": cell.definition(study), "seeds": runs}
    if len(runs) < len(cell.seeds):
        save(cell.part_path(out), content)
    else:
        save(cell.path(out), content)
        cell.part_path(out).unlink(missing_ok=True)
    return content


def _load(path: pathlib.Path, cell: Cell, study: Study, state: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = files.read_json(path)
        before = found["definition"] | {"objective": _complete(found["definition"]["objective"])}
        if not all("seed" in run for run in found["seeds"]):
            raise KeyError("seed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it to run this cell again."
        ) from error
    now = cell.definition(study)
    changed = differences(before, now)
    if changed:
        raise UserError(
            f"{path} is {state}, and its definition has changed: {'; '.join(changed[:6])}. Give "
            "the method another name, take another --out, or remove that file."
        )
    return found


def _complete(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an objective with fields that it had not when it was written, at their defaults."""
    return dataclasses.asdict(Objective()) | objective if objective else {}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
