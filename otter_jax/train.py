"""Training: reads pairs, steps, reports, evaluates, saves, and goes on after a stop."""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import rich.console
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import build, cluster, feed, gates, loop, record, step
from otter_jax import mesh as meshes
from otter_jax.checkpoint import Checkpoints, restore_best
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.job import Job
from otter_jax.objective import Objective

# What evaluates, made once, called with a step, {"student": variables, "ema": variables}, and what
# raises Stopped if a stop was asked for.
Evaluate = Callable[[int, dict[str, PyTree], Callable[[], None]], dict[str, float]]
MakeEvaluate = Callable[[ConfigDict, nn.Module, Tokenizer, Mesh, pathlib.Path], Evaluate]


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    make_evaluate: MakeEvaluate,
    console: rich.console.Console,
) -> None:
    """Trains to the last step of `config`, from the newest checkpoint in `workdir` if there is one.

    SIGTERM or Ctrl-C saves after the step that is running, and raises Stopped. Raises UserError for
    what the config or the data get wrong, before anything is compiled, and when a number is no
    longer finite.
    """
    job = Job.of(config)
    evaluate = make_evaluate(config, job.model, job.tokenizer, job.mesh, workdir)
    length = job.length
    whole, _ = meshes.shardings(job.mesh)

    with contextlib.ExitStack() as stack:

        def closing(thing):
            return stack.enter_context(contextlib.closing(thing))

        keep_every = config.checkpoint.keep_every
        checkpoints = closing(Checkpoints(workdir, best=config.eval.best, keep_every=keep_every))
        state = job.state()
        start = checkpoints.latest or 0
        cluster.agree(lambda: {"latest checkpoint": start})
        if checkpoints.latest is not None:
            state = checkpoints.restore(start, state, whole)
        else:
            if config.teacher.checkpoint:
                state = state.replace(teacher=fixed_teacher(config, job.variables))
            state = meshes.put_whole(state, job.mesh)
        job.variables = None  # they are in the state now
        batches = closing(feed.train_batches(config, job.source, job.target, start))

        def weights_of(state):
            found = {"student": {"params": state.params, "batch_stats": state.batch_stats}}
            return found | ({} if config.teacher.checkpoint else {"ema": state.teacher})

        # Only now: a start that was refused above leaves the run's description as it was.
        scalars = stack.enter_context(loop.recorded(workdir, config, start))
        stop = stack.enter_context(cluster.Stop())
        training = loop.Loop(
            workdir=workdir,
            last=length.steps,
            batch_size=config.train.batch_size,
            unit="pairs",
            log_every=config.train.log_every,
            evaluated=loop.every(config.eval.every),
            saved=loop.every(config.checkpoint.every, config.checkpoint.keep_every),
            step_at=lambda _: compiled,
            evaluate=lambda now, state: evaluate(now, weights_of(state), stop.check),
            numbers=lambda now: {
                "learning_rate": float(job.schedule(now - 1)),
                "epoch": now * config.train.batch_size / length.pairs,
            },
            line=functools.partial(log_line, steps=length.steps),
            remedy="A lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1",
            checkpoints=checkpoints,
            scalars=scalars,
            stop=stop,
            source=job.source,
            mesh=job.mesh,
            console=console,
        )
        training.make_up(start, state)
        if start >= length.steps:
            console.print(f"Done already: {start} of {length.steps} steps are in {workdir}.")
            return
        console.print(summary(job, state, start))
        shapes = feed.batch_shapes(config, job.target, job.mesh)
        compiled = loop.compiled(job.train_step(), state, shapes, name="the step", console=console)
        training.run(start, state, batches)


def log_line(now: int, m: loop.Metrics, steps: int) -> str:
    """What is said of a step: loss and terms, scales, the targets' health, rate and time left."""
    terms, scales, health = f"pairs {m['pairs']:.3f}", f"{m['scale_pairs']:.1f}", ""
    if "teacher" in m:
        terms += f", teacher {m['teacher']:.3f}"
        scales += f", {m['scale_teacher']:.1f}"
        health = (
            f" | target entropy {m['entropy']:.2f}, own {m['own_mass']:.2f},"
            f" row error {m['row_error']:.1e}"
        )
    return (
        f"step {now}/{steps} epoch {m['epoch']:.1f} | loss {m['loss']:.3f}"
        f" ({terms}) | scale {scales}{health} | {m['pairs_per_second']:.0f} pairs/s,"
        f" waiting for data {m['data_wait']:.0%} | left {record.duration(m['seconds_left'])}"
    )


def fixed_teacher(config: ConfigDict, like: PyTree) -> PyTree:
    """The student's weights in the run config.teacher.checkpoint: its best, else its latest.

    Its gates are folded in; where `like` has gates, the teacher's are 1.
    """
    folder = pathlib.Path(config.teacher.checkpoint).expanduser()
    own = {name: tree for name, tree in like["params"].items() if name != "gates"}
    try:
        theirs = record.config_of(folder)
        like = build.gated(like | {"params": own}, theirs.gates.shape)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        teacher, _ = restore_best(folder, like, sharding, best=theirs.eval.best)
    except UserError as error:
        raise UserError(f"teacher.checkpoint={config.teacher.checkpoint!r}: {error}") from error
    folded = teacher | {"params": gates.fold(teacher["params"])}
    return build.gated(folded, config.gates.shape)


def summary(job: Job, state: Any, start: int) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
    config, length, mesh = job.config, job.length, job.mesh
    mask = step.frozen_mask(state.params, config.optim.freeze)
    sizes = jax.tree.map(lambda x: x.size, state.params)
    parts = []
    for name in sorted(sizes):
        frozen = [
            n for n, f in zip(*map(jax.tree.leaves, (sizes[name], mask[name])), strict=True) if f
        ]
        total = sum(jax.tree.leaves(sizes[name]))
        parts.append(f"{name} {record.millions(total - sum(frozen))} of {record.millions(total)}")
    B = config.train.batch_size
    objective = Objective(**config.objective)
    teacher = {"none": "none", "softmax": "softmax", "transport": "optimal transport"}[
        objective.teacher
    ]
    kind = f"fixed, {config.teacher.checkpoint}" if config.teacher.checkpoint else "EMA"
    lines = [
        f"method      {config.method}: alpha {objective.alpha:g}, teacher {teacher}"
        + (f" ({kind})" if objective.teacher != "none" else ""),
        f"trained     {'; '.join(parts)} parameters",
        f"frozen      {config.optim.freeze or 'nothing'}",
        "averaged    "
        + (
            "nothing (the teacher is fixed)"
            if config.teacher.checkpoint
            else f"all parameters, EMA decay up to {config.teacher.ema_decay:g}"
        ),
        f"data        {job.source.name}, {length.pairs:,} pairs",
        f"captions    {captions(job)}",
        *([f"packed      {job.target}"] if config.data.packed else []),
        f"batch       {B} over {mesh.size} device{'s' * (mesh.size > 1)}: {B - 1} negatives a row",
        f"chance      pairs term {2 * math.log(B):.3f}: ln B = {math.log(B):.3f} each way",
        f"length      {length.steps} steps = {config.train.epochs:g} epochs"
        + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def captions(job: Job) -> str:
    """How long captions are, and how many are cut or empty, as text; of a sample."""
    limit, lengths = job.tokenizer.max_tokens, job.lengths
    cut = (lengths > limit).mean()
    empty = sum(not text.strip() for text in job.captions)
    return (
        f"{lengths.mean():.1f} tokens on average, {cut:.1%} cut at {limit}, "
        f"{empty} empty, of {len(job.captions):,} looked at"
    )
