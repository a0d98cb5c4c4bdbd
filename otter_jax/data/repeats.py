"""Computes how many rows of a training batch have a picture that the batch holds already.

Several captions of one picture are several records, and sets that are mixed may share pictures.
Such rows count as negatives of each other, although they are not.
"""

import numpy as np

from otter_jax.data.source import Source


def expected_repeats(source: Source, batch_size: int) -> float | None:
    """Returns the expected number of a batch's rows whose picture another row before them has.

    It is B minus the expected number of different pictures. A batch draws B_s of the N_s records of
    each set s without replacement. So a picture that has m_s of them is missing with probability

        prod_s C(N_s - m_s, B_s) / C(N_s, B_s) = prod_s prod_{i < m_s} (1 - B_s / (N_s - i)),

    that of 0 in the hypergeometric distribution (Feller, An Introduction to Probability Theory and
    Its Applications, vol. 1, II.6). B_s, the set's share of B, need not be whole. That few batches
    belong to two epochs is neglected. Pictures are the same if their bytes are. Returns None if a
    set does not keep digests of its pictures: it was not made here, or by an older version.
    """
    parts = source.parts()
    digests = [part.pictures() for part, _ in parts]
    if any(found is None for found in digests):
        return None
    different, which = np.unique(np.concatenate(digests), return_inverse=True)
    log_missing, first = np.zeros(len(different)), 0
    for (part, share), found in zip(parts, digests, strict=True):
        records = np.bincount(which[first : first + len(found)], minlength=len(different))
        first += len(found)
        left = len(part) - np.arange(records.max())
        with np.errstate(divide="ignore"):  # a picture of so many records cannot be missing
            factors = np.log1p(-np.minimum(batch_size * share / left, 1.0))
        log_missing += np.concatenate([[0.0], np.cumsum(factors)])[records]
    return max(0.0, batch_size + float(np.expm1(log_missing).sum()))


def repeats_line(expected: float, batch_size: int) -> str:
    """Returns what `expected_repeats` returned as text."""
    share = f"{expected:.1f} of {batch_size} rows of a batch ({expected / batch_size:.1%})"
    return f"{share} are expected to have the picture of another row"
