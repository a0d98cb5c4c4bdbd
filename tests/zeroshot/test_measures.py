"""Recalls and intervals, against scikit-learn and the bootstrap as a loop over resamples."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from otter_jax.zeroshot.hits import best_label
from otter_jax.zeroshot.measures import (
    RESAMPLES,
    SEED,
    flat_hits,
    intervals,
    mean_of,
    mean_recalls,
    over_groups,
)
from otter_jax.zeroshot.standing import standing, standing_of_each

N, C = 40, 6
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C - 1, (N, 1))  # the last class has no picture
SEVERAL = np.array([[0, -1, -1], [1, 4, -1], [2, 3, 5], [5, 0, -1], [3, -1, -1], [1, 2, 0]])


def standings(scores, labels):
    above, level = jax.jit(standing_of_each)(scores.astype(np.float32), labels)
    return np.asarray(above), np.asarray(level)


def drawn(pictures):
    """The pictures of each resample."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(pictures, size=pictures) for _ in range(RESAMPLES)]


@pytest.mark.parametrize("values", [2, 4, 1000])
def test_the_best_label_of_an_image_stands_as_it_does_by_itself(values):
    """However many labels are level, and whichever of them comes first."""
    scores = np.random.default_rng(values).integers(values, size=(6, 6)).astype(np.float32)
    above, level, own, _ = np.asarray(jax.jit(standing)(scores, SEVERAL)).T
    for each, expected in zip(
        best_label(*standings(scores, SEVERAL)), (above, level, own), strict=True
    ):
        np.testing.assert_array_equal(each, expected)


def test_mean_recall_is_the_balanced_accuracy_of_scikit_learn():
    scores = RNG.normal(size=(N, C))
    found = mean_recalls(*standings(scores, LABELS), LABELS)
    best = scores[:, :-1].argmax(axis=1)
    scores[:, -1] = -9  # which scikit-learn would count as a class that is never right
    found = mean_recalls(*standings(scores, LABELS), LABELS)
    assert found["recall@1"].value == pytest.approx(balanced_accuracy_score(LABELS[:, 0], best))


@pytest.mark.parametrize("values", [1, 2, 3])
def test_a_recall_is_expected_over_all_orders_of_tied_classes(values):
    scores = np.random.default_rng(values).integers(values, size=(6, 6))
    of = {k: {c: [] for c in range(6)} for k in (1, 2, 5)}
    for row, own in zip(scores, SEVERAL, strict=True):
        orders = [o for o in itertools.permutations(range(6)) if (np.diff(row[list(o)]) <= 0).all()]
        for k, c in itertools.product(of, own[own >= 0]):
            of[k][c].append(np.mean([c in order[:k] for order in orders]))
    found = mean_recalls(*standings(scores, SEVERAL), SEVERAL, (1, 2, 5))
    for k, each in of.items():
        expected = np.mean([np.mean(hits) for hits in each.values() if hits])
        assert found[f"recall@{k}"].value == pytest.approx(expected)


def test_intervals_are_those_of_a_loop_over_resamples():
    above, level = standings(RNG.normal(size=(N, C)), LABELS)
    found = intervals(flat_hits(above, level, (1, 2)) | mean_recalls(above, level, LABELS, (1, 2)))
    assert list(found) == ["FH@1", "FH@2", "recall@1", "recall@2"]
    for k in (1, 2):
        hits, recalls = [], []
        for some in drawn(N):
            hit, label = above[some, 0] < k, LABELS[some, 0]
            hits.append(hit.mean())
            recalls.append(np.mean([hit[label == c].mean() for c in np.unique(label)]))
        for name, values in (("FH", hits), ("recall", recalls)):
            assert found[f"{name}@{k}"] == pytest.approx(np.quantile(values, (0.025, 0.975)))


def test_captions_of_a_picture_are_drawn_together():
    hits = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    picture = np.array([0, 0, 1, 1, 2])
    (found,) = intervals({"R": over_groups(mean_of(hits), picture, 3)}).values()
    changes = [
        hits.mean() + sum((hits[picture == p] - 0.6).sum() / 5 for p in some) for some in drawn(3)
    ]
    assert found == pytest.approx(np.clip(np.quantile(changes, (0.025, 0.975)), 0, 1))


def test_an_interval_holds_the_value_and_is_half_as_wide_with_four_times_the_pictures():
    widths = []
    for pictures in (400, 1600):
        measure = mean_of(np.arange(pictures) % 4 / 3)
        ((low, high),) = intervals({"x": measure}).values()
        assert low < measure.value < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)
