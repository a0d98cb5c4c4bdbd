"""The step of a transfer, which trains one or several groups of a network's parameters.

Start reading at `transfer_step`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree

from otter_jax import gates
from otter_jax.errors import UserError
from otter_jax.transfer.phases import GROUPS, groups_of, merge, select
from otter_jax.zeroshot.standing import standing


class TransferState(struct.PyTreeNode):
    """Holds everything that changes during training."""

    step: Any  # int32 scalar: updates done
    params: Any  # the network's, and its gates under "gates"
    batch_stats: Any  # running statistics of batch norm
    opt_state: Any  # Adam's, {group: ...}


def transfer_step(
    state: TransferState,
    batch: dict[str, Array],
    *,
    model: nn.Module,
    groups: str,
    learning_rate: Callable[[Array], Array | float],
    normalise: Callable[[Array], Array],
    gate_penalty: str,
    gate_strength: float,
    stored_statistics: bool,
) -> tuple[TransferState, dict[str, Float[Array, ""]]]:
    """Returns the next state, and the step's metrics, when the parameters of `groups` are trained.

    `batch` holds image uint8 [B, H, W, 3] and label int32 [B]. Whatever is trained, batch norms
    normalise by the batch and update their running statistics; with `stored_statistics` they
    normalise by the stored ones and keep them.
    """

    def loss_fn(trained):
        params = merge(state.params, trained)
        logits, updated = model.apply(
            {"params": gates.fold(params), "batch_stats": state.batch_stats},
            normalise(batch["image"]), train=not stored_statistics, mutable=["batch_stats"],
        )  # fmt: skip
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        terms = {"cross_entropy": losses.mean()}
        if "gates" in params:
            terms["gate_penalty"] = gates.penalty(params["gates"], gate_penalty)
        loss = terms["cross_entropy"] + gate_strength * terms.get("gate_penalty", 0.0)
        above, level, own, _ = standing(logits, batch["label"][:, None]).T
        terms["accuracy"] = jnp.where(above == 0, own / level, 0).mean()  # expected, where tied
        return loss, (terms, updated.get("batch_stats", {}))

    trained = {group: select(state.params, group, model) for group in groups}
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (terms, batch_stats)), grads = grad_fn(trained)
    rate = learning_rate(state.step)
    opt_state = dict(state.opt_state)
    for group in groups:
        updates, opt_state[group] = adam().update(grads[group], opt_state[group])
        trained[group] = jax.tree.map(lambda x, u: x - rate * u, trained[group], updates)
    norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(trained)}
    params = merge(state.params, trained)
    return TransferState(state.step + 1, params, batch_stats, opt_state), {
        "loss": loss, **terms, **norms
    }  # fmt: skip


def adam() -> optax.GradientTransformation:
    """Returns Adam before its learning rate, with the usual constants."""
    return optax.scale_by_adam()


def create_state(
    params: PyTree, batch_stats: PyTree, phases: list[str], model: nn.Module
) -> TransferState:
    """Returns the state before step 1. Raises UserError for a group without parameters."""
    opt_state = {}
    for group in groups_of(phases):
        chosen = select(params, group, model)
        if not chosen:
            raise UserError(
                f"A phase trains {group}, {GROUPS[group]}, but this network has none of them."
            )
        opt_state[group] = adam().init(chosen)
    return TransferState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)
