"""Where an image's labels stand among the classes: all that its hits depend on, as counts.

The scores themselves, [B, C], stay on the devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from otter_jax.errors import UserError

EXAMPLES = 3  # in a message


def standing(scores: Float[Array, "B C"], labels: Int[Array, "B M"]) -> Int[Array, "B 4"]:
    """Counts how the classes stand to each image's best label, the one with the largest score.

    The columns are the classes above it; those level with it, itself included; the labels among
    these; and whether all of the image's scores are finite (1 or 0). `labels` are padded with -1,
    and none is there twice. Classes are level if their scores are equal, bit for bit: the same
    vectors give the same scores.
    """
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0), axis=1)
    return _counts(scores, jnp.where(labels >= 0, own, -jnp.inf))


def standing_among(scores: Float[Array, "B A"], right: Bool[Array, "B A"]) -> Int[Array, "B 4"]:
    """Counts as `standing` does, where the right answers of each query are marked."""
    return _counts(scores, jnp.where(right, scores, -jnp.inf))


def _counts(scores: Float[Array, "B C"], own: Float[Array, "B M"]) -> Int[Array, "B 4"]:
    """Counts how all scores stand to the best of each row's own; -inf is none."""
    best = own.max(axis=1, keepdims=True)
    level_own = (own == best) & (own > -jnp.inf)
    counts = (scores > best, scores == best, level_own, ~jnp.isfinite(scores))
    above, level, labels_level, broken = (count.sum(axis=1) for count in counts)
    return jnp.stack([above, level, labels_level, broken == 0], axis=1).astype(jnp.int32)


def standing_of_each(
    scores: Float[Array, "B C"], labels: Int[Array, "B M"]
) -> tuple[Int[Array, "B M"], Int[Array, "B M"]]:
    """Counts, for every label of an image, the classes above it and those level with it.

    A label is level with itself. Padding, -1, has all classes above it, and none level.
    """

    def place(label):
        own = jnp.take_along_axis(scores, jnp.maximum(label, 0)[:, None], axis=1)
        above, level = (counts.sum(axis=1) for counts in (scores > own, scores == own))
        return jnp.where(label < 0, scores.shape[1], above), jnp.where(label < 0, 0, level)

    # One label after the other, so that [B, M, C] never exists.
    above, level = jax.lax.map(place, labels.T)
    return above.T.astype(jnp.int32), level.T.astype(jnp.int32)


def check_finite(finite: Bool[np.ndarray, "N"], key: Callable[[int], str], what: str) -> None:
    """Raises UserError if some rows of `what` are not finite; `key` names a row by its number."""
    broken = np.flatnonzero(~finite)
    if len(broken):
        some = ", ".join(key(int(i)) for i in broken[:EXAMPLES])
        raise UserError(
            f"{what} hold NaN or infinity, {len(broken):,} of {len(finite):,}, such as {some}. "
            "Nothing can be ranked by them, so no score is given. Either the weights hold such "
            "numbers, too (a training that diverged, a damaged file), or model.dtype is too narrow "
            "for them; float32 is the widest."
        )
