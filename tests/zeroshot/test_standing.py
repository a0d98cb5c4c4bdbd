"""Ties are no hits, but the expected value over their order; NaN and infinity are no scores."""

import itertools

import jax
import numpy as np
import pytest

from otter_jax.errors import UserError
from otter_jax.zeroshot.hits import chance, expected_hit, flat_hit
from otter_jax.zeroshot.standing import check_finite, standing

KS = (1, 2, 3, 5, 6)
LABELS = np.array([[0, -1, -1], [1, 4, -1], [2, 3, 5], [5, 0, -1], [3, -1, -1], [1, 2, 0]])


def hits_of(scores, labels, ks=KS):
    above, level, own, finite = np.asarray(jax.jit(standing)(scores, labels)).T
    assert finite.all()
    return expected_hit(above, level, own, ks)


def over_all_orders(scores, labels, ks=KS):
    """FH@K by hand: the mean over all orders in which no class comes before a better one."""
    found = []
    for row, own in zip(scores, labels, strict=True):
        orders = [o for o in itertools.permutations(range(6)) if (np.diff(row[list(o)]) <= 0).all()]
        found.append(flat_hit(np.array(orders), np.tile(own, (len(orders), 1)), ks))
    return {k: np.mean([hits[k] for hits in found]) for k in ks}


@pytest.mark.parametrize("values", [1, 2, 3, 6])
def test_a_hit_is_expected_over_all_orders_of_tied_classes(values):
    """Labels with lower scores than an image's best one are among these rows, too."""
    scores = np.random.default_rng(values).integers(values, size=(6, 6)).astype(np.float32)
    assert hits_of(scores, LABELS) == pytest.approx(over_all_orders(scores, LABELS))


def test_scores_that_are_all_equal_give_chance_exactly():
    scores = np.full((6, 6), 0.25, np.float32)
    assert hits_of(scores, LABELS) == chance(LABELS, 6, KS)


def test_without_ties_hits_are_those_of_the_ranked_classes_exactly():
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(6.0), (6, 1)), axis=1)
    ranked = np.argsort(-scores, axis=1)
    assert hits_of(scores.astype(np.float32), LABELS) == flat_hit(ranked, LABELS, KS)


def test_an_image_without_labels_is_a_miss_whatever_is_tied():
    assert hits_of(np.zeros((1, 3), np.float32), np.array([[-1]]), (1, 3)) == {1: 0.0, 3: 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_told_from_those_that_are(bad):
    scores = np.zeros((3, 2), np.float32)
    scores[1, 1] = bad
    assert np.asarray(jax.jit(standing)(scores, np.zeros((3, 1), int)))[:, 3].tolist() == [1, 0, 1]


def test_rows_that_are_not_finite_are_counted_and_named():
    finite = np.array([True, False, True, False])
    with pytest.raises(UserError, match=r"images hold NaN or infinity, 2 of 4, such as b, d\."):
        check_finite(finite, "abcd".__getitem__, "images")
    check_finite(finite[::2], "ac".__getitem__, "images")
