"""Plots show values where they belong, and their names side by side."""

import itertools
import re

import pytest

from otter_jax.report import plots
from otter_jax.report.plots import Level, Line


def at(svg, kind):
    """The places of a plot's lines of a class: a list of (x, y) of each."""
    paths = re.findall(rf'<path class="{kind}[^"]*" d="M([^"]+)"', svg)
    return [[tuple(map(float, point.split())) for point in path.split("L")] for path in paths]


def test_a_line_goes_from_edge_to_edge_and_its_height_is_its_value():
    ((left, middle, right),) = at(plots.plot([Line([(0, 0), (5, 10), (10, 5)])], "t"), "line")
    assert left == (plots.LEFT, plots.HEIGHT - plots.BOTTOM)
    assert middle[1] == plots.TOP
    assert right[0] == plots.WIDTH - plots.BARE
    assert right[1] == pytest.approx((left[1] + middle[1]) / 2, abs=0.1)


def test_a_logarithmic_axis_gives_every_decade_the_same_room_and_leaves_out_what_is_not_positive():
    points = [(0, 1e-3), (1, 1e-2), (2, 0), (3, -1), (4, 1e-1)]
    ((low, middle, high),) = at(plots.plot([Line(points)], "t", log=True), "line")
    assert low[1] - middle[1] == pytest.approx(middle[1] - high[1], abs=0.2)


def test_an_axis_from_0_shows_0():
    svg = plots.plot([Line([(0, 90), (1, 100)])], "t", zero=True)
    assert 'text-anchor="end">0</text>' in svg
    assert 'text-anchor="end">0</text>' not in plots.plot([Line([(0, 90), (1, 100)])], "t")


def test_names_of_lines_that_end_together_stand_apart_within_the_plot():
    lines = [Line([(0, 0), (1, 1)], f"line{n}", n) for n in range(9)]
    svg = plots.plot(lines, "t", levels=[Level(0.0, "zero"), Level(1.0, "one")])
    heights = [float(y) for y in re.findall(r'<text class="name[^"]*" x="310" y="([\d.]+)"', svg)]
    assert len(heights) == 11
    apart = [b - a for a, b in itertools.pairwise(heights)]
    assert min(apart) >= plots.APART - 0.11
    assert max(heights) <= plots.HEIGHT - plots.BOTTOM + 4


def test_of_many_points_means_of_neighbours_are_drawn_without_marks():
    points = [(n, n % 2) for n in range(3_000)]
    svg = plots.plot([Line(points, "wave")], "t")
    assert "<circle" not in svg
    (drawn,) = at(svg, "line")
    assert len(drawn) == 300
    assert len({y for _, y in drawn}) == 1


def test_what_cannot_be_drawn_is_a_sentence_and_never_a_broken_plot():
    for points in ([], [(1, float("nan"))], [(float("inf"), 1)]):
        assert plots.plot([Line(points)], "t").startswith("<p")
    single = plots.plot([Line([(3, 0.5)], "a")], "t", levels=[Level(0.5, "same")])
    assert "nan" not in single
    assert "<title>a 3: 0.5</title>" in single


def test_names_are_escaped():
    svg = plots.plot([Line([(0, 1), (1, 2)], "<b>")], '"><script>')
    assert "<script" not in svg
    assert "<b>" not in svg + plots.legend(["<b>"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0002, "0.0002"), (12.5, "12.5"), (40_000, "40k"), (12_345, "12345")]
)
def test_marks_are_short(value, text):
    assert plots.number(value) == text
