"""Entropic optimal transport between two uniform clouds of points (Sinkhorn; Cuturi 2013)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def sinkhorn(
    cost: Float[Array, "*batch M N"],
    *,
    epsilon: float | Float[Array, ""],
    num_iters: int,
    axis_name: str | None = None,
) -> Float[Array, "*batch M N"]:
    """Returns the transport plan of `cost`: columns carry 1/N exactly, rows 1/M up to convergence.

    One iteration scales the rows, then the columns; `num_iters` >= 1. All of it happens to
    logarithms: exp(-cost / epsilon) would overflow float32 once |cost| / epsilon passes 88.

    Inside `jax.shard_map`, with the M rows spread over the devices of `axis_name`, `cost` is what
    one device holds and so is the result. An iteration then sums one vector of N floats over the
    devices for each problem in `batch`; nothing of size M x N is ever sent.
    """
    log_kernel = -cost / epsilon
    N = cost.shape[-1]

    def over_devices(collective, x):
        return collective(x, axis_name) if axis_name else x

    def scale_rows(log_columns):
        return -jax.nn.logsumexp(log_kernel + log_columns, axis=-1, keepdims=True)

    def iteration(log_columns, shift=0.0):
        log_rows = scale_rows(log_columns)
        entries = jnp.exp(log_kernel + log_rows + log_columns - shift)
        total = over_devices(lax.psum, entries.sum(axis=-2, keepdims=True))
        return log_rows, log_columns - jnp.log(total) - shift

    # At first a whole column may lie below exp(-88); its largest entry keeps the sum in range.
    # Later the columns come in normalised: after the rows, their largest entry is >= 1 / (M N).
    log_columns = jnp.zeros((*cost.shape[:-2], 1, N), cost.dtype)
    largest = (log_kernel + scale_rows(log_columns)).max(axis=-2, keepdims=True)
    first = iteration(log_columns, shift=over_devices(lax.pmax, largest))
    log_rows, log_columns = lax.fori_loop(1, num_iters, lambda _, state: iteration(state[1]), first)
    return jnp.exp(log_kernel + log_rows + log_columns) / N
