"""Training: reads pairs, steps, reports, evaluates, saves, and goes on after a stop."""

import collections
import contextlib
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

NAMED = 10  # unreadable images

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
        **config.model.to_dict(), key=jax.random.key(config.seed)
    )
    tokenizer = Tokenizer(tokenizer_folder, config.data.max_tokens)
    build.check_sizes(config, model, tokenizer)
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
        batches = closing(train_batches(config, source, tokenizer, start))

        # Only now: a start that was refused above leaves the run's description as it was.
        record.describe(workdir, json.loads(config.to_json()))
        loop = Loop(
            config=config,
            workdir=workdir,
            length=length,
            schedule=schedule,
            checkpoints=checkpoints,
            scalars=closing(record.Scalars(workdir, start)),
            evaluate=evaluate,
            source=source,
            console=console,
        )
        loop.make_up(start, state)
        if start >= length.steps:
            console.print(f"Done already: {start} of {length.steps} steps are in {workdir}.")
            return

        train_step = functools.partial(
            step.train_step,
            model=model,
            tx=tx,
            objective=Objective(**config.objective),
            mesh=mesh,
            key=jax.random.key(config.seed),
            freeze=config.optim.freeze,
            ema_decay=None if config.teacher.checkpoint else config.teacher.ema_decay,
        )
        console.print(summary(config, state, source, tokenizer, length, mesh, start))
        with console.status("Compiling the step"):
            began = time.monotonic()
            jitted = jax.jit(
                train_step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=whole
            )
            compiled = jitted.lower(state, batch_shapes(config, mesh)).compile()
            seconds = time.monotonic() - began
        console.print(f"compiled    in {seconds:.0f} s; the step needs {memory(compiled)}")
        loop.run(state, compiled, batches, mesh, start)


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
class Loop:
    """The steps from `start` on, and everything that happens between two of them."""

    config: ConfigDict
    workdir: pathlib.Path
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
        stop, last = Stop(), self.length.steps
        replaced: set[int] = set()
        clock = Clock(self.config.train.batch_size)
        pending: collections.deque = collections.deque()  # metrics still being computed
        with record.progress_bar(self.console) as bar, stop:
            task = bar.add_task("training", total=last, completed=start)
            for now in range(start + 1, last + 1):
                with clock.waiting():
                    batch = next(batches)
                self._name_replaced(batch.pop("replaced"), replaced)
                state, metrics = compiled(state, meshes.put_batch(batch, mesh))
                pending.append((now, metrics))
                # One step runs ahead of the numbers that are looked at: devices never wait for it.
                stopping = stop.requested  # asked once: a signal may come at any line
                milestone = self._is_milestone(now) or now == last or bool(stopping)
                log = now % self.config.train.log_every == 0 or now == last
                while len(pending) > (0 if milestone or log else 1):
                    clock.add(self._finite(*pending.popleft()))
                bar.update(task, completed=now)
                if log:
                    self._log(now, clock, len(replaced))
                if milestone:
                    bar.update(task, description="evaluating, saving")
                    with clock.paused():
                        self._milestone(now, state, stopped=bool(stopping))
                    bar.update(task, description="training")
                if stopping:
                    break
        self.checkpoints.wait()
        if replaced:
            self.console.print(f"{len(replaced)} unreadable images were replaced in this start.")
        if stopping:
            self.console.print(
                f"Stopped by {stopping} after step {now} of {last}; saved. "
                "The same command goes on from there."
            )

    def _is_milestone(self, now: int) -> bool:
        c = self.config.checkpoint
        periods = (self.config.eval.every, c.every, c.keep_every)
        return any(period and now % period == 0 for period in periods)

    def _is_evaluated(self, now: int) -> bool:
        every = self.config.eval.every
        return now == self.length.steps or bool(every and now % every == 0)

    def _milestone(self, now: int, state: Any, stopped: bool) -> None:
        metrics = {}
        try:
            # Whoever stops a run may give it seconds only: saved now, evaluated at the next start.
            if self._is_evaluated(now) and not stopped:
                metrics = self._evaluate(now, state)
        finally:
            self.checkpoints.save(now, state, metrics)

    def make_up(self, start: int, state: Any) -> None:
        """Evaluates the checkpoint that a run goes on from, if a stop came before that."""
        done = (self.workdir / "results" / f"step_{start:08d}.json").exists()
        if start and self._is_evaluated(start) and not done:
            self._evaluate(start, state)

    def _evaluate(self, now: int, state: Any) -> dict[str, float]:
        weights_of = {"student": {"params": state.params, "batch_stats": state.batch_stats}}
        if not self.config.teacher.checkpoint:
            weights_of["ema"] = state.teacher
        metrics = self.evaluate(now, weights_of)
        if metrics:
            self.scalars.write(now, metrics)
        return metrics

    def _finite(self, now: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            # Saved are only states whose loss, gradient and parameters were finite.
            self.checkpoints.wait()
            good = self.checkpoints.latest
            raise UserError(
                f"Step {now}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. The run ends; "
                + (f"the last good checkpoint is step {good}" if good else "there is no checkpoint")
                + ". A lower optim.learning_rate, a longer optim.warmup_steps or optim.clip_norm=1 "
                "usually helps; if dtype is bfloat16, float32 tells whether precision is the cause."
            )
        return values

    def _log(self, now: int, clock: "Clock", replaced: int) -> None:
        m, rates = clock.period(now, self.length.steps)
        m |= {"learning_rate": float(self.schedule(now - 1)), "epoch": self._epoch(now)} | rates
        m["replaced"] = replaced  # unreadable images so far, in this start
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
            soft_wrap=True,
        )

    def _epoch(self, now: int) -> float:
        return now * self.config.train.batch_size / self.length.pairs

    def _name_replaced(self, numbers: np.ndarray, known: set[int]) -> None:
        for number in sorted({int(n) for n in numbers if n >= 0} - known):
            known.add(number)
            if len(known) <= NAMED:
                self.console.print(
                    f"Unreadable image {self.source.key(number)} in {self.source.name}: the next "
                    "readable pair takes its place."
                )
            if len(known) == NAMED:
                self.console.print("Further unreadable images are counted, not named.")


