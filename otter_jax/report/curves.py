"""Plots the numbers of a run's log and its hits over the steps, of one run or several at once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from otter_jax.objective import LIMITS
from otter_jax.report import page, plots
from otter_jax.report.history import History

WEIGHTS = {"student": 0, "ema": 1}  # and their dashes
BASELINES = ("frequency", "chance")
KS = range(1, 11)  # of FH@K


class Curve(NamedTuple):
    """Holds what one plot shows: {number of the log: its name}, and what there is to know of it."""

    title: str
    numbers: dict[str, str]
    text: str
    log: bool = False
    zero: bool = False


CURVES = (
    Curve(
        "Loss and its terms, nats",
        {"loss": "loss", "pairs": "pairs", "teacher": "teacher"},
        "What is minimised, and its terms before they are weighted: the distance of the student's "
        "matches from the given pairs, and from the teacher's targets.",
        zero=True,
    ),
    Curve(
        "Scales (inverse temperatures)",
        {"scale_pairs": "pairs", "scale_teacher": "teacher"},
        f"What cosines are multiplied by before the softmax, from {LIMITS[0]:g} to {LIMITS[1]:g}.",
    ),
    Curve(
        "Entropy of a target, nats",
        {"target_entropy": "entropy"},
        "Over how many matches the teacher spreads a row: 0 is a single one, ln B all of a batch.",
        zero=True,
    ),
    Curve(
        "Row error of the transport",
        {"row_error": "row error"},
        "How far Sinkhorn's last iteration leaves a row of the plan from its share, at most.",
        log=True,
    ),
    Curve(
        "Own mass of a target",
        {"own_mass": "own mass"},
        "How much of a target lies on the given pair: 1 would only repeat the pairs.",
        zero=True,
    ),
    Curve(
        "Trust in the given pairs",
        {"trust": "trust", "distrusted": "distrusted"},
        "How much of the teacher's own match stays on a given pair, in the mean; and the share of "
        "pairs that keep less than half of this.",
        zero=True,
    ),
    Curve(
        "Penalty of the gates",
        {"gate_penalty": "penalty"},
        "Before it is weighted by gates.strength.",
        zero=True,
    ),
    Curve("Learning rate", {"learning_rate": "rate"}, "", zero=True),
    Curve("Norm of the gradient", {"grad_norm": "norm"}, "Before it is clipped.", log=True),
    Curve(
        "Pairs per second",
        {"pairs_per_second": "pairs/s"},
        "Without evaluations and checkpoints.",
        zero=True,
    ),
    Curve(
        "Share of the time in which devices wait for data",
        {"data_wait": "wait"},
        "Over some 0.1, more cores, data.num_workers or prepare help.",
        zero=True,
    ),
)


def of_log(runs: Sequence[History]) -> page.Markup:
    """Returns a plot of each of CURVES that a run has more than zeros of."""
    figures = []
    for curve in CURVES:
        if any(value for run in runs for name in curve.numbers for _, value in _of(run, name)):
            levels = _levels(curve, runs)
            drawn = plots.plot(
                _lines(curve, runs), curve.title, levels=levels, log=curve.log, zero=curve.zero
            )
            figures.append(figure(curve.title, drawn, f"{_dashes(curve, runs)}{curve.text}"))
    if not figures:
        return page.Markup('<p class="none">The log holds no numbers of training.</p>')
    return page.Markup(grid(figures))


def of_hits(runs: Sequence[History], name: str) -> list[str]:
    """Returns plots of a set: FH@K over the steps, or over K if no run was evaluated twice."""
    if all(len(run.evaluations) < 2 for run in runs):
        return _over_k(runs, name)
    figures = []
    for k in sorted({1, most_k(runs, name)}):
        metric, title = f"FH@{k}", f"FH@{k} over the steps"
        lines = [
            plots.Line(points, weights if len(runs) == 1 else "", _colour(runs, i, dash), dash)
            for i, run in enumerate(runs)
            for weights, dash in WEIGHTS.items()
            if (points := _hits(run, name, weights, metric))
        ]
        if lines:
            levels = baselines(runs, name, metric)
            drawn = plots.plot(lines, f"{name}: {title}", levels=levels, zero=True)
            figures.append(figure(title, drawn, ""))
    return figures


def _over_k(runs: Sequence[History], name: str) -> list[str]:
    lines, marks = [], set()
    for i, run in enumerate(runs):
        latest = run.latest()
        of_set = latest[1].get(name, {}) if latest else {}
        shown = [*WEIGHTS] if len(runs) > 1 else [*WEIGHTS, *BASELINES]
        for dash, weights in enumerate(shown):
            points = _by_k(of_set.get(weights))
            marks |= {k for k, _ in points}
            if points:
                label = weights if len(runs) == 1 else ""
                lines.append(plots.Line(points, label, _colour(runs, i, dash), min(dash, 2)))
    title = "Hits among the K best classes"
    drawn = plots.plot(lines, f"{name}: {title}", across="K", zero=True, ticks=sorted(marks))
    return [figure(title, drawn, "")] if lines else []


def most_k(runs: Sequence[History], name: str) -> int:
    """Returns the largest K that a set was evaluated with, at most 10."""
    found = (
        k
        for run in runs
        for of_set in run.evaluations.values()
        for weights in WEIGHTS
        for k, _ in _by_k(of_set.get(name, {}).get(weights))
    )
    return int(max(found, default=1))


def sets_of(runs: Sequence[History]) -> list[str]:
    """Returns the names of all sets that runs were evaluated on."""
    names = (name for run in runs for sets in run.evaluations.values() for name in sets)
    return list(dict.fromkeys(names))


def baselines(runs: Sequence[History], name: str, metric: str) -> list[plots.Level]:
    """Returns frequency and chance of a metric, if they are the same for all runs that have it."""
    levels = []
    for baseline in BASELINES:
        values = {
            of_set[name][baseline][metric]
            for run in runs
            for of_set in run.evaluations.values()
            if metric in _dict(of_set.get(name, {}).get(baseline))
        }
        if len(values) == 1:
            levels.append(plots.Level(values.pop(), baseline))
    return levels


def figure(title: str, drawn: str, text: str) -> str:
    """Returns a plot below its title and above a text."""
    note = f'<p class="note">{page.escape(text)}</p>' if text else ""
    return f"<figure>{page.heading(title, 3)}{drawn}{note}</figure>"


def grid(figures: Sequence[str]) -> str:
    """Lays plots out beside each other, as many as there is room for."""
    return f'<div class="plots">{"".join(figures)}</div>'


def _lines(curve: Curve, runs: Sequence[History]) -> list[plots.Line]:
    """Returns a curve's lines: one run's in a colour each, those of several in the run's."""
    several = sum(any(_of(run, name) for run in runs) for name in curve.numbers) > 1
    return [
        plots.Line(
            points,
            label if several and len(runs) == 1 else "",
            _colour(runs, i, j),
            j if len(runs) > 1 else 0,
        )
        for i, run in enumerate(runs)
        for j, (name, label) in enumerate(curve.numbers.items())
        if (points := _of(run, name))
    ]


