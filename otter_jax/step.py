"""One training step: ask the teacher what matches what, then move towards it.

Start reading at `train_step`. It is written for the whole batch: B is the global batch, batch
norm is over B, every [B, B] matrix is complete; on a mesh the rows live on different devices, and
1 device and 8 devices compute the same numbers.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from otter_jax import gates
from otter_jax.freezing import share_frozen, stop_frozen, stored_statistics
from otter_jax.mesh import AXIS, ROWS, WHOLE
from otter_jax.objective import Objective, health, scale_of, targets_of


class TrainState(struct.PyTreeNode):
    """Everything that changes while training, and nothing else."""

    step: Any  # int32 scalar: updates done
    params: Any
    batch_stats: Any  # running statistics of batch norm
    opt_state: Any
    teacher: Any  # {"params", "batch_stats"}, shaped like the student's


def create_state(
    params: PyTree, batch_stats: PyTree, tx: optax.GradientTransformation
) -> TrainState:
    """The state before the first step; the teacher starts as a copy of the student."""
    student = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        teacher=jax.tree.map(jnp.copy, student),
    )


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    objective: Objective,
    mesh: Mesh,
    key: Key[Array, ""],
    freeze: str = "",
    gate_penalty: str = "",
    gate_strength: float = 0.0,
    ema_decay: float | None = 0.999,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The next state, and the step's metrics.

    `batch`: image uint8 [B, H, W, 3], token_ids int32 [B, L], mask bool [B, L]; of packed captions
    token_ids, mask and place as `Towers.embed_texts` takes them. Parameters whose path matches
    `freeze` (see `frozen`) stay as they are. Gates (see `gates`) are parameters like others, with
    `gate_strength` times their penalty in the loss. `ema_decay=None` keeps the teacher fixed: it
    then looks at the batch as in evaluation, an EMA teacher as in training (its own batch
    statistics and dropout masks), as released.
    """

    def encode(params, batch_stats, rng, train=True):
        with stored_statistics(freeze):
            return model.apply(
                {"params": gates.fold(params), "batch_stats": batch_stats},
                batch["image"], batch["token_ids"], batch["mask"], batch.get("place"),
                train=train, rngs={"dropout": rng}, mutable=["batch_stats"],
            )  # fmt: skip

    student_rng, teacher_rng = jax.random.split(jax.random.fold_in(key, state.step))
    per_device = functools.partial(jax.shard_map, mesh=mesh)
    student = {"params": state.params, "batch_stats": state.batch_stats}
    teacher = state.teacher if ema_decay is None else share_frozen(state.teacher, student, freeze)

    targets, numbers, teacher_stats = None, {}, None
    if objective.teacher != "none":
        embeddings, updated = encode(**teacher, rng=teacher_rng, train=ema_decay is not None)
        teacher_stats = updated.get("batch_stats", {})
        plan = functools.partial(objective.teacher_plans, axis_name=AXIS)
        plans = per_device(plan, in_specs=ROWS, out_specs=ROWS)(*embeddings)
        targets, numbers = targets_of(plans), health(plans)

    def loss_fn(params):
        params = stop_frozen(params, freeze)
        embeddings, updated = encode(params, state.batch_stats, student_rng)
        loss = functools.partial(objective.loss, axis_name=AXIS)
        loss = per_device(loss, in_specs=(ROWS, ROWS, ROWS, WHOLE), out_specs=WHOLE)
        loss, terms = loss(*embeddings, targets, params["log_scale"])
        if gate_penalty:
            terms["gate_penalty"] = gates.penalty(params["gates"], gate_penalty)
            loss += gate_strength * terms["gate_penalty"]
        return loss, (terms, updated.get("batch_stats", {}))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (terms, batch_stats)), grads = grad_fn(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    if ema_decay is not None:
        rate = 1 - ema_decay_at(state.step, ema_decay)
        student = {"params": params, "batch_stats": batch_stats}
        teacher = optax.incremental_update(student, teacher, rate)
        if teacher_stats is not None:  # a teacher that looked has statistics of its own
            teacher["batch_stats"] = teacher_stats

    norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
    metrics = {"loss": loss, **terms, **norms}
    scales = {f"scale_{name}": scale_of(x) for name, x in state.params["log_scale"].items()}
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, teacher)
    return new_state, metrics | scales | numbers


def ema_decay_at(step: Int[Array, ""], limit: float) -> Float[Array, ""]:
    """Decay applied after update `step` = 0, 1, ...: 3/12, 4/13, ..., at most `limit`.

    A young teacher follows closely, an old one slowly. The release averages before the forward
    pass instead, with (1 + k) / (10 + k) for k = 1, 2, ...: the same sequence of teachers.
    """
    return jnp.minimum(limit, (3 + step) / (12 + step))
