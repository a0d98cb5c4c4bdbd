"""Draws what came out of a study: hits over noise, share and batch, and what trust knows."""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otter_jax.study.plan import Keys, Setting
from otter_jax.study.results import Finished

ACROSS = {  # field of a setting, whose values are numbers: what the axis is called
    "noise": "share of wrong captions",
    "share": "share of the pairs",
    "batch": "pairs in a batch",
    "train.batch_size": "pairs in a batch",
    "train.epochs": "epochs",
}
# Told apart by colour-blind people, too (Okabe and Ito), with a marker for each; then once more, by
# dashed lines. Closed forms are dotted.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
MARKERS = "os^Dv<>P*Xhd"


def draw(finished: Finished, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws all plots that the finished settings have two points or more for; returns the files."""
    drawn = []
    for field, rest, settings in _series(finished.settings):
        figure = _over(finished, field, settings)
        of = re.sub(r"[^\w.]", "-", "_".join(f"{k}{v}" for k, v in rest.items()))
        drawn.append(out / f"{field}_{of}.png")
        figure.savefig(drawn[-1], dpi=130)
    if trusting := _trusting(finished):
        drawn.append(out / "trust.png")
        _judged(finished, trusting).savefig(drawn[-1], dpi=130)
    return drawn


def _series(
    settings: Sequence[Setting | Keys],
) -> Iterator[tuple[str, dict[str, Any], list[Setting | Keys]]]:
    """Yields fields, what all other fields are, and the settings that differ in the field alone."""
    for field in ACROSS:
        groups: dict[Any, list[Setting | Keys]] = {}
        for setting in settings:
            rest = setting.fields()
            if field not in rest:
                continue
            del rest[field]
            groups.setdefault(tuple(rest.items()), []).append(setting)
        for rest, own in groups.items():
            if len(own) > 1:
                yield field, dict(rest), sorted(own, key=lambda one: one.fields()[field])


def _over(finished: Finished, field: str, settings: Sequence[Setting | Keys]) -> Figure:
    """Returns a figure with a panel for each evaluation set and K, a line for each method."""
    measures = finished.measures()
    sets = list(dict.fromkeys(name.split("/")[0] for name in measures))
    kinds = list(dict.fromkeys(name.split("/")[-1] for name in finished.study.choose.by))
    figure = Figure((3.6 * len(sets) + 1.9, 2.8 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(sets), sharex=True, squeeze=False)
    for row, kind in enumerate(kinds):
        for column, name in enumerate(sets):
            axes = panels[row][column]
            _lines(axes, finished, field, settings, f"{name}/{kind}")
            axes.set_title(f"{name}, {kind}", fontsize=10)
            if row == len(kinds) - 1:
                axes.set_xlabel(ACROSS[field])
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    rest = settings[0].fields()
    del rest[field]
    figure.suptitle(", ".join(f"{k} {v}" for k, v in rest.items()), fontsize=10)
    return figure


def _lines(
    axes: Axes, finished: Finished, field: str, settings: Sequence[Setting | Keys], measure: str
) -> None:
    """Draws the means of all methods, with their standard errors, over a field of the settings."""
    results = list(finished.results(measure))
    values = [setting.fields()[field] for setting in settings]
    places = range(len(values)) if field != "noise" else values
    place = dict(zip(settings, places, strict=True))
    for number, method in enumerate(finished.study.methods):
        own = [r for r in results if r.method == method and r.setting in place]
        if own:
            at = [place[r.setting] for r in own]
            axes.errorbar(
                at, [r.mean for r in own], [r.error for r in own],
                color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                markersize=4, linewidth=1.2, label=method,
                linestyle=_line_of(number, finished.study.methods[method].is_linear),
            )  # fmt: skip
    axes.set_xticks(list(places), [f"{value:g}" for value in values])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _line_of(number: int, is_linear: bool) -> str:
    return ":" if is_linear else "-" if number < len(COLOURS) else "--"


def _trusting(finished: Finished) -> dict[tuple[Setting | Keys, str], Any]:
    """Returns the main runs of noisy settings whose runs were judged by their weights."""
    return {
        line: runs
        for line, (_, runs) in finished.main.items()
        if line[0].fields().get("noise") and "auc" in runs[0].get("metrics", {})
    }


def _judged(finished: Finished, lines: Mapping[tuple[Setting | Keys, str], Any]) -> Figure:
    """Returns a figure of how well weights tell wrong captions, over the steps of training."""
    settings = list(dict.fromkeys(setting for setting, _ in lines))
    figure = Figure((3.6 * len(settings) + 1.9, 5.6), layout="constrained")
    panels = figure.subplots(2, len(settings), squeeze=False, sharey="row")
    methods = list(finished.study.methods)
    for column, setting in enumerate(settings):
        for row, name in enumerate(("auc", "recall")):
            axes = panels[row][column]
            for (at, method), made in lines.items():
                if at == setting:
                    runs = [run for run in made if "diverged_at" not in run]
                    if runs:
                        values = np.array([run["metrics"][name] for run in runs], float)
                        number = methods.index(method)
                        axes.plot(
                            runs[0]["steps"], values.mean(axis=0), label=method,
                            color=COLOURS[number % len(COLOURS)],
                            linestyle=_line_of(number, False),
                        )  # fmt: skip
            axes.set_title(f"{setting.described()}: {name}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.3)
        panels[-1][column].set_xlabel("step")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    return figure
