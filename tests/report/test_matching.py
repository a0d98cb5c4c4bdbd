"""What is drawn of a matching: its strongest pairs, its lines, and what is counted of it."""

import math

import numpy as np
import pytest

from otter_jax.report import matching


def target(**entries):
    """A 6 x 6 target with entries such as _01=0.5, and zeros."""
    found = np.zeros((6, 6))
    for name, value in entries.items():
        found[int(name[1]), int(name[2])] = value
    return found


def test_the_pairs_of_the_strongest_matches_of_both_ends_are_drawn_by_turns():
    first, last = target(_23=0.9, _45=0.3), target(_01=0.5, _45=0.4, _33=0.99)
    assert matching.chosen([first, last], rows=4) == [0, 1, 2, 3]
    assert matching.chosen([last], rows=4) == [0, 1, 4, 5]
    # One place is left: only a match with a pair that is there may take it.
    assert matching.chosen([target(_01=0.5, _23=0.4, _12=0.3)], rows=3) == [0, 1, 2]


def test_no_more_pairs_are_drawn_than_there_are():
    assert sorted(matching.chosen([target(_01=0.5)], rows=12)) == [0, 1, 2, 3, 4, 5]


def test_lines_join_rows_of_the_drawing_and_weak_ones_are_left_out():
    found = matching.edges(target(_50=0.5, _05=0.25, _51=0.02, _11=0.1), [5, 1, 0])
    assert found == [(1, 1, 0.1), (2, 0, 0.25), (0, 2, 0.5)]


def test_facts_are_means_over_pictures_off_the_diagonal():
    even = np.full((4, 4), 0.25)
    assert matching.facts(even) == pytest.approx(
        {"own": 0.25, "effective": 4, "strongest": 0.25, "many": 12}
    )
    one = np.eye(4)[[1, 0, 3, 2]]
    assert matching.facts(one) == pytest.approx(
        {"own": 0, "effective": 1, "strongest": 1, "many": 4}
    )
    half = (one + np.eye(4)) / 2
    found = matching.facts(half)
    assert found["effective"] == pytest.approx(math.exp(math.log(2)))
    assert (found["own"], found["strongest"]) == (0.5, 0.5)


def test_a_line_ends_at_the_middle_of_its_rows():
    assert matching._curve(0, 2) == "M0 30C50 30 50 150 100 150"
    assert matching._on_curve(0, 2, 0.0) == (0, 30)
    assert matching._on_curve(0, 2, 1.0) == (100, 150)
    assert matching._on_curve(0, 2, 0.5) == (50, 90)
