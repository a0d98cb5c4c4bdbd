"""Average precision: how far before all others the pictures of a class stand, by their scores."""

import concurrent.futures
import os

import numpy as np
from jaxtyping import Bool, Float, Int

from otter_jax.zeroshot.measures import Marks, Measure, mean_over_classes

BLOCK = 2**23  # scores that a thread holds, 32 MB: never those of all pictures and classes


def precisions(
    scores: Float[np.ndarray, "N"], right: Bool[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "N"]]:
    """Returns the precision at the place of each picture of a class; their mean is its AP.

    The precision at a place is the share of the class among all pictures with at least that score.
    Pictures of equal scores have one place, that of the last of them, as in scikit-learn; where all
    scores are equal AP is the class's share of the pictures.

    The second array is the derivative of AP by the weight of each picture as far as it changes
    these precisions.
    """
    own = np.sort(scores[right])
    count = len(own)
    # For each picture of the class, by rising score: how many of the class, and how many in all,
    # have at least its score.
    hits = count - np.searchsorted(own, own, "left")
    at_least = len(scores) - np.searchsorted(np.sort(scores), own, "left")
    place = np.searchsorted(own, scores[right], "left")
    # A picture counts at the places of all pictures of the class that have at most its score.
    below = np.searchsorted(own, scores, "right")
    more_all = np.concatenate([[0.0], np.cumsum(hits / at_least**2)])
    more_hits = np.concatenate([[0.0], np.cumsum(1 / at_least)])
    gradient = -more_all[below]
    gradient[right] += more_hits[below[right]]
    return (hits / at_least)[place], gradient / count


def average_precisions(
    images: Float[np.ndarray, "N D"],
    bank: Float[np.ndarray, "C D"],
    labels: Int[np.ndarray, "N M"],
) -> Measure:
    """Returns mAP, the mean of AP over the classes with pictures; its marks are the precisions.

    The scores are cosines of images and classes. They are made for some classes at a time, in
    threads of `BLOCK` scores each. A resample changes precisions to first order.
    """
    rows, columns = np.nonzero(labels >= 0)
    order = np.argsort(labels[rows, columns], kind="stable")
    rows, numbers = rows[order], labels[rows, columns][order]
    present, first = np.unique(numbers, return_index=True)
    pictures = np.split(rows, first[1:])
    size = max(1, BLOCK // len(images))

    def measure(start):
        scores = bank[present[start : start + size]] @ images.T
        marks, gradient = [], np.zeros(len(images))
        for row, own in zip(scores, pictures[start : start + size], strict=True):
            right = np.zeros(len(images), bool)
            right[own] = True
            found, more = precisions(row, right)
            marks.append(found)
            gradient += more
        return marks, gradient

    marks, gradient = [], np.zeros(len(images))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for found, more in pool.map(measure, range(0, len(present), size)):
            marks += found
            gradient += more
    found = Marks(rows, numbers, np.concatenate(marks))
    return mean_over_classes(found, len(images), gradient / len(present))