class Clock:
    """Where the time of a logging period went, and the means of its numbers."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._reset()

    def _reset(self):
        self._sums: collections.Counter = collections.Counter()
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._began = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in this context counts as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this context does not count."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def add(self, values: dict[str, float]) -> None:
        """One step's numbers."""
        self._steps += 1
        self._sums.update(values)

    def period(self, now: int, last: int) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the numbers since the last call, and the rates; starts a new period."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        means = {name: total / self._steps for name, total in self._sums.items()}
        rates = {
            "pairs_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": (last - now) * seconds / self._steps,
        }
        self._reset()
        return means, rates


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


def train_batches(
    config: ConfigDict, source: store.Source, tokenizer: Tokenizer, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from step `start` on."""
    return pipeline.train_batches(
        source,
        tokenizer,
        seed=config.seed,
        batch_size=config.train.batch_size,
        image_size=config.data.image_size,
        resize=config.data.resize,
        flip=config.data.flip,
        start_step=start,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        num_workers=config.data.num_workers,
    )


def fixed_teacher(config: ConfigDict, like: PyTree) -> PyTree:
    """The student's weights in the run config.teacher.checkpoint: its best, else its latest."""
    folder = pathlib.Path(config.teacher.checkpoint).expanduser()
    try:
        best = record.config_of(folder).eval.best
        checkpoints = Checkpoints(folder, best=best, read_only=True)
        try:
            found = checkpoints.best
            if found is None:
                raise UserError(f"{folder} holds no checkpoint.")
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            return checkpoints.restore_part(found, like, sharding)
        finally:
            checkpoints.close()
    except UserError as error:
        raise UserError(f"teacher.checkpoint={config.teacher.checkpoint!r}: {error}") from error


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
        f"data        {source.name}, {length.pairs:,} pairs",
        f"captions    {captions(source, tokenizer)}",
        f"batch       {B} over {mesh.size} device{'s' * (mesh.size > 1)}: {B - 1} negatives a row",
        f"chance      pairs term {2 * math.log(B):.3f}: ln B = {math.log(B):.3f} each way",
        f"length      {length.steps} steps = {config.train.epochs:g} epochs"
        + (f", going on from step {start}" if start else ""),
    ]
    return "\n".join(lines)


def captions(source: store.Source, tokenizer: Tokenizer) -> str:
    """How long captions are, and how many are cut or empty, as text; of a thousand at most."""
    count = min(len(source), 1000)
    spread = np.linspace(0, len(source) - 1, count).astype(int)
    texts = [source[int(i)]["caption"] for i in spread]
    lengths = tokenizer.lengths(texts)
    cut = (lengths > tokenizer.max_tokens).mean()
    empty = sum(not text.strip() for text in texts)
    return (
        f"{lengths.mean():.1f} tokens on average, {cut:.1%} cut at {tokenizer.max_tokens}, "
        f"{empty} empty, of {count:,} looked at"
    )


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


def millions(count: int) -> str:
    """1234567 as 1.23 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m04s or 5s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
