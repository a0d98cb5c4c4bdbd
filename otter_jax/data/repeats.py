"""Counts pictures that come again: within a training batch, and in a set to evaluate on.

Several captions of one picture are several records, and sets that are mixed may share pictures.
Such rows of a batch count as negatives of each other, although they are not. Pictures are the same
if their bytes are, as they came.
"""

import numpy as np
from jaxtyping import Int64

from otter_jax.data.source import Source


def expected_repeats(source: Source, batch_size: int) -> float | None:
    """Returns the expected number of a batch's rows whose picture another row before them has.

    It is B minus the expected number of different pictures. A batch draws B_s of the N_s records of
    each set s without replacement. So a picture that has m_s of them is missing with probability

        prod_s C(N_s - m_s, B_s) / C(N_s, B_s) = prod_s prod_{i < m_s} (1 - B_s / (N_s - i)),

    that of 0 in the hypergeometric distribution (Feller, An Introduction to Probability Theory and
    Its Applications, vol. 1, II.6). B_s, the set's share of B, need not be whole. That few batches
    belong to two epochs is neglected. Returns None if a set does not keep digests of its pictures:
    it was not made here, or by an older version.
    """
    parts, digests = source.parts(), _digests(source)
    if digests is None:
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


def trained_on(source: Source, training: Source) -> int:
    """Counts the records of a set whose picture is in the training data, too.

    0 if one of them does not keep digests of its pictures.
    """
    own, trained = _digests(source), _digests(training)
    if own is None or trained is None:
        return 0
    return int(np.isin(np.concatenate(own), np.concatenate(trained)).sum())


def trained_on_line(source: Source, training: Source) -> str:
    """Returns how many pictures of a set are in the training data as text; "" if none are known."""
    number = trained_on(source, training)
    return f"{number:,} of {len(source):,} pictures are trained on, too" if number else ""


def _digests(source: Source) -> list[Int64[np.ndarray, "_"]] | None:
    """Returns a digest of each picture of each set that a source is of; None if one keeps none."""
    found = [part.pictures() for part, _ in source.parts()]
    return None if any(each is None for each in found) else found
