"""Computes flat hits and two baselines, with NumPy alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

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


def chance(
    labels: Int[np.ndarray, "N M"], classes: int, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Returns the expected FH@K of a random order of the classes."""
    counts = (labels >= 0).sum(axis=1)
    found = {}
    for k in (k for k in ks if k <= classes):
        missed = np.ones(len(labels))
        for drawn in range(k):
            missed *= np.maximum(classes - counts - drawn, 0) / (classes - drawn)
        found[k] = float(1 - missed.mean())
    return found


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
