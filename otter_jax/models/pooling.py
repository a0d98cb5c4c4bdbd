"""Pools the hidden states of a text's tokens into one vector, as sentence-transformers does."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# The first token's state, the mean over the tokens, their sum over the square root of their number,
# or the largest value of each feature.
Pooling = Literal["cls", "mean", "mean_sqrt_len_tokens", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pool(
    hidden: Float[Array, "B L H"], mask: Bool[Array, "B L"], how: Pooling = "mean"
) -> Float[Array, "B H"]:
    """Returns one vector per text, in float32; 0 for a text without tokens."""
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if how == "max":
        largest = jnp.where(mask[..., None], hidden, -jnp.inf).max(1)
        return jnp.where(mask.any(1)[:, None], largest, 0)
    if how == "cls":
        mask = first(mask)
    weight = mask.astype(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / divisor(weight.sum(1), how)


def pool_packed(
    hidden: Float[Array, "G R T H"],
    segment_ids: Int[Array, "G R T"],
    positions: Int[Array, "G b"],
    how: Pooling = "mean",
) -> tuple[Float[Array, "B H"], Bool[Array, " B"]]:
    """Returns `pool` of texts that share rows, and whether each has a token; B = G * b.

    Args:
      hidden: of G groups of R rows of T tokens.
      segment_ids: n at the tokens of a row's n-th text, 0 at padding.
      positions: row * (T + 1) + n - 1 for the row's n-th text; T for a text without tokens.
      how: as for `pool`.
    """
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    groups, rows, length, width = hidden.shape
    # One more slot than a row has tokens: texts without a token point to the last, empty one.
    own = segment_ids[:, :, None] == jnp.arange(1, length + 2)[:, None]
    tokens = own.sum(3)
    if how == "max":
        # Not over `own`, which would be a [T + 1, T, H] array per row.
        slot = jnp.where(segment_ids > 0, segment_ids - 1, length)
        texts = jax.vmap(jax.vmap(lambda x, at: jax.ops.segment_max(x, at, length + 1)))
        vectors = jnp.where(tokens[..., None] > 0, texts(hidden, slot), 0)
    else:
        taken = first(own) if how == "cls" else own
        sums = jnp.einsum(
            "grst,grth->grsh", taken.astype(hidden.dtype), hidden, precision="highest"
        )
        vectors = sums / divisor(taken.sum(3), how)[..., None]
    slots = rows * (length + 1)
    pooled = jnp.take_along_axis(
        vectors.reshape(groups, slots, width), positions[..., None], axis=1
    )
    there = jnp.take_along_axis(tokens.reshape(groups, slots), positions, axis=1) > 0
    return pooled.reshape(-1, width), there.reshape(-1)


def first(mask: Bool[Array, "*N L"]) -> Bool[Array, "*N L"]:
    """Returns the mask of the first token alone."""
    return mask & (mask.cumsum(-1) == 1)


def divisor(tokens: Shaped[Array, "*N"], how: Pooling) -> Shaped[Array, "*N"]:
    """Returns what a sum over so many tokens is divided by."""
    tokens = jnp.maximum(tokens, 1)
    return jnp.sqrt(tokens) if how == "mean_sqrt_len_tokens" else tokens
