"""Probes are scikit-learn's, and nothing of what is evaluated chooses their settings."""

import dataclasses

import numpy as np
import pytest
from colours import COLOURS, eval_set, evaluation_of, weights
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from otter_jax.errors import UserError
from otter_jax.run.console import make_console
from otter_jax.zeroshot import probes

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 5))
LABELS = np.repeat(np.arange(3), 20)
CLASSES = 5  # two more than are learned


def embedded(labels, seed):
    x = CENTRES[labels] + np.random.default_rng(seed).normal(size=(len(labels), 5))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


IMAGES, OTHERS = embedded(LABELS, 1), embedded(LABELS, 2)


@pytest.mark.parametrize(
    ("make", "choice", "theirs"),
    [
        (probes.linear, 10.0, LogisticRegression(C=10.0, max_iter=1000)),
        (probes.nearest, 5, KNeighborsClassifier(5, weights="distance")),
    ],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_right_where_scikit_learns_is(make, choice, theirs, classes):
    some = classes > LABELS
    scores, _ = make(IMAGES[some], LABELS[some], CLASSES, choice)
    above, level = probes.standings(scores, OTHERS[some], LABELS[some], CLASSES)
    expected = theirs.fit(IMAGES[some], LABELS[some]).predict(OTHERS[some])
    assert (level[above == 0] == 1).all()
    assert (above == 0).mean() == accuracy_score(LABELS[some], expected)


def test_a_class_that_was_not_learned_is_below_those_that_were_and_level_with_its_like():
    scores, _ = probes.nearest(IMAGES, LABELS, CLASSES, 5)
    above, level = probes.standings(scores, OTHERS[:2], np.array([3, 4]), CLASSES)
    assert above.tolist() == [[3], [3]]
    assert level.tolist() == [[2], [2]]


def test_standings_are_the_same_in_parts_of_any_size(monkeypatch):
    scores, _ = probes.linear(IMAGES, LABELS, CLASSES, 1.0)
    whole = probes.standings(scores, OTHERS, LABELS, CLASSES)
    monkeypatch.setattr(probes, "AT_ONCE", 7 * CLASSES)
    for a, b in zip(whole, probes.standings(scores, OTHERS, LABELS, CLASSES), strict=True):
        np.testing.assert_array_equal(a, b)


def test_settings_are_those_that_are_best_on_what_is_held_out_and_the_probe_learns_from_all():
    held = probes.held_out(LABELS)
    assert [held[c == LABELS].sum() for c in range(3)] == [4, 4, 4]
    assert not probes.held_out(np.arange(3)).any()
    assert probes.held_out(np.array([0, 0, 1])).sum() == 1
    found = probes.chosen(
        "kNN", probes.nearest, (1, 5, 10), IMAGES, LABELS, CLASSES, make_console()
    )
    shares = {}
    for k in (1, 5, 10):
        other = KNeighborsClassifier(k, weights="distance").fit(IMAGES[~held], LABELS[~held])
        shares[k] = other.score(IMAGES[held], LABELS[held])
    assert found.settings["accuracies"] == pytest.approx(shares)
    assert found.settings["neighbours"] == max(shares, key=shares.__getitem__)
    assert found.settings["pictures"] == len(LABELS)


def with_split(labels, pictures):
    """A set of the colours whose probes learn from pictures with these labels."""
    learned = eval_set(labels, pictures)
    one = [[0], [1], [2], [0], [0], [-1]]
    return dataclasses.replace(eval_set(one), learned=learned)


def test_probes_stand_beside_the_weights_and_know_what_names_do_not(tmp_path, monkeypatch):
    """The names of green and blue are exchanged; who sees labelled pictures is not deceived."""
    labels = [[n] for n in range(3)] * 4
    evaluate = evaluation_of(with_split(labels, list(COLOURS) * 4), tmp_path, monkeypatch)
    exchanged = weights(green=(0, 0, 1), blue=(0, 1, 0))
    metrics, result = evaluate(exchanged, whole=True)
    assert metrics["colours/student/FH@1"] == 0.5
    for name in ("student, linear probe", "student, kNN"):
        assert result[name]["FH@1"] == result[name]["recall@1"] == 1.0
        assert result["intervals"][name]["FH@1"] == [1.0, 1.0]
        assert result["probes"][name]["pictures"] == 12
    assert all("probe" not in name for name in metrics)
    _, result = evaluate(exchanged)
    assert "probes" not in result


def test_a_probe_of_one_class_is_an_error_that_says_so(tmp_path, monkeypatch):
    found = with_split([[1], [1], [-1]], ["green", "green", "red"])
    with pytest.raises(UserError, match=r"colours\.probe: .* pictures of 1 class alone"):
        evaluation_of(found, tmp_path, monkeypatch)(weights(), whole=True)
