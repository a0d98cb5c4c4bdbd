"""Trains many runs on frozen features in one compiled program.

A run's steps are `step.train_step`, one after the other by `lax.scan`; several runs are one
program by `jax.vmap`. Their features lie in the device's memory once, and a step's batch is
gathered from them by numbers that are drawn before.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from otter_jax import step
from otter_jax.objective import Objective
from otter_jax.optimizer import learning_rate, make_optimizer
from otter_jax.study.plan import Train
from otter_jax.study.towers import CachedTowers


@dataclasses.dataclass(frozen=True)
class Program:
    """Defines what is compiled once for many runs.

    Attributes:
      objective: of which each run may have its own `Run.numbers`.
      kept: how many of a run's steps have their metrics kept, evenly over all.
    """

    model: CachedTowers
    objective: Objective
    train: Train
    kept: int = 40


class Run(NamedTuple):
    """Holds what differs between runs; several are stacked along a first axis.

    Attributes:
      seed: of the heads' first values.
      learning_rate, log_scale: the largest rate, and where both temperatures' logarithms start.
      numbers: fields of the objective, by name.
      images, texts: for each step the rows of the features that are its batch.
      wrong: which captions of it are known to be another pair's.
    """

    seed: Int[Any, "*R"]
    learning_rate: Float[Any, "*R"]
    log_scale: Float[Any, "*R"]
    numbers: Mapping[str, Float[Any, "*R"]]
    images: Int[Any, "*R steps B"]
    texts: Int[Any, "*R steps B"]
    wrong: Bool[Any, "*R steps B"]


class Trained(NamedTuple):
    """Holds what became of runs.

    Attributes:
      variables: {"params", "batch_stats"} of "student" and "ema".
      metrics: those of `step.train_step` and of `judged`, each at the steps `at`.
      at: numbers of steps, from 1.
      broken: the first step whose loss was not finite; 0 for none.
    """

    variables: dict[str, PyTree]
    metrics: dict[str, Float[Any, "*R kept"]]
    at: Int[Any, "*R kept"]
    broken: Int[Any, "*R"]


def with_numbers(objective: Objective, numbers: Mapping[str, Any]) -> Objective:
    """Returns the objective with some numbers replaced, which may be traced; nothing is checked."""
    found = copy.copy(objective)
    for name, value in numbers.items():
        object.__setattr__(found, name, value)
    return found


@functools.cache
def traceable(objective: Objective) -> tuple[str, ...]:
    """Names the objective's numbers that one program can have many values of.

    These are all that are not 0 and that the method's code does not branch on.
    """
    numbers = [
        field.name
        for field in dataclasses.fields(objective)
        if isinstance(getattr(objective, field.name), float) and getattr(objective, field.name)
    ]
    rows = jnp.eye(4)
    scales = {name: jnp.float32(1) for name in ("pairs", "teacher")}

    def works(name):
        def computed(value):
            traced = with_numbers(objective, {name: value})
            return traced.loss(rows, rows, traced.teacher_targets(rows, rows), scales)

        try:
            jax.eval_shape(computed, jnp.float32(1))
        except jax.errors.ConcretizationTypeError:
            return False
        return True

    return tuple(filter(works, numbers))


def optimizer(
    train: Train, rate: float | Float[Array, ""], steps: int
) -> optax.GradientTransformation:
    """Returns the optimiser of a run of so many steps, whose rate may be traced."""
    return make_optimizer(
        train.name,
        learning_rate(rate, total_steps=steps, warmup_steps=train.warmup_steps),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
    )


def first_state(program: Program, given: PyTree, like: PyTree, run: Run, steps: int):
    """Returns a run's state before step 1.

    `given` are the variables that a trained tower starts with, {"params": {"img": ...}, ...}; the
    rest is drawn by the run's seed. `like` is a batch of one row.
    """
    captions = {"pooled": like["pooled"]}
    drawn = program.model.init(jax.random.key(run.seed), like["image"], captions, train=False)
    params = drawn["params"] | given.get("params", {})
    params |= {"log_scale": {name: run.log_scale for name in params["log_scale"]}}
    stats = drawn.get("batch_stats", {}) | given.get("batch_stats", {})
    tx = optimizer(program.train, run.learning_rate, steps)
    return step.create_state(params, stats, tx), tx


def train_one(
    program: Program,
    mesh: Mesh,
    given: PyTree,
    images: Float[Array, "N *features"],
    texts: Float[Array, "M W"],
    run: Run,
) -> Trained:
    """Trains one run to its end."""
    steps = run.images.shape[0]
    like = {"image": images[:1], "pooled": texts[:1]}
    state, tx = first_state(program, given, like, run, steps)
    one_step = functools.partial(
        step.train_step,
        model=program.model,
        tx=tx,
        objective=with_numbers(program.objective, run.numbers),
        mesh=mesh,
        key=jax.random.key(run.seed),
        ema_decay=program.train.ema_decay,
    )

    def advance(state, row):
        image, text, wrong = row
        batch = {"image": images[image], "pooled": texts[text]}
        numbers = judged(one_step, state, batch, wrong)
        state, metrics = one_step(state, batch)
        return state, metrics | numbers

    state, metrics = lax.scan(advance, state, (run.images, run.texts, run.wrong))
    wrong = ~jnp.isfinite(metrics["loss"])
    broken = jnp.where(wrong.any(), wrong.argmax() + 1, 0)
    at = jnp.array(kept_steps(steps, program.kept))
    student = {"params": state.params, "batch_stats": state.batch_stats}
    metrics = {name: values[at - 1] for name, values in metrics.items()}
    return Trained({"student": student, "ema": state.teacher}, metrics, at, broken)


@functools.partial(jax.jit, static_argnames=("program", "mesh"))
def train(
    program: Program,
    mesh: Mesh,
    given: PyTree,
    images: Float[Array, "N *features"],
    texts: Float[Array, "M W"],
    runs: Run,
) -> Trained:
    """Trains stacked runs to their end, side by side."""
    one = functools.partial(train_one, program, mesh, given, images, texts)
    return jax.vmap(one)(runs)


def judged(
    one_step: functools.partial, state: step.TrainState, batch: dict[str, Array], wrong: Any
) -> dict[str, Float[Array, ""]]:
    """Returns how well the weights that a teacher gives to pairs tell the wrong captions.

    They are {} for an objective without trust; else, of this step's weights: `weight_right` and
    `weight_wrong`, the means over pairs of either kind; `auc`, the probability that a right pair
    has more than a wrong one; `precision` and `recall` of "wrong is what has less than 0.5". The
    compiler sees that the step computes the same embeddings, and computes them once.
    """
    objective, model, mesh = (one_step.keywords[name] for name in ("objective", "model", "mesh"))
    if not objective.trust:
        return {}
    captions = {"pooled": batch["pooled"]}
    embeddings, _ = model.apply(
        state.teacher, batch["image"], captions, train=True, mutable=["batch_stats"]
    )
    targets, _ = step.teach(objective, *embeddings, mesh=mesh)
    weights = objective.weights(targets["trust"])
    right, low = ~wrong, weights < 0.5
    more = (weights[:, None] > weights) + 0.5 * (weights[:, None] == weights)
    pairs = right[:, None] & wrong

    def share(of, among):
        return jnp.sum(of * among) / jnp.maximum(jnp.sum(among), 1)

    return {
        "weight_right": share(weights, right),
        "weight_wrong": share(weights, wrong),
        "auc": share(more, pairs),
        "precision": share(wrong, low),
        "recall": share(low, wrong),
    }


def kept_steps(steps: int, most: int) -> Int[np.ndarray, "kept"]:
    """Returns the numbers of at most `most` steps, evenly over all, the last among them."""
    return np.unique(np.linspace(1, steps, min(steps, most)).round().astype(int))
