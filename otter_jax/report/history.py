"""Reads what a run has written of itself: config, starts, log and evaluations."""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from otter_jax import files
from otter_jax.errors import UserError
from otter_jax.run import directory

LOG = 1 << 30  # bytes of a log, at most: a million lines
NEEDED = (
    "method", "eval.batch_size", "data.dir", "data.name", "data.split", "objective.teacher",
    "teacher.checkpoint", "train.batch_size", "train.epochs",
)  # fmt: skip
RENAMED = {"entropy": "target_entropy"}  # numbers of the log that older versions call otherwise
HIT = re.compile(r"(?P<set>.+)/(?P<weights>[^/]+)/(?P<metric>[^/]+)")

Points = list[tuple[float, float]]
Evaluation = dict[str, dict[str, Any]]  # of a set: {weights: {metric: value}}, and about it


@dataclasses.dataclass(frozen=True)
class History:
    """Holds what a contrastive run has written.

    Attributes:
      name: of the run, for people.
      starts: run.json, an entry for each start; empty if it is lost.
      numbers: the points (step, value) of each number of the log.
      evaluations: {step: {set: evaluation}}, sorted.
      notes: what could not be read, as sentences.
    """

    workdir: pathlib.Path
    name: str
    config: ConfigDict
    starts: list[dict[str, Any]]
    numbers: Mapping[str, Points]
    evaluations: Mapping[int, Evaluation]
    notes: list[str]

    @property
    def step(self) -> int:
        """The last step that the log or an evaluation tells of, 0 if there is none."""
        logged = (int(points[-1][0]) for points in self.numbers.values() if points)
        return max([0, *logged, *self.evaluations])

    def latest(self) -> tuple[int, Evaluation] | None:
        """Returns the last evaluation, and its step; None if there is none."""
        return max(self.evaluations.items(), default=None, key=lambda item: item[0])


def read(workdir: pathlib.Path) -> History:
    """Reads a run. Raises UserError if there is none, its config is damaged, or it is no `train`'s.

    Damaged lines and results are left out, and the notes say so.
    """
    config = directory.read_config(workdir)
    command = directory.command_of(config)
    if command == "transfer":
        there = workdir / "report.html"
        raise UserError(
            f"{workdir} is a run of transfer, which writes its own report at its end: "
            + (f"{there}." if there.is_file() else f"{there}, which is not there yet.")
        )
    if command != "train":
        raise UserError(f"{workdir} is no run of train: its config has no key 'objective'.")
    flat = directory.flatten(json.loads(config.to_json()))
    lacking = [key for key in NEEDED if key not in flat]
    if lacking:
        raise UserError(
            f"{workdir / 'config.json'} is damaged: it has no {', '.join(lacking)}. Restore it."
        )
    notes: list[str] = []
    numbers, evaluations = _log(workdir / "metrics.jsonl", notes)
    for step, sets in _results(workdir, notes):
        evaluations[step] = evaluations.get(step, {}) | sets
    return History(
        workdir,
        workdir.absolute().name,
        config,
        _starts(workdir / "run.json", notes),
        numbers,
        dict(sorted(evaluations.items())),
        notes,
    )


def _log(path: pathlib.Path, notes: list[str]) -> tuple[dict[str, Points], dict[int, Evaluation]]:
    """Returns the numbers over the steps, and the evaluations, of a log."""
    numbers: dict[str, dict[float, float]] = collections.defaultdict(dict)
    evaluations: dict[int, Evaluation] = {}
    damaged = 0
    try:
        lines = files.read_text(path, LOG, errors="replace").splitlines()
    except FileNotFoundError:
        notes.append("There is no log, metrics.jsonl: the run has made no step, or was converted.")
        return {}, {}
    except OSError as error:
        notes.append(f"The log, metrics.jsonl, cannot be read: {error.strerror}.")
        return {}, {}
    for line in lines:
        found = _line(line)
        if found is None:
            damaged += 1
            continue
        step, values = found
        for name, value in values.items():
            hit = HIT.fullmatch(name)
            if hit:
                of_set = evaluations.setdefault(step, {}).setdefault(hit["set"], {})
                of_set.setdefault(hit["weights"], {})[hit["metric"]] = value
            else:
                numbers[RENAMED.get(name, name)][float(step)] = value
    if damaged:
        notes.append(f"{damaged} of {len(lines)} lines of metrics.jsonl are damaged and left out.")
    if not lines:
        notes.append("The log, metrics.jsonl, is empty.")
    return {name: sorted(points.items()) for name, points in numbers.items()}, evaluations


def _line(line: str) -> tuple[int, dict[str, float]] | None:
    """Returns the step and the numbers of a line of a log, None if it is damaged."""
    try:
        found = json.loads(line)
        step = int(found.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return step, {name: float(x) for name, x in found.items() if _is_number(x)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _results(workdir: pathlib.Path, notes: list[str]) -> Iterator[tuple[int, Evaluation]]:
    """Yields the run's own evaluations, not those by another config."""
    for each in directory.evaluations(workdir):
        if each.kind:
            continue
        try:
            sets = (each.read() or {})["sets"]
            yield each.step, {key: dict(of_set) for key, of_set in dict(sets).items()}
        except (ValueError, KeyError, TypeError):
            notes.append(f"results/{each.path.name} is damaged and left out.")


def _starts(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        return [dict(start) for start in files.read_json(path)]
    except (OSError, ValueError, TypeError):
        notes.append("There is no run.json that can be read: command and versions are not known.")
        return []
