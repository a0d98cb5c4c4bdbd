"""Training: reads pairs, steps, reports, evaluates, saves, and goes on after a stop."""

import collections
import dataclasses
import functools
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rich.console
import rich.progress
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from otter_jax import build, record, step
from otter_jax import mesh as meshes
from otter_jax.checkpoint import Checkpoints
from otter_jax.data import pipeline, store
from otter_jax.data.captions import Tokenizer
from otter_jax.errors import UserError
from otter_jax.objective import Objective

# (config, model, tokenizer, mesh) -> (step, {"student": variables, ...}) -> {metric: value}
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
    batch_size = config.train.batch_size
    check_divides(batch_size, mesh.size)
    store.ensure(config.data.name, config.data.dir, config.data.tars)
    source = store.open_dataset(config.data.dir, config.data.name, config.data.split)
    length = Length.of(config, len(source))

    model, variables, tokenizer_folder = build.towers(
        **config.model, key=jax.random.key(config.seed)
    )
    tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
    evaluate = make_evaluate(config, model, tokenizer, mesh, workdir)
    objective = Objective(**config.objective)
    whole, rows = meshes.shardings(mesh)
    schedule, tx = optimizer(config, variables["params"], length)

    checkpoints = Checkpoints(
        workdir, best=config.eval.best, keep_every=config.checkpoint.keep_every
    )
    state = step.create_state(
        variables["params"], variables["batch_stats"], tx, fixed_teacher(config, variables)
    )
    start = checkpoints.latest
    if start is None:
        state = jax.device_put(state, whole)
    else:
        state = checkpoints.restore(start, state, whole)
    del variables
    start = start or 0
    # Only now: a start that the checkpoint refuses leaves the run's description as it was.
    record.describe(workdir, json.loads(config.to_json()))
    if start >= length.steps:
        console.print(f"Done already: {start} of {length.steps} steps are in {workdir}.")
        checkpoints.close()
        return

    train_step = functools.partial(
        step.train_step,
        model=model,
        tx=tx,
        objective=objective,
        mesh=mesh,
        key=jax.random.key(config.seed),
        freeze=config.model.freeze,
        ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
    )
    batches = pipeline.train_batches(
        source,
        tokenizer,
        seed=config.seed,
        batch_size=batch_size,
        image_size=config.data.image_size,
        resize=config.data.resize,
        flip=config.data.flip,
        start_step=start,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_workers=config.data.num_workers,
    )
    with console.status("Compiling the step"):
        began = time.monotonic()
        shapes = batch_shapes(config, mesh)
        compiled = (
            jax.jit(train_step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole)
            .lower(state, shapes)
            .compile()
        )
        compile_seconds = time.monotonic() - began
    console.print(summary(config, state, source, length, mesh, start), highlight=False)
    console.print(
        f"compiled    in {compile_seconds:.0f} s; the step needs {memory(compiled)}",
        highlight=False,
    )

    scalars = record.Scalars(workdir, start)
    loop = Loop(
        config=config,
        length=length,
        schedule=schedule,
        checkpoints=checkpoints,
        scalars=scalars,
        evaluate=evaluate,
        source=source,
        console=console,
    )
    try:
        loop.run(state, compiled, batches, mesh, start)
    finally:
        batches.close()
        scalars.close()
        checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is."""

    pairs: int
    steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, config: ConfigDict, pairs: int) -> "Length":
        """The steps of config.train.epochs over so many pairs."""
        B = config.train.batch_size
        steps = max(1, round(config.train.epochs * pairs / B))
        return cls(pairs, steps, max(1, pairs // B))


@dataclasses.dataclass
class Loop:
    """The steps from `start` on, and everything that happens between two of them."""

    config: ConfigDict
    length: Length
    schedule: step.Schedule
    checkpoints: Checkpoints
    scalars: record.Scalars
    evaluate: Evaluate
    source: store.Source
    console: rich.console.Console

    def run(
        self, state: Any, compiled: Callable, batches: Iterator, mesh: Mesh, start: int
    ) -> None:
        """Trains, logs, evaluates and saves until the last step or the first signal."""
        stop = Stop()
        last, replaced = self.length.steps, 0
        clock = Clock(self.config.train.batch_size)
        pending: collections.deque = collections.deque()  # metrics still being computed
        with progress_bar(self.console) as bar, stop:
            task = bar.add_task("training", total=last, completed=start)
            for now in range(start + 1, last + 1):
                with clock.waiting():
                    batch = next(batches)
                replaced += self._name_replaced(batch.pop("replaced"), replaced)
                state, metrics = compiled(state, meshes.put_batch(batch, mesh))
                pending.append((now, metrics))
                # One step runs ahead of the numbers that are looked at: devices never wait for it.
                stopping = stop.requested  # asked once: a signal may come at any line
                milestone = self._is_milestone(now) or now == last or bool(stopping)
                while len(pending) > (0 if milestone else 1):
                    clock.add(*self._finite(*pending.popleft()))
                bar.update(task, completed=now)
                if now % self.config.train.log_every == 0 or now == last:
                    self._log(now, clock)
                if milestone:
                    bar.update(task, description="evaluating, saving")
                    with clock.paused():
                        self._milestone(now, state, stopped=bool(stopping))
                    bar.update(task, description="training")
                if stopping:
                    break
        self.checkpoints.wait()
        if stopping and now < last:
            self.console.print(
                f"Stopped by {stopping} after step {now} of {last}; saved. "
                "The same command goes on from there."
            )

    def _is_milestone(self, now: int) -> bool:
        periods = (self.config.eval.every, self.config.checkpoint.every)
        return any(period and now % period == 0 for period in periods)

    def _milestone(self, now: int, state: Any, stopped: bool) -> None:
        last, every = self.length.steps, self.config.eval.every
        metrics = {}
        if not stopped and (now == last or (every and now % every == 0)):
            weights_of = {"student": {"params": state.params, "batch_stats": state.batch_stats}}
            if not self.config.teacher.checkpoint:
                weights_of["ema"] = state.teacher
            metrics = self.evaluate(now, weights_of)
            self.scalars.write(now, metrics)
        self.checkpoints.save(now, state, metrics)

    def _finite(self, now: int, metrics: dict[str, jax.Array]) -> tuple[int, dict[str, float]]:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            self.checkpoints.wait()
            good = self.checkpoints.latest
            raise UserError(
                f"Step {now}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. The run ends; "
                + (
                    f"the last good checkpoint is step {good}. "
                    if good
                    else "no checkpoint had been saved. "
                )
                + "A lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1 "
                "usually helps; if dtype is bfloat16, float32 tells whether precision is the cause."
            )
        return now, values

    def _log(self, now: int, clock: "Clock") -> None:
        m, rates = clock.period(now, self.length.steps)
        m |= {"learning_rate": float(self.schedule(now - 1)), "epoch": self._epoch(now)} | rates
        self.scalars.write(now, m)
        terms = f"pairs {m['pairs']:.3f}"
        scales = f"{m['scale_pairs']:.1f}"
        health = ""
        if "teacher" in m:
            terms += f", teacher {m['teacher']:.3f}"
            scales += f", {m['scale_teacher']:.1f}"
            health = (
                f" | target entropy {m['entropy']:.2f}, own {m['own_mass']:.2f},"
                f" row error {m['row_error']:.1e}"
            )
        self.console.print(
            f"step {now}/{self.length.steps} epoch {m['epoch']:.1f} | loss {m['loss']:.3f}"
            f" ({terms}) | scale {scales}{health} | {m['pairs_per_second']:.0f} pairs/s,"
            f" waiting for data {m['data_wait']:.0%} | left {duration(m['seconds_left'])}",
            highlight=False,
            soft_wrap=True,
        )

    def _epoch(self, now: int) -> float:
        return now * self.config.train.batch_size / self.length.pairs

    def _name_replaced(self, numbers: np.ndarray, so_far: int) -> int:
        bad = [int(number) for number in numbers if number >= 0]
        for number in bad[: max(0, 10 - so_far)]:
            self.console.print(
                f"Unreadable image {self.source.key(number)} in {self.source.name}: the next "
                "readable pair takes its place."
            )
        if bad and so_far < 10 <= so_far + len(bad):
            self.console.print("Further unreadable images are counted, not named.")
        return len(bad)


class Clock:
    """Where the time of a logging period went, and the mean of its numbers."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._speed = 0.0  # seconds a step, of the last period
        self._reset()

    def _reset(self):
        self._sums: collections.Counter = collections.Counter()
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._began = time.monotonic()

    def waiting(self) -> "_Span":
        """Context whose time counts as waiting for data."""
        return _Span(lambda seconds: setattr(self, "_waited", self._waited + seconds))

    def paused(self) -> "_Span":
        """Context whose time does not count."""
        return _Span(lambda seconds: setattr(self, "_paused", self._paused + seconds))

    def add(self, _: int, values: dict[str, float]) -> None:
        """One step's numbers."""
        self._steps += 1
        self._sums.update(values)

    def period(self, now: int, last: int) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the numbers since the last call, and the rates; starts a new period."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        steps = max(self._steps, 1)
        means = {name: total / steps for name, total in self._sums.items()}
        rates = {
            "pairs_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": (last - now) * seconds / steps,
        }
        self._reset()
        return means, rates


