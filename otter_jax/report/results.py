"""Tables of a report: what runs reached, what they are, and in what they differ."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from otter_jax.report import page
from otter_jax.report.curves import BASELINES, WEIGHTS, baselines
from otter_jax.report.history import History
from otter_jax.run import directory
from otter_jax.zeroshot import tables

Rows = list[dict[str, Any]]
SHOWN = (
    "method", "data.name", "model.img.arch", "model.img.weights", "model.txt.weights", "model.dim",
    "train.batch_size", "train.epochs", "optim.name", "optim.learning_rate", "optim.freeze", "seed",
)  # fmt: skip


def hits(runs: Sequence[History], name: str) -> Rows:
    """Returns a row per run and weights of a set's last evaluation, and rows of the baselines."""
    rows = []
    for run in runs:
        latest = run.latest()
        found = latest[1].get(name, {}) if latest else {}
        for weights in (*WEIGHTS, *found.get("probes", ())):
            if isinstance(found.get(weights), Mapping):
                about = {"run": run.name, "step": latest[0]} if len(runs) > 1 else {}
                rows.append(about | {"weights": weights, **_numbers(found[weights])})
    metrics = list(dict.fromkeys(key for row in rows for key in row))
    for baseline in BASELINES:
        values = {
            metric: level.value
            for metric in metrics
            for level in baselines(runs, name, metric)
            if level.name == baseline
        }
        if values:
            first = {"run": "", "step": None} if len(runs) > 1 else {}
            rows.append(first | {"weights": baseline, **values})
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def about(run: History) -> Rows:
    """Returns what a run is: the main values of its config, its command and versions."""
    flat = directory.flatten(json.loads(run.config.to_json()))
    rows = [{"": key, "value": _shown(flat[key])} for key in SHOWN if key in flat]
    if run.starts:
        last = run.starts[-1]
        command = last.get("command") or []
        rows.append({"": "starts", "value": str(len(run.starts))})
        rows.append({"": "command", "value": shlex.join(map(str, command))})
        rows.append({"": "revision", "value": str(last.get("git") or "not known")})
        versions = last.get("versions")
        if isinstance(versions, Mapping):
            named = ", ".join(f"{name} {version}" for name, version in versions.items())
            rows.append({"": "versions", "value": f"Python {last.get('python', '?')}, {named}"})
    return rows


def differences(runs: Sequence[History]) -> Rows:
    """Returns the keys of the configs that differ between runs, a column for each run."""
    flats = [directory.flatten(json.loads(run.config.to_json())) for run in runs]
    keys = sorted({key for flat in flats for key in flat})
    rows = []
    for key in keys:
        values = [_shown(flat[key]) if key in flat else None for flat in flats]
        if len({str(value) for value in values}) > 1:
            names = (run.name for run in runs)
            rows.append({"key": key, **dict(zip(names, values, strict=True))})
    return rows


def size_of(runs: Sequence[History], name: str) -> str:
    """Returns how many pictures and classes a set has, if all runs say the same."""
    found = {
        (sets[name].get("images"), sets[name].get("classes"))
        for run in runs
        for sets in run.evaluations.values()
        if isinstance(sets.get(name, {}).get("images"), int)
    }
    if len(found) != 1:
        return ""
    images, classes = found.pop()
    return f"{images:,} pictures, {page.cell(classes)} classes"


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns those metrics of an evaluation that tables have columns for."""
    known = (*tables.OF_CLASSES, *tables.OF_PAIRS)
    return {name: float(metrics[name]) for name in known if _is_number(metrics.get(name))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
