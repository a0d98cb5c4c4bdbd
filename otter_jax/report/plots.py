"""Draws plots of lines as SVG, in the colours of the page, light or dark."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

COLOURS = 8  # of the page's style: --c0 to --c7
WIDTH, HEIGHT = 400, 236  # user units; text has 11 of them
LEFT, TOP, BOTTOM = 48, 10, 36  # margins
BARE, NAMED = 14, 96  # the margin at the right: without and with names of lines
APART = 12.5  # labels, at least
MARKED = 60  # points of a line that are marked and tell their value, at most
MOST = 300  # points of a line; of more, means of neighbours are drawn

Real = int | float
Points = Sequence[tuple[Real, Real]]


class Line(NamedTuple):
    """Holds the points of a line, sorted, and how it is drawn.

    Attributes:
      name: stands at its end, "" for nothing.
      colour: a number; there are COLOURS, then they begin anew.
      dash: 0 for a whole line, 1 for dashes, 2 for dots.
    """

    points: Points
    name: str = ""
    colour: int = 0
    dash: int = 0


class Level(NamedTuple):
    """Holds a value to compare with, drawn as a thin line across, and its name."""

    value: Real
    name: str


def plot(
    lines: Sequence[Line],
    title: str,
    *,
    levels: Sequence[Level] = (),
    across: str = "step",
    log: bool = False,
    zero: bool = False,
    ticks: Sequence[Real] | None = None,
) -> str:
    """Returns the SVG of lines over `across`; without any finite point a sentence in its place.

    With `log` the axis upwards is logarithmic, and values that are not positive are left out; with
    `zero` it begins at 0. `ticks` are the marks of the axis across, where even ones do not do.
    """
    shown = [line._replace(points=_drawable(line.points, log)) for line in lines]
    shown = [line for line in shown if line.points]
    if not shown:
        return '<p class="none">No value of it is in the log.</p>'
    levels = [level for level in levels if level.value > 0 or not log]
    right = WIDTH - (NAMED if levels or any(line.name for line in shown) else BARE)
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points] + [level.value for level in levels]
    marks_y = _decades(min(ys), max(ys)) if log else _even(0.0 if zero else min(ys), max(ys))
    low, high = (min(ys), max(ys)) if log else (marks_y[0], marks_y[-1])
    x_of = _scale(min(xs), max(xs), LEFT, right)
    up = math.log10 if log else float
    y_of = _scale(up(min(low, marks_y[0])), up(max(high, marks_y[-1])), HEIGHT - BOTTOM, TOP)
    marks_x = ticks or _whole(_even(min(xs), max(xs)), min(xs), max(xs))
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">',
        *_grid(marks_x, marks_y, x_of, lambda y: y_of(up(y)), right),
        f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" '
        f'text-anchor="middle">{_text(across)}</text>',
    ]
    names = []
    for level in levels:
        y = y_of(up(level.value))
        parts.append(f'<path class="level" d="M{LEFT} {y:.1f}H{right}"/>')
        names.append((y, level.name, "level"))
    for line in shown:
        at = [(x_of(x), y_of(up(y))) for x, y in line.points]
        parts += _line(line, at)
        names.append((at[-1][1], line.name, f"c{line.colour % COLOURS}"))
    return "".join([*parts, *_names(names), "</svg>"])


def legend(names: Iterable[str]) -> str:
    """Returns the HTML of a legend: names beside their colours, in their order."""
    items = "".join(
        f'<li><span class="chip c{number % COLOURS}"></span><bdi>{_text(name)}</bdi></li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def number(value: Real) -> str:
    """Writes a number for a mark or a tip: 0.0002, 12.5, 40k."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}" if abs(value) < 10_000 else f"{value:.0f}"


def _line(line: Line, at: Points) -> list[str]:
    """Returns a line's SVG, with marks that tell their values if they are few."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    colour = f"c{line.colour % COLOURS}"
    parts = [f'<path class="line {colour} dash{line.dash}" d="M{path}"/>']
    if len(at) <= MARKED:
        for (x, y), (own_x, own_y) in zip(at, line.points, strict=True):
            tip = _text(f"{line.name} {number(own_x)}: {own_y:.4g}".strip())
            parts.append(
                f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.2">'
                f"<title>{tip}</title></circle>"
            )
    return parts


def _grid(marks_x, marks_y, x_of, y_of, right: Real) -> list[str]:
    parts = []
    for mark in marks_y:
        y = y_of(mark)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(mark)}</text>'
        )
    for mark in marks_x:
        parts.append(
            f'<text x="{x_of(mark):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{number(mark)}</text>"
        )
    return parts


def _names(names: Sequence[tuple[Real, str, str]]) -> list[str]:
    """Returns names (height, text, class) at the right, pushed apart where they would overlap."""
    names = sorted((name for name in names if name[1]), key=lambda name: name[0])
    heights: list[Real] = []
    for y, _, _ in names:
        heights.append(max(y, heights[-1] + APART) if heights else y)
    over = max(0.0, (heights[-1] if heights else 0) - (HEIGHT - BOTTOM))
    for i in reversed(range(len(heights))):  # back up from the lower edge
        below = heights[i + 1] - APART if i + 1 < len(heights) else heights[i] - over
        heights[i] = min(heights[i], below)
    return [
        f'<text class="name {kind}" x="{WIDTH - NAMED + 6}" y="{y + 4:.1f}">{_text(name)}</text>'
        for y, (_, name, kind) in zip(heights, names, strict=True)
    ]


def _drawable(points: Points, log: bool) -> Points:
    """Leaves out what cannot be drawn, and takes means of neighbours where there are too many."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    points = [(x, y) for x, y in points if y > 0 or not log]
    if len(points) <= MOST:
        return points
    size = -(-len(points) // MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _scale(low: Real, high: Real, first: Real, last: Real):
    """Returns the function that maps [low, high] to [first, last]; a single value to the middle."""
    if high <= low:
        return lambda _: (first + last) / 2
    return lambda value: first + (value - low) / (high - low) * (last - first)


def _even(low: Real, high: Real) -> list[Real]:
    """Returns three to seven round marks from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _decades(low: Real, high: Real) -> list[Real]:
    """Returns marks of a logarithmic axis: powers of ten, and 2 and 5 of few ones."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = -(-(last - first) // 6)
    marks = [f * 10.0**power for power in range(first, last + 1, every) for f in factors]
    inside = [mark for mark in marks if low <= mark <= high]
    return inside if len(inside) > 1 else [10.0**first, 10.0**last]


def _whole(marks: Sequence[Real], low: Real, high: Real) -> list[Real]:
    """Leaves the marks between the ends, as there is no room beyond them; the ends if few."""
    inside = [mark for mark in marks if low <= mark <= high]
    return inside if len(inside) > 1 else sorted({low, high})


def _text(text: str) -> str:
    return html.escape(text)
