"""Ranks classes for pictures by their vectors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Ranked(NamedTuple):
    """Holds the K best classes of N pictures, best first: their numbers, and how good they are."""

    classes: Int[np.ndarray, "N K"]
    probabilities: Float[np.ndarray, "N K"]
    cosines: Float[np.ndarray, "N K"]


def rank(
    pictures: Float[np.ndarray, "N D"],
    bank: Float[np.ndarray, "C D"],
    *,
    scale: float,
    top: int,
    floor: float | Float[np.ndarray, " D"] | None = None,
) -> Ranked:
    """Returns the `top` classes with the largest cosine, or all if there are fewer.

    Probabilities are the softmax over all classes of `scale` times the cosine: the question is
    which class it is, and they add up to 1. With `floor` they answer for each class on its own, by
    the sigmoid of `scale` times its cosine, minus `scale` times the cosine of the vector `floor`,
    or minus the number `floor`. Classes with the same cosine stay in their order.
    """
    cosines = pictures @ bank.T
    k = min(top, len(bank))
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(cosines, best, axis=1)
    logits = scale * chosen
    if floor is None:
        whole = scale * cosines
        most = whole.max(axis=1, keepdims=True)
        total = np.exp(whole - most).sum(axis=1, keepdims=True)
        return Ranked(best, np.exp(logits - most) / total, chosen)
    least = scale * (pictures @ floor)[:, None] if isinstance(floor, np.ndarray) else floor
    return Ranked(best, 1 / (1 + np.exp(least - logits)), chosen)