class _Span:
    def __init__(self, done: Callable[[float], None]):
        self._done = done

    def __enter__(self):
        self._began = time.monotonic()

    def __exit__(self, *_):
        self._done(time.monotonic() - self._began)


class Stop:
    """Context in which SIGTERM and Ctrl-C ask for a stop; a second one has its usual effect."""

    def __init__(self):
        self.requested = ""
        self._before: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame):
        self.requested = signal.Signals(number).name
        signal.signal(number, self._before[number])


def check_divides(batch_size: int, devices: int) -> None:
    """Raises UserError, naming the nearest sizes that would do, unless each device gets rows."""
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        nearest = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"train.batch_size={batch_size} does not divide over {devices} devices; "
            f"nearest: {nearest}."
        )
    if batch_size < 2:
        raise UserError(
            "train.batch_size=1 has no negatives: every loss would be 0. Take 2 or more."
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
        steps_per_epoch=length.steps_per_epoch if o.schedule == "epoch" else 1,
    )
    tx = step.optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        frozen=step.frozen_mask(params, config.model.freeze),
    )
    return schedule, tx


def fixed_teacher(config: ConfigDict, like: PyTree) -> PyTree | None:
    """The weights of the run that config.teacher.checkpoint names, None for an EMA teacher."""
    folder = config.teacher.checkpoint
    if not folder:
        return None
    if config.objective.teacher == "none":
        raise UserError(
            f"teacher.checkpoint={folder!r}, but method {config.method!r} has no teacher. "
            "Choose kd or otter, or leave it empty."
        )
    checkpoints = Checkpoints(pathlib.Path(folder).expanduser(), read_only=True)
    try:
        found = checkpoints.latest
        if found is None:
            raise UserError(f"teacher.checkpoint={folder!r} holds no checkpoint.")
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return checkpoints.restore_part(found, like, sharding)
    finally:
        checkpoints.close()


