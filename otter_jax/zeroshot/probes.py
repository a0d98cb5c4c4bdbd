"""Probes: what a classifier that learns from labelled embeddings finds, beside zero-shot.

A linear probe is logistic regression, kNN the nearest labelled pictures; both are scikit-learn's,
on the embeddings that zero-shot recognition compares with class names. Their settings are chosen on
a part of what they learn from, never on the evaluated pictures.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from jaxtyping import Bool, Float, Int

from otter_jax.data import repeats
from otter_jax.errors import UserError
from otter_jax.zeroshot.measures import Measure
from otter_jax.zeroshot.metrics import of_classes
from otter_jax.zeroshot.ranking import Seen

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)  # C of logistic regression, 1 / L2 penalty
NEIGHBOURS = (1, 5, 10, 20, 50)
HELD_OUT = 5  # one of so many pictures of a class chooses the settings
ITERATIONS = 1_000
AT_ONCE = 2**24  # scores that are held
SEED = 0

Scores = Callable[[Float[np.ndarray, "N D"]], Float[np.ndarray, "N C"]]


class Probe(NamedTuple):
    """Holds a classifier: its name, its settings, and the scores it gives to all classes."""

    name: str
    settings: dict[str, Any]
    scores: Scores

    def metrics(self, seen: Seen) -> dict[str, Measure]:
        """Returns FH@K, accuracy and recall@K on a set with one label for each image."""
        above, level = standings(self.scores, seen.ranked.images, seen.labels[:, 0], len(seen.bank))
        return of_classes(above, level, seen.labels, len(seen.bank))


def learn(
    seen: Seen,
    images: Float[np.ndarray, "N D"],
    valid: Bool[np.ndarray, "N"],
    console: rich.console.Console,
) -> Iterator[Probe]:
    """Yields a linear probe and kNN of the embeddings of `seen.s.learned`, where these are valid.

    Raises UserError if fewer than two classes have pictures to learn from.
    """
    split = seen.s.learned
    counted = valid & (split.labels >= 0).any(axis=1)
    images, labels = images[counted], split.labels[counted].max(axis=1)
    classes = len(np.unique(labels))
    if classes < 2:
        raise UserError(
            f"eval.sets.{seen.s.name}.probe: {split.source.name} has pictures of {classes} class "
            "alone; a probe needs two or more."
        )
    console.print(
        f"{seen.s.name}, {seen.weights}: probes learn from {len(labels):,} pictures of {classes:,} "
        "classes"
    )
    if line := repeats.trained_on_line(seen.s.source, split.source):
        console.print(f"{seen.s.name}: {line.replace('trained on', 'learned from by probes')}")
    for name, make, choices in (
        ("linear probe", linear, STRENGTHS),
        ("kNN", nearest, NEIGHBOURS),
    ):
        yield chosen(name, make, choices, images, labels, len(seen.bank), console)


def chosen(
    name: str,
    make: Callable[..., tuple[Scores, dict[str, Any]]],
    choices: Sequence[float | int],
    images: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "N"],
    classes: int,
    console: rich.console.Console,
) -> Probe:
    """Returns the probe with that choice which is most often right on pictures it is not made of.

    Of equal ones the first is taken; the probe itself learns from all pictures.
    """
    held = held_out(labels)
    shares = {}
    if held.any():
        for choice in choices:
            scores, _ = make(images[~held], labels[~held], classes, choice)
            above, level = standings(scores, images[held], labels[held], classes)
            shares[choice] = float((np.clip(1 - above, 0, 1) / np.maximum(level, 1)).mean())
    best = max(shares, key=shares.__getitem__) if shares else choices[len(choices) // 2]
    scores, settings = make(images, labels, classes, best)
    told = ", ".join(f"{key}={value:g}" for key, value in settings.items())
    console.print(f"{name}: {told}, chosen on {held.sum():,} pictures of these")
    settings |= {"pictures": len(labels), "held_out": int(held.sum()), "accuracies": shares}
    return Probe(name, settings, scores)


def held_out(labels: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Marks every fifth picture of each class, in a random order, beginning with the second."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    seen = np.zeros(labels.max() + 1, int)
    held = np.zeros(len(labels), bool)
    for number in order:
        seen[labels[number]] += 1
        held[number] = seen[labels[number]] % HELD_OUT == 2
    return held


def linear(
    images: Float[np.ndarray, "N D"], labels: Int[np.ndarray, "N"], classes: int, strength: float
) -> tuple[Scores, dict[str, Any]]:
    """Fits logistic regression with C = `strength`; returns its scores, and its settings."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the settings have the iterations
        fitted.fit(images, labels)

    def scores(some):
        values = fitted.decision_function(some)
        values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
        return _spread(values, fitted.classes_, classes)

    return scores, {"C": strength, "iterations": int(fitted.n_iter_.max())}


def nearest(
    images: Float[np.ndarray, "N D"], labels: Int[np.ndarray, "N"], classes: int, number: int
) -> tuple[Scores, dict[str, Any]]:
    """Returns the scores of kNN with `number` neighbours, near ones weighing more; its settings."""
    from sklearn.neighbors import KNeighborsClassifier

    number = min(number, len(images))
    fitted = KNeighborsClassifier(number, weights="distance", algorithm="brute")
    fitted.fit(images, labels)

    def scores(some):
        return _spread(fitted.predict_proba(some), fitted.classes_, classes)

    return scores, {"neighbours": number}


def _spread(values, learned, classes):
    """Returns scores of all classes; those that were not learned are level, below all others."""
    found = np.full((len(values), classes), -np.inf)
    found[:, learned] = values
    return found


def standings(
    scores: Scores, images: Float[np.ndarray, "N D"], labels: Int[np.ndarray, "N"], classes: int
) -> tuple[Int[np.ndarray, "N 1"], Int[np.ndarray, "N 1"]]:
    """Returns how many classes are above, and how many level with, the label of each image."""
    found = []
    size = max(1, AT_ONCE // classes)
    for start in range(0, len(images), size):
        values = scores(images[start : start + size])
        own = np.take_along_axis(values, labels[start : start + size, None].astype(int), axis=1)
        found.append(np.stack([(values > own).sum(axis=1), (values == own).sum(axis=1)], axis=1))
    above, level = np.concatenate(found).T
    return above[:, None], level[:, None]
