"""Finds the nearest vectors exactly, block by block, so that memory is bounded.

Between blocks the K best of each query are kept. Of a block's cosines only those are looked at that
are larger than the least of these, and the first blocks are small: so nearly all are compared once,
and never sorted. Figures: `benchmarks/search.py`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

FIRST, GROWTH = 256, 4  # vectors of the first block, and how much more those before have each time
BLOCK = 4_096  # vectors, at most,
AT_ONCE = 256  # and queries whose cosines are held


class Neighbours(NamedTuple):
    """Holds the nearest vectors of each query, the best first; of equal ones the first first.

    Attributes:
      rows: their numbers, counted over all blocks; -1 where there are fewer than K.
      cosines: with the query; -inf where there is none.
    """

    rows: Int64[np.ndarray, "Q K"]
    cosines: Float32[np.ndarray, "Q K"]


def nearest(
    queries: Float32[np.ndarray, "Q D"], blocks: Iterable[Float32[np.ndarray, "_ D"]], top: int
) -> Neighbours:
    """Returns the K = `top` vectors of all blocks with the largest products with each query.

    All vectors are of length 1, so that the product is the cosine. A vector that is not a number is
    nobody's neighbour.
    """
    best = Neighbours(
        np.full((len(queries), top), -1, np.int64),
        np.full((len(queries), top), -np.inf, np.float32),
    )
    seen = 0
    for block in _growing(blocks):
        for first in range(0, len(queries), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            _add(queries[some] @ block.T, seen, *(kept[some] for kept in best))
        seen += len(block)
    return best


def _growing(blocks: Iterable[Float32[np.ndarray, "_ D"]]) -> Iterator[Float32[np.ndarray, "_ D"]]:
    """Yields the same vectors in blocks of FIRST that grow to BLOCK."""
    seen = 0
    for block in blocks:
        begin = 0
        while begin < len(block):
            size = min(max(FIRST, (GROWTH - 1) * seen), BLOCK)
            part = block[begin : begin + size]
            yield part
            begin, seen = begin + len(part), seen + len(part)


def _add(
    cosines: Float32[np.ndarray, "Q B"],
    begin: int,
    rows: Int64[np.ndarray, "Q K"],
    best: Float32[np.ndarray, "Q K"],
) -> None:
    """Puts the best of a block, whose first vector has the number `begin`, among those kept."""
    top = best.shape[1]
    found = np.flatnonzero(cosines > best[:, -1:])
    if not len(found):
        return
    query, column = np.divmod(found, cosines.shape[1])
    counts = np.bincount(query, minlength=len(rows))
    place = top + np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.pad(best, ((0, 0), (0, counts.max())), constant_values=-np.inf)
    numbers = np.pad(rows, ((0, 0), (0, counts.max())), constant_values=-1)
    values[query, place] = cosines.ravel()[found]
    numbers[query, place] = begin + column
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    best[:] = np.take_along_axis(values, order, axis=1)
    rows[:] = np.take_along_axis(numbers, order, axis=1)