def batch_shapes(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch, to compile for before one is read."""
    B, S, L = config.train.batch_size, config.data.image_size, config.data.max_tokens
    _, rows = meshes.shardings(mesh)
    return {
        "image": jax.ShapeDtypeStruct((B, S, S, 3), np.uint8, sharding=rows),
        "token_ids": jax.ShapeDtypeStruct((B, L), np.int32, sharding=rows),
        "mask": jax.ShapeDtypeStruct((B, L), np.bool_, sharding=rows),
    }


def summary(
    config: ConfigDict, state: Any, source: store.Source, length: Length, mesh: Mesh, start: int
) -> str:
    """What is about to happen, in a few lines, before it costs anything."""
    mask = step.frozen_mask(state.params, config.model.freeze)
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
        f"frozen      {config.model.freeze or 'nothing'}",
        "averaged    "
        + (
            "nothing (the teacher is fixed)"
            if config.teacher.checkpoint
            else f"all parameters, EMA decay up to {config.teacher.ema_decay:g}"
        ),
        f"data        {source.name}, {length.pairs:,} pairs",
        f"batch       {B} over {mesh.size} device{'s' * (mesh.size > 1)}: {B - 1} negatives a row",
        f"chance      pairs term {2 * math.log(B):.3f}: ln B = {math.log(B):.3f} each way",
        f"length      {length.steps} steps = {config.train.epochs:g} epochs"
        + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def memory(compiled: Any) -> str:
    """Bytes per device that the compiled step holds at once, as text."""
    m = compiled.memory_analysis()
    if m is None:
        return "memory that this backend does not tell"
    total = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes
    total -= m.alias_size_in_bytes
    return (
        f"{total / 2**20:,.0f} MiB a device ({m.temp_size_in_bytes / 2**20:,.0f} of it temporary)"
    )


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """Steps done, rate and time left; nothing where the output is not a terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def millions(count: int) -> str:
    """1234567 as 1.23 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m04s or 5s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
