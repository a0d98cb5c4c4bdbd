"""Computes flat hits and two baselines, with NumPy alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

KS = (1, 2, 5, 10)


def flat_hit(
    ranked: Int[np.ndarray, "N R"], labels: Int[np.ndarray, "N M"], ks: Sequence[int] = KS
) -> dict[int, float]:
    """Returns FH@K for each K: the share of rows with a label among their K best classes.

    `ranked` holds class numbers, best first; `labels` is padded with -1. An image without labels
    is a miss. A K beyond the R ranked classes is left out.
    """
    hits = (ranked[:, :, None] == labels[:, None, :]).any(axis=2)
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in ks if k <= ranked.shape[1]}


def expected_hit(
    above: Int[np.ndarray, "N"],
    level: Int[np.ndarray, "N"],
    own: Int[np.ndarray, "N"],
    ks: Sequence[int] = KS,
) -> dict[int, float]:
    """Returns the FH@K that is expected if classes of equal scores come in a random order.

    It is the mean of `hit_probability`. Without ties it is `flat_hit`; if all scores are equal it
    is `chance`.
    """
    return {k: float(hit_probability(above, level, own, k).mean()) for k in ks}


def hit_probability(
    above: Int[np.ndarray, "*N"],
    level: Int[np.ndarray, "*N"],
    own: Int[np.ndarray, "*N"] | int,
    k: int,
) -> Float[np.ndarray, "*N"]:
    """Returns the probability of a hit at K for each image, over the order of equal scores.

    Each image has `above` classes with a better score than its best label, and `level` ones with
    the same, `own` of which are its labels. No label is among the K best if the K - above places
    that are left go to others of the level ones: C(level - own, n) / C(level, n) with n = K -
    above. Labels with lower scores change nothing, as they come after all of these.
    """
    missed = np.ones(above.shape)
    for drawn in range(k):
        others = np.maximum(level - own - drawn, 0) / np.maximum(level - drawn, 1)
        missed *= np.where(drawn < k - above, others, 1)
    return 1 - missed


def best_label(
    above: Int[np.ndarray, "N M"], level: Int[np.ndarray, "N M"]
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Returns above, level and own of each image's best label, from those of all its labels."""
    best = above.min(axis=1)
    first = above.argmin(axis=1)[:, None]
    own = ((above == best[:, None]) & (level > 0)).sum(axis=1)
    return best, np.take_along_axis(level, first, axis=1)[:, 0], own


def chance(
    labels: Int[np.ndarray, "N M"], classes: int, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Returns the expected FH@K of a random order of the classes."""
    counts = (labels >= 0).sum(axis=1)
    level = np.full(len(labels), classes)
    return expected_hit(0 * counts, level, counts, [k for k in ks if k <= classes])


def frequency(
    labels: Int[np.ndarray, "N M"], classes: int, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Returns the FH@K of always answering the classes that are most frequent in these labels."""
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    order = np.argsort(-counts, kind="stable")[: max(ks)]
    return flat_hit(np.broadcast_to(order, (len(labels), len(order))), labels, ks)


def by_name(hits: dict[int, float]) -> dict[str, float]:
    """Renames {1: x} to {"FH@1": x}, the form of results and metrics."""
    return {f"FH@{k}": value for k, value in hits.items()}
