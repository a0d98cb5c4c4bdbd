"""Training one group of a network's parameters at a time: the groups, their phases, the step.

Start reading at `transfer_step`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Float, PyTree

from otter_jax import gates
from otter_jax.errors import UserError

GROUPS = {  # what a phase can train
    "f": "the classifier",
    "a": "the gates (filter attention)",
    "b": "scales and biases of the norms",
    "w": "all other weights",
}


class TransferState(struct.PyTreeNode):
    """Everything that changes while training, and nothing else."""

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
    penalty: str,
    strength: float,
    stored_statistics: bool,
) -> tuple[TransferState, dict[str, Float[Array, ""]]]:
    """The next state, and the step's metrics, when the parameters of `groups` are trained.

    `batch`: image uint8 [B, H, W, 3], label int32 [B]. Batch norms normalise by the batch and move
    their running statistics, whatever is trained; with `stored_statistics` by those they have.
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
            terms["penalty"] = gates.penalty(params["gates"], penalty)
        loss = terms["cross_entropy"] + strength * terms.get("penalty", 0.0)
        terms["accuracy"] = (logits.argmax(-1) == batch["label"]).mean()
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
    """Adam before its learning rate; the constants are the usual ones."""
    return optax.scale_by_adam()


def group_of(path: tuple[str, ...], beside: set[str], model: nn.Module) -> str:
    """The group of the parameter at `path`, which lies in one module with those `beside`."""
    if path[0] == "gates":
        return "a"
    if path[0] == model.classifier:
        return "f"
    return "b" if "scale" in beside else "w"


def select(params: PyTree, group: str, model: nn.Module) -> PyTree:
    """The parameters of one group; {} if there are none."""
    flat = traverse_util.flatten_dict(params)
    beside: dict[tuple[str, ...], set[str]] = {}
    for *module, name in flat:
        beside.setdefault(tuple(module), set()).add(name)
    chosen = {k: v for k, v in flat.items() if group_of(k, beside[k[:-1]], model) == group}
    return traverse_util.unflatten_dict(chosen)


def merge(params: PyTree, groups: Mapping[str, PyTree]) -> PyTree:
    """`params` with those of the groups in their places."""
    flat = traverse_util.flatten_dict(params)
    for part in groups.values():
        flat |= traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def trained(phases: Sequence[str]) -> list[str]:
    """The groups that any of the phases trains, sorted."""
    return sorted(set("".join(phases)))


def parse(text: str) -> list[str]:
    """The groups of each epoch: "FFa[fb]" is ["f", "f", "a", "bf"]. Raises UserError."""
    known = "; ".join(f"{letter} {what}" for letter, what in GROUPS.items())
    phases = []
    for match in re.finditer(r"\[(\w+)\]|(\w)|(.)", text, re.DOTALL):
        groups = (match[1] or match[2] or match[3]).lower()
        unknown = [letter for letter in groups if letter not in GROUPS]
        if unknown:
            raise UserError(
                f"phases={text!r}: there is no group {unknown[0]!r} (character "
                f"{match.start() + 1}). There are {known}; [bf] trains two together."
            )
        phases.append("".join(sorted(set(groups))))
    if not phases:
        raise UserError(f"phases='' trains nothing. There are {known}; an epoch each.")
    return phases


def create_state(
    params: PyTree, batch_stats: PyTree, phases: list[str], model: nn.Module
) -> TransferState:
    """The state before the first step. Raises UserError for a group without parameters."""
    opt_state = {}
    for group in trained(phases):
        chosen = select(params, group, model)
        if not chosen:
            raise UserError(
                f"A phase trains {group}, {GROUPS[group]}, but this network has none of them."
            )
        opt_state[group] = adam().init(chosen)
    return TransferState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)


def sizes(params: PyTree, model: nn.Module) -> dict[str, int]:
    """How many values each group has."""
    return {
        group: sum(leaf.size for leaf in jax.tree.leaves(select(params, group, model)))
        for group in GROUPS
    }
