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

from otter_jax import gates, panels
from otter_jax.embedding import embed
from otter_jax.freezing import stop_frozen, with_frozen
from otter_jax.mesh import AXIS, ROWS, WHOLE
from otter_jax.objective import (
    ByDirection,
    Objective,
    clamp_log_scale,
    health,
    scale_of,
    targets_of,
)


class TrainState(struct.PyTreeNode):
    """Holds everything that changes during training."""

    step: Any  # int32 scalar: updates done
    params: Any
    batch_stats: Any  # running statistics of batch norm
    opt_state: Any
    teacher: Any  # {"params", "batch_stats"}, shaped like the student's


def create_state(
    params: PyTree, batch_stats: PyTree, tx: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step; the teacher starts as a copy of the student."""
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
    clamp_scales: bool = True,
    form: str = "dense",
    microbatch: int = 0,
    remat: str = "",
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns the next state, and the step's metrics.

    `batch` holds image uint8 [B, H, W, 3], and captions as `Towers` takes them. Parameters that
    match `freeze` stay as they are (see `freezing`). The loss has the penalty of the gates (see
    `gates`), times `gate_strength`. `clamp_scales` keeps temperatures where they have a gradient.
    With `ema_decay=None` the teacher is fixed, and runs in evaluation mode; an EMA teacher runs in
    training mode (its own batch statistics and dropout masks), as released. `form` of the B x B
    matrices: one of panels.FORMS. `microbatch` and `remat` are those of `embedding.embed`.
    """
    where = {"mesh": mesh, "form": form}
    how = {"mesh": mesh, "freeze": freeze, "microbatch": microbatch, "remat": remat}
    encode = functools.partial(embed, model, batch, **how)
    student_rng, teacher_rng = jax.random.split(jax.random.fold_in(key, state.step))
    student = {"params": state.params, "batch_stats": state.batch_stats}
    teacher = state.teacher if ema_decay is None else with_frozen(state.teacher, student, freeze)
    targets, numbers, teacher_stats = None, {}, None
    if objective.has_teacher:  # it looks first: its embeddings set the student's targets
        with jax.named_scope("teacher"):
            embeddings, updated = encode(teacher, teacher_rng, train=ema_decay is not None)
        teacher_stats = updated.get("batch_stats", {})
        targets, numbers = teach(objective, *embeddings, **where)

    def loss_fn(params):  # of the student alone: the targets are constants
        params = stop_frozen(params, freeze)
        student = {"params": params, "batch_stats": state.batch_stats}
        embeddings, updated = encode(student, student_rng, train=True)
        loss, terms = matching_loss(objective, *embeddings, targets, params["log_scale"], **where)
        if gate_penalty:
            terms["gate_penalty"] = gates.penalty(params["gates"], gate_penalty)
            loss += gate_strength * terms["gate_penalty"]
        return loss, (terms, updated.get("batch_stats", {}))

    (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    params, opt_state = moved(state, grads, tx, clamp_scales=clamp_scales)
    if ema_decay is not None:  # the EMA takes in the updated student, for the next step's targets
        student = {"params": params, "batch_stats": batch_stats}
        followed = follow(teacher, student, teacher_stats, ema_decay_at(state.step, ema_decay))
        teacher = with_frozen(followed, state.teacher, freeze)
    numbers |= {"grad_norm": norm(grads), "param_norm": norm(params)}
    numbers |= {f"scale_{name}": scale_of(x) for name, x in state.params["log_scale"].items()}
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, teacher)
    return new_state, {"loss": loss, **terms, **numbers}


@jax.named_scope("update")
def moved(
    state: TrainState, grads: PyTree, tx: optax.GradientTransformation, *, clamp_scales: bool
) -> tuple[PyTree, PyTree]:
    """Returns the updated parameters, and the optimiser's state.

    With `clamp_scales` both temperatures stay where they have a gradient.
    """
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if clamp_scales:
        params |= {"log_scale": jax.tree.map(clamp_log_scale, params["log_scale"])}
    return params, opt_state


@jax.named_scope("update")
def norm(tree: PyTree) -> Float[Array, ""]:
    """Returns the root of the sum of all squares in a tree."""
    return optax.tree.norm(tree)


@jax.named_scope("update")
def follow(
    teacher: PyTree, student: PyTree, batch_stats: PyTree | None, decay: Float[Array, ""]
) -> PyTree:
    """Moves an EMA teacher towards the student: decay * teacher + (1 - decay) * student.

    A teacher that embedded the batch has statistics of its own, `batch_stats`, and keeps those.
    """
    moved = optax.incremental_update(student, teacher, 1 - decay)
    return moved if batch_stats is None else moved | {"batch_stats": batch_stats}


@jax.named_scope("targets")
def teach(
    objective: Objective,
    img: Float[Array, "B D"],
    txt: Float[Array, "B D"],
    *,
    mesh: Mesh,
    form: str = "dense",
) -> tuple[ByDirection | panels.Matching, dict[str, Float[Array, ""]]]:
    """Returns the targets that a teacher with these embeddings sets, and their health.

    The rows of the embeddings, and of both [B, B] targets, are spread over the devices of `mesh`;
    no [B, B] matrix is sent. `objective.health` explains the measures. In another form than
    "dense", what sets the targets is returned instead (`panels`).
    """
    if form != "dense":
        return panels.teach(objective, img, txt, mesh=mesh, form=form)
    plans_of = functools.partial(objective.teacher_plans, axis_name=AXIS)
    plans = jax.shard_map(plans_of, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(img, txt)
    return targets_of(plans), health(plans)


@jax.named_scope("loss")
def matching_loss(
    objective: Objective,
    img: Float[Array, "B D"],
    txt: Float[Array, "B D"],
    targets: ByDirection | panels.Matching | None,
    log_scale: dict[str, Float[Array, ""]],
    *,
    mesh: Mesh,
    form: str = "dense",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of a student with these embeddings, and its terms before weighting.

    `targets` are those of `teach`, None for an objective without teacher. Rows are spread over the
    devices of `mesh`; loss and terms are those of the whole batch, in nats.
    """
    if form != "dense":
        return panels.matching_loss(objective, img, txt, targets, log_scale, mesh=mesh)
    loss_of = functools.partial(objective.loss, axis_name=AXIS)
    spread = jax.shard_map(loss_of, mesh=mesh, in_specs=(ROWS, ROWS, ROWS, WHOLE), out_specs=WHOLE)
    return spread(img, txt, targets, log_scale)


def ema_decay_at(step: Int[Array, ""], limit: float) -> Float[Array, ""]:
    """Returns the decay after update `step` = 0, 1, ...: 3/12, 4/13, ..., at most `limit`.

    A young teacher follows closely, an old one slowly. The release averages before the forward
    pass instead, with (1 + k) / (10 + k) for k = 1, 2, ...: the same sequence of teachers.
    """
    return jnp.minimum(limit, (3 + step) / (12 + step))
