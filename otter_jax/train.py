"""Training: reads pairs, steps, reports, evaluates, saves, and goes on after a stop."""

import contextlib
import dataclasses
import functools
import json
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

from otter_jax import build, feed, gates, loop, record, step
from otter_jax import mesh as meshes
from otter_jax.checkpoint import Checkpoints, restore_best
from otter_jax.data import pipeline, store
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import Packed
from otter_jax.errors import UserError
from otter_jax.objective import Objective

SAMPLE = 5_000  # captions whose lengths are looked at before training

# What evaluates, made once, called with a step and {"student": variables, "ema": variables}.
Evaluate = Callable[[int, dict[str, PyTree]], dict[str, float]]
MakeEvaluate = Callable[[ConfigDict, nn.Module, Tokenizer, Mesh, pathlib.Path], Evaluate]


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    make_evaluate: MakeEvaluate,
    console: rich.console.Console,
) -> None:
    """Trains to the last step of `config`, from the newest checkpoint in `workdir` if there is one.

    SIGTERM or Ctrl-C saves and returns after the step that is running. Raises UserError for what
    the config or the data get wrong, before anything is compiled, and when a number is no longer
    finite.
    """
    mesh = meshes.make_mesh()
    check(config, mesh.size)
    store.ensure(config.data.name, config.data.dir, config.data.tars)
    source = store.open_dataset(config.data.dir, config.data.name, config.data.split)
    length = Length.of(config, len(source))

    model, variables, tokenizer_folder = build.towers(
        **config.model.to_dict(),
        gate_shape=config.gates.shape,
        key=jax.random.key(config.seed),
    )
    tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
    build.check_sizes(config, model, tokenizer)
    target: pipeline.Target = tokenizer
    if config.data.packed:
        target = Packed.of(
            tokenizer,
            tokenizer.lengths([source[i]["caption"] for i in source.sample(SAMPLE)]),
            per_group=config.train.batch_size // mesh.size,
            longest=model.txt.config.max_length,
        )
    evaluate = make_evaluate(config, model, tokenizer, mesh, workdir)
    schedule, tx = optimizer(config, variables["params"], length)
    whole, rows = meshes.shardings(mesh)

    with contextlib.ExitStack() as stack:

        def closing(thing):
            return stack.enter_context(contextlib.closing(thing))

        keep_every = config.checkpoint.keep_every
        checkpoints = closing(Checkpoints(workdir, best=config.eval.best, keep_every=keep_every))
        state = step.create_state(variables["params"], variables["batch_stats"], tx)
        start = checkpoints.latest or 0
        if checkpoints.latest is not None:
            state = checkpoints.restore(start, state, whole)
        elif config.teacher.checkpoint:
            state = state.replace(teacher=fixed_teacher(config, variables))
        state = jax.device_put(state, whole)
        del variables
        batches = closing(feed.train_batches(config, source, target, start))

        train_step = functools.partial(
            step.train_step,
            model=model,
            tx=tx,
            objective=Objective(**config.objective),
            mesh=mesh,
            key=jax.random.key(config.seed),
            freeze=config.optim.freeze,
            gate_penalty=config.gates.penalty,
            gate_strength=config.gates.strength,
            ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
        )
        jitted = jax.jit(
            train_step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole
        )

        def weights_of(state):
            found = {"student": {"params": state.params, "batch_stats": state.batch_stats}}
            return found | ({} if config.teacher.checkpoint else {"ema": state.teacher})

        # Only now: a start that was refused above leaves the run's description as it was.
        record.describe(workdir, json.loads(config.to_json()))
        training = loop.Loop(
            workdir=workdir,
            last=length.steps,
            batch_size=config.train.batch_size,
            unit="pairs",
            log_every=config.train.log_every,
            evaluated=loop.every(config.eval.every),
            saved=loop.every(config.checkpoint.every, config.checkpoint.keep_every),
            step_at=lambda _: compiled,
            evaluate=lambda now, state: evaluate(now, weights_of(state)),
            numbers=lambda now: {
                "learning_rate": float(schedule(now - 1)),
                "epoch": now * config.train.batch_size / length.pairs,
            },
            line=functools.partial(log_line, steps=length.steps),
            remedy="A lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1",
            checkpoints=checkpoints,
            scalars=closing(record.Scalars(workdir, start)),
            source=source,
            mesh=mesh,
            console=console,
        )
        training.make_up(start, state)
        if start >= length.steps:
            console.print(f"Done already: {start} of {length.steps} steps are in {workdir}.")
            return
        console.print(summary(config, state, source, tokenizer, length, mesh, start))
        if config.data.packed:
            console.print(f"packed      {target}")
        shapes = feed.batch_shapes(config, target, mesh)
        compiled = loop.compiled(jitted, state, shapes, name="the step", console=console)
        training.run(start, state, batches)


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


def optimizer(config: ConfigDict, params: PyTree, length: Length) -> tuple[step.Schedule, Any]:
    """The learning rate over steps, and the optimiser that config.optim asks for."""
    o = config.optim
    if o.schedule not in ("step", "epoch"):
        raise UserError(f'optim.schedule={o.schedule!r}: "step" or "epoch".')
    schedule = step.learning_rate(
        o.learning_rate,
        total_steps=length.steps,
        warmup_steps=o.warmup_steps,
        steps_per_epoch=length.steps_per_epoch if o.schedule == "epoch" else 1.0,
    )
    tx = step.optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        frozen=step.frozen_mask(params, config.optim.freeze),
    )
    return schedule, tx


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


def summary(
    config: ConfigDict,
    state: Any,
    source: store.Source,
    tokenizer: Tokenizer,
    length: Length,
    mesh: Mesh,
    start: int,
) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
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
        f"data        {source.name}, {length.pairs:,} pairs",
        f"captions    {captions(source, tokenizer)}",
        f"batch       {B} over {mesh.size} device{'s' * (mesh.size > 1)}: {B - 1} negatives a row",
        f"chance      pairs term {2 * math.log(B):.3f}: ln B = {math.log(B):.3f} each way",
        f"length      {length.steps} steps = {config.train.epochs:g} epochs"
        + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def captions(source: store.Source, tokenizer: Tokenizer) -> str:
    """How long captions are, and how many are cut or empty, as text; of a sample."""
    texts = [source[i]["caption"] for i in source.sample(SAMPLE)]
    lengths = tokenizer.lengths(texts)
    cut = (lengths > tokenizer.max_tokens).mean()
    empty = sum(not text.strip() for text in texts)
    return (
        f"{lengths.mean():.1f} tokens on average, {cut:.1%} cut at {tokenizer.max_tokens}, "
        f"{empty} empty, of {len(texts):,} looked at"
    )
