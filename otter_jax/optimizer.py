"""The learning rate over steps, and the two optimisers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from otter_jax.errors import UserError

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""] | float]


def learning_rate(
    base: float | Float[Array, ""],
    *,
    total_steps: int,
    warmup_steps: int = 0,
    steps_per_epoch: float = 1,
) -> Schedule:
    """Returns a linear warm-up to `base`, then half a cosine that reaches 0 at `total_steps`.

    With steps_per_epoch > 1 the rate changes once an epoch, as in the release; else every step.
    """

    def schedule(step):
        held = jnp.floor(step / steps_per_epoch) * steps_per_epoch
        done = (held - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = 0.5 * base * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return jnp.where(step < warmup_steps, base * (step + 1) / max(warmup_steps, 1), cosine)

    return schedule


def matrices(params: PyTree) -> PyTree[bool]:
    """Marks the parameters that decay: kernels and embeddings, no gates, biases or scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim > 1 and path[0].key != "gates", params
    )


def _clipped(tx: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    """Returns `tx` with the gradient clipped before it.

    The state is that of `tx` alone, unlike that of a chain, so that clipping can be switched on in
    the middle of a run.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(updates, state, params=None):
        clipped, _ = clip.update(updates, optax.EmptyState(), params)
        return tx.update(clipped, state, params)

    return optax.GradientTransformation(tx.init, update)


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    frozen: PyTree[bool] | None = None,
    decayed: Callable[[PyTree], PyTree[bool]] = matrices,
) -> optax.GradientTransformation:
    """Returns SGD ("sgd") or AdamW ("adamw") under `schedule`; clip_norm 0 does not clip.

    SGD adds weight_decay * parameter to the gradient, AdamW decays apart from it, both as PyTorch
    does. Parameters marked in `frozen` have no optimiser state and never move.
    Raises UserError for another name.
    """
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay, mask=decayed)
        tx = optax.chain(decay, optax.sgd(schedule, momentum=momentum))
    elif name == "adamw":
        tx = optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)
    else:
        raise UserError(f'optim.name={name!r}: "sgd" or "adamw".')
    if clip_norm:
        tx = _clipped(tx, clip_norm)
    if frozen is not None:
        partition = jax.tree.map(lambda x: "frozen" if x else "trained", frozen)
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, partition)
    return tx