def _dashes(curve: Curve, runs: Sequence[History]) -> str:
    """Returns which line is which, where colours tell the runs apart."""
    there = [name for name in curve.numbers if any(_of(run, name) for run in runs)]
    if len(runs) == 1 or len(there) == 1:
        return ""
    kinds = dict(zip(curve.numbers, ("whole lines", "dashes", "dots"), strict=False))
    told = ", ".join(f"{kinds[name]} are {curve.numbers[name]}" for name in there)
    return f"{told[0].upper()}{told[1:]}. "


def _levels(curve: Curve, runs: Sequence[History]) -> list[plots.Level]:
    """Returns what guessing would give, if all runs have batches of one size."""
    sizes = {run.config.train.batch_size for run in runs}
    if len(sizes) > 1:
        return []
    B = sizes.pop()
    sigmoid = any(run.config.objective.get("match") == "sigmoid" for run in runs)
    if "pairs" in curve.numbers and not sigmoid:
        return [plots.Level(2 * math.log(B), "chance 2 ln B")]
    if "target_entropy" in curve.numbers:
        return [plots.Level(math.log(B), "ln B")]
    return []


def _colour(runs: Sequence[History], run: int, line: int) -> int:
    return run if len(runs) > 1 else line


def _of(run: History, name: str) -> plots.Points:
    return run.numbers.get(name, [])


def _hits(run: History, name: str, weights: str, metric: str) -> plots.Points:
    found = (
        (step, _dict(sets.get(name, {}).get(weights)).get(metric))
        for step, sets in run.evaluations.items()
    )
    return [(float(step), float(value)) for step, value in found if isinstance(value, int | float)]


def _by_k(hits) -> plots.Points:
    found = (
        (int(k), value) for k in KS if isinstance(value := _dict(hits).get(f"FH@{k}"), int | float)
    )
    return [(float(k), float(value)) for k, value in found]


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}
