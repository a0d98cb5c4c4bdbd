"""What is measured on a set: flat hits and recalls, and how sure they are.

NumPy and SciPy alone. A measure knows how it changes where pictures are drawn several times or not
at all; intervals are made of it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from otter_jax.zeroshot.hits import KS, best_label, hit_probability

RESAMPLES = 1_000
AT_ONCE = 2**20  # pictures that are drawn at once, over some resamples
SEED = 0  # of the resamples, the same for all weights of a set
LEVELS = (0.025, 0.975)  # the ends of an interval of 95 %


@dataclasses.dataclass(frozen=True)
class Marks:
    """Holds a mark in 0..1 for each pair of a picture and one of its classes."""

    picture: Int[np.ndarray, "E"]
    number: Int[np.ndarray, "E"]
    mark: Float[np.ndarray, "E"]

    def means(self, times: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "C R"]:
        """Returns the mean mark of each class, NaN without pictures, if these have such weights."""
        marks, ones = self._matrices
        weight = ones @ times[: marks.shape[1]]
        sums = marks @ times[: marks.shape[1]]
        return np.divide(sums, weight, out=np.full(weight.shape, np.nan), where=weight > 0)

    @functools.cached_property
    def _matrices(self) -> list[scipy.sparse.csr_array]:
        """The marks, and where there are some, as classes x pictures."""
        at = (self.number, self.picture)
        return [scipy.sparse.csr_array((x, at)) for x in (self.mark, np.ones(len(self.mark)))]


class Measure(NamedTuple):
    """Holds a number that is measured over pictures.

    It is the mean over classes of the mean of their `marks`, where there are some; to which comes
    `gradient`, the derivative by the weight of each picture, times the weights: its sum is 0.
    """

    value: float
    gradient: Float[np.ndarray, "N"]
    marks: Marks | None = None

    def if_drawn(self, times: Float[np.ndarray, "N R"]) -> Float[np.ndarray, "R"]:
        """Returns the number for each resample, in which each picture is there so many times."""
        change = self.gradient @ times
        if self.marks is None:
            return self.value + change
        return np.nanmean(self.marks.means(times), axis=0) + change


def mean_of(values: Float[np.ndarray, "N"]) -> Measure:
    """Returns the mean of one value for each picture."""
    mean = values.mean()
    return Measure(float(mean), (values - mean) / len(values))


def mean_over_classes(
    marks: Marks, pictures: int, gradient: Float[np.ndarray, "N"] | None = None
) -> Measure:
    """Returns the mean over the classes with pictures of the means of their marks."""
    each = marks.means(np.ones((pictures, 1)))
    zeros = np.zeros(pictures)
    return Measure(float(np.nanmean(each)), zeros if gradient is None else gradient, marks)


def flat_hits(
    above: Int[np.ndarray, "N M"], level: Int[np.ndarray, "N M"], ks: Sequence[int] = KS
) -> dict[str, Measure]:
    """Returns FH@K, expected over ties: the share of pictures with a label among the K best."""
    best = best_label(above, level)
    return {f"FH@{k}": mean_of(hit_probability(*best, k)) for k in ks}


def recall_marks(
    above: Int[np.ndarray, "N M"],
    level: Int[np.ndarray, "N M"],
    labels: Int[np.ndarray, "N M"],
    k: int,
) -> Marks:
    """Marks which pictures of a class have that class among their K best, expected over ties."""
    picture, column = np.nonzero(labels >= 0)
    found = hit_probability(above[picture, column], level[picture, column], 1, k)
    return Marks(picture, labels[picture, column], found)


def mean_recalls(
    above: Int[np.ndarray, "N M"],
    level: Int[np.ndarray, "N M"],
    labels: Int[np.ndarray, "N M"],
    ks: Sequence[int] = KS,
) -> dict[str, Measure]:
    """Returns recall@K: the mean, over the classes with pictures, of the recall of each.

    That is the share of the class's pictures that have it among their K best. With one label for
    each picture, recall@1 is scikit-learn's balanced accuracy.
    """
    return {
        f"recall@{k}": mean_over_classes(recall_marks(above, level, labels, k), len(labels))
        for k in ks
    }


def over_groups(measure: Measure, group: Int[np.ndarray, "N"], groups: int) -> Measure:
    """Returns a measure without marks as one of groups of pictures, which are drawn as a whole."""
    return Measure(measure.value, np.bincount(group, weights=measure.gradient, minlength=groups))


def intervals(measures: Mapping[str, Measure]) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of each measure, by the bootstrap over pictures.

    Pictures are drawn with replacement, as many as there are, `RESAMPLES` times; the ends are
    percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 13.3). A class none of
    whose pictures is drawn is left out of that resample's means over classes.
    """
    pictures = len(next(iter(measures.values())).gradient)
    rng = np.random.default_rng(SEED)
    found: dict[str, list] = {name: [] for name in measures}
    size = max(1, AT_ONCE // pictures)
    for start in range(0, RESAMPLES, size):
        times = np.stack(
            [
                np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)
                for _ in range(min(size, RESAMPLES - start))
            ],
            axis=1,
        ).astype(np.float64)
        for name, measure in measures.items():
            found[name].append(measure.if_drawn(times))
    return {name: _ends(np.concatenate(parts)) for name, parts in found.items()}


def _ends(values: Float[np.ndarray, "R"]) -> tuple[float, float]:
    low, high = np.clip(np.quantile(values, LEVELS), 0.0, 1.0)
    return float(low), float(high)
