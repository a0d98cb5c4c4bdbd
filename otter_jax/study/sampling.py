"""Draws what a run sees, all from its seed: its pairs, which captions are wrong, and the order."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

# Streams of one seed that must not be each other's.
_ORDER, _SHARE, _NOISE = range(3)


class Pairs(NamedTuple):
    """Holds the pairs of a run, by the rows of pictures and captions among the features.

    Attributes:
      wrong: whether the caption is another pair's.
    """

    images: Int[np.ndarray, "N"]
    texts: Int[np.ndarray, "N"]
    wrong: Bool[np.ndarray, "N"]


def draw_pairs(rows: Int[np.ndarray, "N"], *, share: float, noise: float, seed: int) -> Pairs:
    """Takes a share of the pairs at these rows, and exchanges captions among a part of them.

    The part `noise` of the pairs that are left exchange their captions in a cycle, so that each of
    them has another pair's; that may happen to say the same.
    """
    taken = rows
    if share < 1:
        count = max(2, round(share * len(rows)))
        taken = np.sort(_generator(seed, _SHARE).permutation(rows)[:count])
    texts, wrong = taken.copy(), np.zeros(len(taken), bool)
    cycle = _generator(seed, _NOISE).permutation(len(taken))[: round(noise * len(taken))]
    if len(cycle) > 1:
        texts[cycle] = taken[np.roll(cycle, 1)]
        wrong[cycle] = True
    return Pairs(taken, texts, wrong)


def draw_order(pairs: int, *, batch_size: int, steps: int, seed: int) -> Int[np.ndarray, "steps B"]:
    """Returns the numbers of the pairs in each batch: every epoch is a new permutation.

    An epoch's last batch is filled up from the next epoch, as in training.
    """
    generator = _generator(seed, _ORDER)
    epochs = -(-steps * batch_size // pairs)
    stream = np.concatenate([generator.permutation(pairs) for _ in range(epochs)])
    return stream[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def held_out(
    concepts: list[list[str]], known: set[str], *, count: int, seed: int
) -> Bool[np.ndarray, "N"]:
    """Marks the rows of `count` concepts, drawn among those that are known names."""
    there = sorted({name for row in concepts for name in row} & known)
    chosen = set(np.random.default_rng(seed).permutation(there)[:count].tolist())
    return np.array([bool(chosen.intersection(row)) for row in concepts])


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, stream]))
