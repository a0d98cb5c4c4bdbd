"""Training: reads pairs, steps, reports, evaluates, saves, and goes on after a stop."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from jaxtyping import Int32, PyTree
from ml_collections import ConfigDict

from otter_jax import freezing, gates, optimizer, step
from otter_jax import mesh as meshes
from otter_jax.data import pipeline
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import Packed
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.objective import Objective
from otter_jax.run import cluster
from otter_jax.run.batches import batch_shapes, ensure_set, train_batches
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.cluster import fingerprint
from otter_jax.run.console import duration, millions
from otter_jax.run.model import check_sizes, towers
from otter_jax.run.trained import fixed_teacher
from otter_jax.training import compiling, loop, meters

SAMPLE = 5_000  # captions whose lengths are looked at before training


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is."""

    pairs: int
    steps: int
    steps_per_epoch: float  # a batch may belong to two epochs

    @classmethod
    def of(cls, config: ConfigDict, pairs: int) -> "Length":
        """The steps of config.train.epochs over so many pairs."""
        B = config.train.batch_size
        steps = max(1, round(config.train.epochs * pairs / B))
        return cls(pairs, steps, pairs / B)


@dataclasses.dataclass
class Job:
    """What a run trains, on what, and how.

    Attributes:
      variables: what training starts from: {"params", "batch_stats"}.
      captions, lengths: some of the set's, evenly over it, and how many tokens they have uncut.
      target: what makes the captions of a batch, packed or not.
      schedule: the learning rate over steps.
    """

    config: ConfigDict
    mesh: Mesh
    source: Source
    length: Length
    model: nn.Module
    variables: PyTree
    tokenizer: Tokenizer
    captions: list[str]
    lengths: Int32[np.ndarray, "_"]
    target: pipeline.Annotation
    schedule: optimizer.Schedule
    tx: Any

    @classmethod
    def of(cls, config: ConfigDict) -> "Job":
        """On all devices. Makes the data set if it is not there.

        Raises UserError for what the config or the data get wrong, before anything is compiled.
        """
        mesh = meshes.make_mesh()
        check(config, mesh.size)
        ensure_set(config.data.name, config.data.dir, config.data.tars)
        source = open_dataset(config.data.dir, config.data.name, config.data.split)
        source.check_has("image")
        source.check_has(Tokenizer.feature)
        length = Length.of(config, len(source))
        model, variables, tokenizer_folder = towers(
            **config.model.to_dict(),
            gate_shape=config.gates.shape,
            key=jax.random.key(config.seed),
        )
        tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
        check_sizes(config, model, tokenizer)
        captions = [source[i][Tokenizer.feature] for i in source.sample(SAMPLE)]
        cluster.agree(
            lambda: {
                "data.name": f"{source.name}, {len(source)} pairs, {fingerprint(captions)}",
                "model's weights": fingerprint(variables),
            }
        )
        lengths, target = tokenizer.lengths(captions), tokenizer
        if config.data.packed:
            target = Packed.of(
                tokenizer,
                lengths,
                per_group=config.train.batch_size // mesh.size,
                longest=model.txt.config.max_length,
            )
        schedule, tx = optimizer_of(config, variables["params"], length)
        return cls(
            config, mesh, source, length, model, variables, tokenizer, captions, lengths, target,
            schedule, tx,
        )  # fmt: skip

    def state(self) -> step.TrainState:
        """The state before the first step."""
        return step.create_state(self.variables["params"], self.variables["batch_stats"], self.tx)

    def train_step(self) -> Any:
        """`step.train_step` of a state and a batch, to be compiled; it takes the state over."""
        config = self.config
        whole, rows = meshes.shardings(self.mesh)
        one_step = functools.partial(
            step.train_step,
            model=self.model,
            tx=self.tx,
            objective=Objective(**config.objective),
            mesh=self.mesh,
            key=jax.random.key(config.seed),
            freeze=config.optim.freeze,
            gate_penalty=config.gates.penalty,
            gate_strength=config.gates.strength,
            ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
        )
        return jax.jit(one_step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole)


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for sizes that cannot be, before any data is read."""
    B = config.train.batch_size
    meshes.check_divides("train.batch_size", B, devices)
    if B < 2:
        raise UserError(
            "train.batch_size=1 has no negatives: every loss would be 0. Take 2 or more."
        )
    meshes.check_divides("eval.batch_size", config.eval.batch_size, devices)
    Objective(**config.objective)
    gates.check(**config.gates)
    for key, value in (
        ("train.epochs", config.train.epochs),
        ("train.log_every", config.train.log_every),
    ):
        if value <= 0:
            raise UserError(f"{key}={value}: must be more than 0.")
    processes = config.objective.num_processes
    if B % processes:
        raise UserError(
            f"objective.num_processes={processes} does not divide train.batch_size={B}."
        )
    if config.teacher.checkpoint and config.objective.teacher == "none":
        raise UserError(
            f"teacher.checkpoint={config.teacher.checkpoint!r}, but method {config.method!r} has "
            "no teacher. Choose kd or otter, or leave it empty."
        )


def optimizer_of(
    config: ConfigDict, params: PyTree, length: Length
) -> tuple[optimizer.Schedule, Any]:
    """The learning rate over steps, and the optimiser that config.optim asks for."""
    o = config.optim
    if o.schedule not in ("step", "epoch"):
        raise UserError(f'optim.schedule={o.schedule!r}: "step" or "epoch".')
    schedule = optimizer.learning_rate(
        o.learning_rate,
        total_steps=length.steps,
        warmup_steps=o.warmup_steps,
        steps_per_epoch=length.steps_per_epoch if o.schedule == "epoch" else 1.0,
    )
    tx = optimizer.make_optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        frozen=freezing.frozen_mask(params, config.optim.freeze),
    )
    return schedule, tx


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
        batches = closing(train_batches(config, job.source, job.target, start))

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
        shapes = batch_shapes(config, job.target, job.mesh)
        compiled = compiling.compiled(
            job.train_step(), state, shapes, name="the step", console=console
        )
        training.run(start, state, batches)


def log_line(now: int, m: meters.Metrics, steps: int) -> str:
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
        f" waiting for data {m['data_wait']:.0%} | left {duration(m['seconds_left'])}"
    )


def summary(job: Job, state: Any, start: int) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
    config, length, mesh = job.config, job.length, job.mesh
    mask = freezing.frozen_mask(state.params, config.optim.freeze)
    sizes = jax.tree.map(lambda x: x.size, state.params)
    parts = []
    for name in sorted(sizes):
        frozen = [
            n for n, f in zip(*map(jax.tree.leaves, (sizes[name], mask[name])), strict=True) if f
        ]
        total = sum(jax.tree.leaves(sizes[name]))
        parts.append(f"{name} {millions(total - sum(frozen))} of {millions(total)}")
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
