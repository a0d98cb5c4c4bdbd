"""Draws what came out of a study: hits over noise, share and batch, and what trust knows."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otter_jax.study.plan import Setting
from otter_jax.study.results import Finished

ACROSS = {  # field of a setting: what the axis is called
    "noise": "share of wrong captions",
    "share": "share of the pairs",
    "batch": "pairs in a batch",
}
KS = (5, 10)
# Told apart by colour-blind people, too (Okabe and Ito), with a marker for each.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
MARKERS = "os^Dv<>P*Xhd"


def draw(finished: Finished, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws all plots that the finished settings have two points or more for; returns the files."""
    drawn = []
    for field, rest, settings in _series(finished.settings):
        figure = _over(finished, field, settings)
        drawn.append(out / f"{field}_{'_'.join(f'{k}{v}' for k, v in rest.items())}.png")
        figure.savefig(drawn[-1], dpi=130)
    if trusting := _trusting(finished):
        drawn.append(out / "trust.png")
        _judged(finished, trusting).savefig(drawn[-1], dpi=130)
    return drawn


def _series(settings: Sequence[Setting]) -> Iterator[tuple[str, dict[str, Any], list[Setting]]]:
    """Yields fields, what all other fields are, and the settings that differ in the field alone."""
    for field in ACROSS:
        groups: dict[Any, list[Setting]] = {}
        for setting in settings:
            rest = dataclasses.asdict(setting)
            del rest[field]
            groups.setdefault(tuple(rest.items()), []).append(setting)
        for rest, own in groups.items():
            if len(own) > 1:
                yield field, dict(rest), sorted(own)


def _over(finished: Finished, field: str, settings: Sequence[Setting]) -> Figure:
    """Returns a figure with a panel for each evaluation set and K, a line for each method."""
    search = finished.study.data.held_out.search
    sets = list(dict.fromkeys(name.split("/")[0] for name in finished.measures()))
    figure = Figure((3.6 * len(sets) + 1.9, 5.6), layout="constrained")
    panels = figure.subplots(len(KS), len(sets), sharex=True, squeeze=False)
    for row, k in enumerate(KS):
        for column, name in enumerate(sets):
            axes = panels[row][column]
            _lines(axes, finished, field, settings, f"{name}/{search}@{k}")
            axes.set_title(f"{name}, {search}@{k}", fontsize=10)
            if row == len(KS) - 1:
                axes.set_xlabel(ACROSS[field])
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    rest = dataclasses.asdict(settings[0])
    del rest[field]
    figure.suptitle(", ".join(f"{k} {v}" for k, v in rest.items()), fontsize=10)
    return figure


def _lines(
    axes: Axes, finished: Finished, field: str, settings: Sequence[Setting], measure: str
) -> None:
    """Draws the means of all methods, with their standard errors, over a field of the settings."""
    results = list(finished.results(measure))
    values = [getattr(setting, field) for setting in settings]
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
                linestyle="--" if finished.study.methods[method].is_linear else "-",
            )  # fmt: skip
    axes.set_xticks(list(places), [f"{value:g}" for value in values])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _trusting(finished: Finished) -> dict[tuple[Setting, str], Any]:
    """Returns the main results of noisy settings whose runs were judged by their weights."""
    return {
        line: results
        for line, (_, results) in finished.main.items()
        if line[0].noise and "auc" in results["seeds"][0].get("metrics", {})
    }


def _judged(finished: Finished, lines: Mapping[tuple[Setting, str], Any]) -> Figure:
    """Returns a figure of how well weights tell wrong captions, over the steps of training."""
    settings = list(dict.fromkeys(setting for setting, _ in lines))
    figure = Figure((3.6 * len(settings) + 1.9, 5.6), layout="constrained")
    panels = figure.subplots(2, len(settings), squeeze=False, sharey="row")
    methods = list(finished.study.methods)
    for column, setting in enumerate(settings):
        for row, name in enumerate(("auc", "recall")):
            axes = panels[row][column]
            for (at, method), results in lines.items():
                if at == setting:
                    runs = [run for run in results["seeds"] if "diverged_at" not in run]
                    if runs:
                        values = np.array([run["metrics"][name] for run in runs], float)
                        colour = COLOURS[methods.index(method) % len(COLOURS)]
                        axes.plot(runs[0]["steps"], values.mean(axis=0), color=colour, label=method)
            axes.set_title(f"{setting.set}, {setting.noise:.0%} wrong, {name}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.3)
        panels[-1][column].set_xlabel("step")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    return figure
