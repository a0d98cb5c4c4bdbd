"""Finds the nearest vectors exactly, block by block, so that memory is bounded.

Between blocks the K best of each query are kept. Of a block's cosines only those are looked at that
are larger than the least of these, and the first blocks are small: so nearly all are compared once,
and never sorted, and the products take nearly all the time. Figures: `benchmarks/search.py`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt64

FIRST = 512  # vectors of the first block;
GROWTH = 4  # later ones have three times as many as all before, at most
AT_ONCE = 256  # queries,
HELD = 1 << 19  # and cosines that are held, in the cache
# For so few queries a dot product per vector is faster than BLAS's products of matrices, twice as
# fast for one; vectors that all queries meet stay in the cache.
FEW, CACHED = 4, 512
NOBODY = np.uint64(2**64 - 1)
HALF, LOW, SIGN = np.uint64(32), np.uint64(2**32 - 1), np.uint32(2**31)
Vectors = Float32[np.ndarray, "_ D"]


class Neighbours(NamedTuple):
    """Holds the nearest vectors of each query, the best first; of equal ones the first first.

    Attributes:
      rows: their numbers, counted over all blocks; -1 where there are fewer than K.
      cosines: with the query; -inf where there is none.
    """

    rows: Int64[np.ndarray, "Q K"]
    cosines: Float32[np.ndarray, "Q K"]


def nearest(queries: Float32[np.ndarray, "Q D"], blocks: Iterable[Vectors], top: int) -> Neighbours:
    """Returns the K = `top` vectors of all blocks with the largest products with each query.

    All vectors are of length 1, so that the product is the cosine. A vector that is not a number is
    nobody's neighbour. There may be 2^32 - 1 vectors.
    """
    best = np.full((len(queries), top), NOBODY)
    seen = 0
    most = HELD // max(1, min(len(queries), AT_ONCE))
    for block in _growing(blocks, most):
        for first in range(0, len(queries), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            _add(_products(block, queries[some]), seen, best[some])
        seen += len(block)
    rows = (best & LOW).astype(np.int64)
    cosines = _cosines(best)
    rows[best == NOBODY], cosines[best == NOBODY] = -1, -np.inf
    return Neighbours(rows, cosines)


def _growing(blocks: Iterable[Vectors], most: int) -> Iterator[Vectors]:
    """Yields the same vectors in blocks that grow from FIRST to `most`."""
    seen = 0
    for block in blocks:
        begin = 0
        while begin < len(block):
            size = min(max(FIRST, (GROWTH - 1) * seen), most)
            part = block[begin : begin + size]
            yield part
            begin, seen = begin + len(part), seen + len(part)


def _products(
    block: Float32[np.ndarray, "B D"], queries: Float32[np.ndarray, "Q D"]
) -> Float32[np.ndarray, "B Q"]:
    if len(queries) > FEW:
        return block @ queries.T
    found = np.empty((len(block), len(queries)), np.float32)
    for begin in range(0, len(block), CACHED):
        some = slice(begin, begin + CACHED)
        np.vecdot(block[some, None], queries, out=found[some])
    return found


def _add(cosines: Float32[np.ndarray, "B Q"], begin: int, best: UInt64[np.ndarray, "Q K"]) -> None:
    """Puts the best of a block, whose first vector has the number `begin`, among those kept."""
    top = best.shape[1]
    least = np.where(best[:, -1] == NOBODY, np.float32(-np.inf), _cosines(best[:, -1]))
    if not begin and len(cosines) > top:  # or all of the first block would be larger
        valid = np.fmax(cosines.T, np.float32(-np.inf), order="C")
        kth = np.partition(valid, -top, axis=1)[:, -top]
        least = np.nextafter(kth, np.float32(-np.inf))
    found = np.flatnonzero(cosines > least)
    if not len(found):
        return
    row, query = np.divmod(found, len(best))
    order = np.argsort(query.astype(np.uint16), kind="stable")
    found, row, query = found[order], row[order], query[order]
    counts = np.bincount(query, minlength=len(best))
    place = top + np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.full((len(best), top + counts.max()), NOBODY)
    keys[:, :top] = best
    keys[query, place] = _keys(cosines.ravel()[found], begin + row)
    best[:] = np.sort(keys, axis=1)[:, :top]


# A cosine and its row are one number, so that they are sorted in one pass of wide registers: the
# larger the cosine, and of equal ones the smaller the row, the smaller is the key. Floats of
# IEEE 754 are ordered as their bits are, but for those below zero, which are ordered backwards.


def _keys(
    cosines: Float32[np.ndarray, " N"], rows: Int64[np.ndarray, " N"]
) -> UInt64[np.ndarray, " N"]:
    bits = cosines.view(np.uint32)
    rising = np.where(bits & SIGN, ~bits, bits | SIGN)
    return (~rising).astype(np.uint64) << HALF | rows.astype(np.uint64)


def _cosines(keys: UInt64[np.ndarray, "*N"]) -> Float32[np.ndarray, "*N"]:
    rising = ~(keys >> HALF).astype(np.uint32)
    return np.where(rising & SIGN, rising ^ SIGN, ~rising).view(np.float32)
