"""Writes the table of a study, as Markdown, CSV and JSON, and the raw values behind it."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from otter_jax import files
from otter_jax.study.results import DIGITS, Finished, Result, counts

COLUMNS = (
    "method", "measure", "mean", "error", "difference", "low", "high", "verdict", "seeds",
    "diverged",
)  # fmt: skip


def write(finished: Finished, baselines: dict[str, dict[str, float]], out: pathlib.Path) -> None:
    """Writes table.md, table.csv, table.json, runs.csv and chosen.csv.

    `baselines` are the measures of chance and of the most frequent names.
    """
    measures = finished.measures()
    rows = [_row(result) for measure in measures for result in finished.results(measure)]
    columns = ("setting", *finished.settings[0].fields(), *COLUMNS)
    _write_csv(out / "table.csv", columns, rows)
    about = {"study": str(finished.study.path), "baseline": finished.study.baseline}
    about |= {"weights": finished.study.weights, "baselines": baselines}
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    counted = counts(finished, shown(measures))
    text = json.dumps(about | {"counts": counted, "rows": named}, indent=0)
    files.write_text(out / "table.json", text)
    files.write_text(out / "table.md", markdown(finished, baselines))
    _write_runs(finished, measures, out / "runs.csv")
    _write_chosen(finished, out / "chosen.csv")


def shown(measures: Iterable[str]) -> list[str]:
    """Returns the measures that stand in the Markdown table."""
    return [name for name in measures if name.endswith(("@1", "@5", "@10"))]


def markdown(finished: Finished, baselines: dict[str, dict[str, float]]) -> str:
    """Returns the whole table: a part for each setting, and how often methods are best."""
    study, measures = finished.study, shown(finished.measures())
    lines = [
        f"# {study.path.name}",
        "",
        f"Means over {study.seeds} seeds ± standard error, {study.weights} weights. In brackets "
        f"the mean difference to {study.baseline}, with its 95 % interval (Student's t, runs "
        "paired by seed; one run has neither). Bold: the interval is above 0."
        + _said_of_choice(finished),
    ]
    for setting in finished.settings:
        lines += ["", f"## {setting.described()}", ""]
        lines += _part(finished, setting, measures, baselines)
    lines += ["", "## All settings and measures", "", *_counts(finished, measures)]
    return "\n".join(lines) + "\n"


def _said_of_choice(finished: Finished) -> str:
    """Says by what values were chosen, if any were."""
    if not finished.grids:
        return ""
    by = ", ".join(finished.study.choose.by)
    return f" Values were chosen on val alone, by other seeds: {by}."


def _part(finished, setting, measures, baselines) -> list[str]:
    """Returns the lines of one setting: a table per evaluation set, a row per method."""
    lines = []
    found = {
        (result.method, measure): result
        for measure in measures
        for result in finished.results(measure)
        if result.setting == setting
    }
    for name in dict.fromkeys(measure.split("/")[0] for measure in measures):
        own = [measure for measure in measures if measure.startswith(f"{name}/")]
        heads = [measure.split("/")[1] for measure in own]
        lines += [f"| {name} | {' | '.join(heads)} |", f"|---|{'---|' * len(own)}"]
        for method in finished.study.methods:
            if (method, own[0]) in found:
                cells = [_cell(found[method, m], finished.study.baseline) for m in own]
                lines.append(f"| {method} | {' | '.join(cells)} |")
        for kind, values in baselines.items():
            cells = [f"{values[m]:.{DIGITS}f}" if m in values else "" for m in own]
            lines.append(f"| ({kind}) | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _cell(result: Result, baseline: str) -> str:
    diverged = int((result.values != result.values).sum())
    if diverged == len(result.values):
        return "diverged"
    text, several = f"{result.mean:.{DIGITS}f}", len(result.values) - diverged > 1
    text += f" ± {result.error:.{DIGITS}f}" if several else ""
    if result.method != baseline:
        middle, low, high = result.difference()
        interval = f": {low:+.{DIGITS}f} to {high:+.{DIGITS}f}" if low == low else ""
        text += f" ({middle:+.{DIGITS}f}{interval})" if middle == middle else ""
        if result.verdict() == "above":
            text = f"**{text}**"
    return text + (f", {diverged} diverged" if diverged else "")


def _counts(finished: Finished, measures: Sequence[str]) -> list[str]:
    baseline = finished.study.baseline
    lines = [
        f"Of {len(finished.settings)} settings x {len(measures)} measures: how often a method is "
        f"best or ties with the best in three digits, and is above, level with and below "
        f"{baseline} by the interval.",
        "",
        f"| method | cells | best or tied | above {baseline} | level | below |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in counts(finished, measures).items():
        if own["cells"]:
            kinds = ("cells", "best", "above", "level", "below")
            lines.append(f"| {name} | {' | '.join(str(own[kind]) for kind in kinds)} |")
    return lines


def _row(result: Result) -> list[Any]:
    middle, low, high = (_number(value) for value in result.difference())
    diverged = int((result.values != result.values).sum())
    return [
        str(result.setting), *result.setting.fields().values(), result.method, result.measure,
        _number(result.mean), _number(result.error), middle, low, high, result.verdict(),
        len(result.values) - diverged, diverged,
    ]  # fmt: skip


def _number(value: float) -> float | None:
    return round(value, 5) if value == value else None


def _write_runs(finished: Finished, measures: Sequence[str], path: pathlib.Path) -> None:
    """Writes each main run's measures, under both weights."""
    rows = []
    for (setting, method), (cell, runs) in finished.main.items():
        for run in runs:
            for weights, scores in run["scores"].items():
                values = [scores.get(measure) for measure in measures]
                about = [setting, method, _values(cell), run["seed"], weights]
                rows.append([*about, *values, run.get("diverged_at", 0), run["seconds"]])
    names = ("setting", "method", "values", "seed", "weights", *measures, "diverged_at", "seconds")
    _write_csv(path, names, rows)


def _write_chosen(finished: Finished, path: pathlib.Path) -> None:
    """Writes what was chosen among: each cell's mean on validation."""
    rows = []
    for (setting, method), grid in finished.grids.items():
        best, _ = max(grid, key=lambda pair: pair[1])  # of equal ones the first, as is chosen
        rows += [
            [setting, method, _values(cell), round(value, 5), int(cell == best)]
            for cell, value in grid
        ]
    _write_csv(path, ("setting", "method", "values", "validation", "best"), rows)


def _values(cell: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in cell.values)


def _write_csv(path: pathlib.Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
