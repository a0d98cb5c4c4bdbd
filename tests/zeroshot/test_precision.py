"""Average precision is scikit-learn's, ties included; its intervals are near a full bootstrap's."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from otter_jax.zeroshot import precision
from otter_jax.zeroshot.measures import LEVELS, intervals

RNG = np.random.default_rng(0)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def several(images, classes, most=4):
    """Labels of images, at least one each, padded with -1."""
    rows = [RNG.permutation(classes)[: RNG.integers(1, most + 1)] for _ in range(images)]
    return np.array([[*row, *[-1] * (most - len(row))] for row in rows], np.int32)


def marks_of(labels, classes):
    return np.stack([(labels == c).any(axis=1) for c in range(classes)], axis=1)


@pytest.mark.parametrize("values", [1, 2, 5, 1000])
def test_a_classs_precision_is_scikit_learns_however_many_scores_are_tied(values):
    scores = RNG.integers(values, size=60).astype(np.float32)
    right = RNG.random(60) < 0.3
    found, _ = precision.precisions(scores, right)
    assert found.mean() == pytest.approx(average_precision_score(right, scores))


def test_equal_scores_give_the_share_of_the_class():
    right = np.arange(10) < 3
    assert precision.precisions(np.zeros(10, np.float32), right)[0].mean() == pytest.approx(0.3)


@pytest.mark.parametrize("block", [1, 1000, 2**23])
def test_map_is_scikit_learns_mean_over_the_classes_with_pictures_in_blocks_of_any_size(
    block, monkeypatch
):
    monkeypatch.setattr(precision, "BLOCK", block)
    images, bank, labels = unit(RNG.normal(size=(50, 8))), unit(RNG.normal(size=(9, 8))), None
    labels = several(50, 7)  # of two classes there is no picture
    found = precision.average_precisions(images, bank, labels)
    right, scores = marks_of(labels, 7), images @ bank[:7].T
    expected = average_precision_score(right, scores, average=None)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.marks.means(np.ones((50, 1)))[:, 0] == pytest.approx(expected)


def test_a_picture_that_weighs_more_changes_map_as_it_does_in_scikit_learn():
    images, bank, labels = (
        unit(RNG.normal(size=(30, 4))),
        unit(RNG.normal(size=(5, 4))),
        several(30, 5),
    )
    found, right = precision.average_precisions(images, bank, labels), marks_of(labels, 5)
    scores = images @ bank.T
    for picture in range(0, 30, 7):
        ends = []
        for change in (-1e-4, 1e-4):
            weights = np.ones(30)
            weights[picture] += change
            ends.append(average_precision_score(right, scores, sample_weight=weights))
            assert found.if_drawn(weights[:, None])[0] == pytest.approx(ends[-1], abs=1e-7)
        assert ends[0] != ends[1]


def test_its_interval_is_near_that_of_ranking_every_resample_anew():
    images, bank, labels = (
        unit(RNG.normal(size=(300, 4))),
        unit(RNG.normal(size=(5, 4))),
        several(300, 5),
    )
    right, scores = marks_of(labels, 5), images @ bank.T
    (found,) = intervals({"mAP": precision.average_precisions(images, bank, labels)}).values()
    rng, anew = np.random.default_rng(1), []
    for _ in range(300):
        some = rng.integers(300, size=300)
        anew.append(average_precision_score(right[some], scores[some]))
    low, high = np.quantile(anew, LEVELS)
    assert found[1] - found[0] == pytest.approx(high - low, rel=0.2)
