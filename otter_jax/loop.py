"""The steps of a run, and everything that happens between two of them."""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import cluster, record
from otter_jax import mesh as meshes
from otter_jax.checkpoint import Checkpoints
from otter_jax.data.store import Source
from otter_jax.errors import Stopped, UserError

NAMED = 10  # unreadable images

Metrics = dict[str, float]


@dataclasses.dataclass
class Loop:
    """Trains, logs, evaluates and saves until the last step or a stop.

    Attributes:
      stop: asked after every step, and by what evaluates.
      last: how many steps the whole run has.
      batch_size: of all devices; what is counted of it a second is called `unit`.
      evaluated, saved: whether a step is followed by an evaluation, or a checkpoint. The last step
        is followed by both, an evaluation always by a checkpoint.
      step_at: what makes step n = 1, 2, ... of a state and a batch.
      evaluate: the metrics of the state after step n. It may raise Stopped.
      numbers: what else is recorded of step n, such as its learning rate.
      line: a log line of step n from everything that is recorded of it.
      remedy: what usually helps when a number is not finite.
    """

    workdir: pathlib.Path
    last: int
    batch_size: int
    unit: str
    log_every: int
    evaluated: Callable[[int], bool]
    saved: Callable[[int], bool]
    step_at: Callable[[int], Callable[[Any, Any], tuple[Any, Any]]]
    evaluate: Callable[[int, Any], Metrics]
    numbers: Callable[[int], Metrics]
    line: Callable[[int, Metrics], str]
    remedy: str
    checkpoints: Checkpoints
    scalars: record.Scalars | None  # of the first process alone
    stop: cluster.Stop
    source: Source
    mesh: Mesh
    console: rich.console.Console

    def run(self, start: int, state: Any, batches: Iterator[dict[str, np.ndarray]]) -> None:
        """All steps after `start`.

        Raises Stopped when a stop was asked for and all is saved, UserError when a number is no
        longer finite.
        """
        now, last, stopped = start, self.last, False
        mishaps = Mishaps(self.source, self.console)
        clock = Clock(self.batch_size, self.unit)
        pending: collections.deque = collections.deque()  # metrics still being computed
        with record.progress_bar(self.console) as bar:
            task = bar.add_task("training", total=last, completed=start)
            while now < last and not stopped:
                try:
                    with clock.waiting(), self.stop.interrupting():
                        batch = next(batches)
                except Stopped:
                    stopped = True
                    break
                now += 1
                mishaps.add(batch)
                with clock.paused():  # a step of another kind may have to be compiled
                    train_step = self.step_at(now)
                state, metrics = train_step(state, meshes.put_batch(batch, self.mesh))
                pending.append((now, metrics))
                stopped = self.stop.reached()  # once a step: all processes must ask equally often
                milestone = self._is_evaluated(now) or self.saved(now)
                log = now % self.log_every == 0 or now == last
                # One step runs ahead of the numbers that are looked at: devices never wait for it.
                while len(pending) > (0 if milestone or log else 1):
                    clock.add(self._finite(*pending.popleft()))
                bar.update(task, completed=now)
                if log:
                    means = clock.period(now, last) | self.numbers(now) | mishaps.counts()
                    self._write(now, means)
                    self.console.print(self.line(now, means))
                if milestone and not stopped:
                    bar.update(task, description="evaluating, saving")
                    with clock.paused():
                        stopped = self._milestone(now, state)
                    bar.update(task, description="training")
        for step in pending:
            self._finite(*step)
        if stopped and now > start:
            # Whoever stops a run may give it seconds only: saved now, evaluated at the next start.
            self.checkpoints.save(now, state)
        self.checkpoints.wait()
        mishaps.tell(pairs=(now - start) * self.batch_size)
        if stopped:
            self._tell_stop(now)
            raise Stopped

    def make_up(self, start: int, state: Any) -> None:
        """Evaluates the checkpoint that a run goes on from, if a stop came before that."""
        if not start or not self._is_evaluated(start):
            return
        done = record.results(self.workdir, start).exists() and self.checkpoints.is_rated(start)
        if not cluster.stack(np.array(done))[0]:
            try:
                self.checkpoints.rate(start, self._evaluate(start, state))
            except Stopped:
                self._tell_stop(start)
                raise

    def _is_evaluated(self, now: int) -> bool:
        return now == self.last or self.evaluated(now)

    def _milestone(self, now: int, state: Any) -> bool:
        """Evaluates if that is due, and saves; whether a stop came in between."""
        metrics, stopped = {}, False
        try:
            if self._is_evaluated(now):
                metrics = self._evaluate(now, state)
        except Stopped:
            stopped = True
        except Exception:
            if jax.process_count() == 1:  # of several, the others may not be here to save with
                self.checkpoints.save(now, state)
            raise
        self.checkpoints.save(now, state, metrics)
        return stopped

    def _evaluate(self, now: int, state: Any) -> Metrics:
        metrics = self.evaluate(now, state)
        if metrics:
            self._write(now, metrics)
        return metrics

    def _write(self, now: int, numbers: Metrics) -> None:
        if self.scalars is not None:
            self.scalars.write(now, numbers)

    def _tell_stop(self, now: int) -> None:
        by = self.stop.by or "a signal to one of the processes"
        self.console.print(
            f"Stopped by {by} after step {now} of {self.last}{'; saved' * (now > 0)}. "
            "The same command goes on from there."
        )

    def _finite(self, now: int, metrics: dict[str, jax.Array]) -> Metrics:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            # Saved are only states whose loss, gradient and parameters were finite.
            self.checkpoints.wait()
            good = self.checkpoints.latest
            raise UserError(
                f"Step {now}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. The run ends; "
                + (f"the last good checkpoint is step {good}" if good else "there is no checkpoint")
                + f". {self.remedy} usually helps; if dtype is bfloat16, float32 tells whether "
                "precision is the cause."
            )
        return values


@contextlib.contextmanager
def recorded(
    workdir: pathlib.Path, config: ConfigDict, start: int
) -> Iterator[record.Scalars | None]:
    """Describes a start from step `start` in `workdir`, for which the first process has Scalars."""
    if not cluster.is_first():
        yield None
        return
    record.describe(workdir, json.loads(config.to_json()))
    with contextlib.closing(record.Scalars(workdir, start)) as scalars:
        yield scalars


class Mishaps:
    """What was wrong with the data of this start: counted over all processes, and named."""

    def __init__(self, source: Source, console: rich.console.Console):
        self._source, self._console = source, console
        self._replaced: set[int] = set()  # records whose image cannot be read
        self._cut = 0  # packed captions that were
        self._own_replaced: set[int] = set()  # of this process, since the last `counts`
        self._own_cut = 0

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Takes out of this process's batch what is not for the step."""
        self._own_replaced |= {int(n) for n in batch.pop("replaced") if n >= 0}
        self._own_cut += int(np.sum(batch.pop("cut", 0)))

    def counts(self) -> dict[str, int]:
        """Images replaced and captions cut so far; new ones are named. All processes call it."""
        own = json.dumps([sorted(self._own_replaced), self._own_cut])
        self._own_replaced, self._own_cut = set(), 0
        told = [json.loads(text) for text in cluster.gather(own)]
        for number in sorted({n for numbers, _ in told for n in numbers} - self._replaced):
            self._replaced.add(number)
            if len(self._replaced) <= NAMED:
                self._console.print(
                    f"Unreadable image {self._source.key(number)} in {self._source.name}: the next "
                    "readable record takes its place."
                )
            if len(self._replaced) == NAMED:
                self._console.print("Further unreadable images are counted, not named.")
        self._cut += sum(cut for _, cut in told)
        return {"replaced": len(self._replaced), "cut": self._cut}

    def tell(self, pairs: int) -> None:
        """Says how many they were of so many pairs. All processes call it."""
        self.counts()
        if self._replaced:
            self._console.print(
                f"{len(self._replaced)} unreadable images were replaced in this start."
            )
        if self._cut:
            self._console.print(
                f"{self._cut} captions ({self._cut / pairs:.1e} of them) were cut to fit the rows "
                "they are packed in."
            )


def every(*periods: int) -> Callable[[int], bool]:
    """Whether a step is a multiple of one of these; 0 is no period."""
    return lambda now: any(period and now % period == 0 for period in periods)


class Clock:
    """Where the time of a logging period went, and the means of its numbers."""

    def __init__(self, batch_size: int, unit: str):
        self._batch_size, self._unit = batch_size, unit
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

    def add(self, values: Metrics) -> None:
        """One step's numbers."""
        self._steps += 1
        self._sums.update(values)

    def period(self, now: int, last: int) -> Metrics:
        """Means of the numbers since the last call, and the rates; starts a new period."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        means = {name: total / self._steps for name, total in self._sums.items()}
        rates = {
            f"{self._unit}_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": (last - now) * seconds / self._steps,
        }
        self._reset()
        return means | rates


def compiled(jitted: Any, *shapes: Any, name: str, console: rich.console.Console) -> Any:
    """The function compiled for arguments of such shapes; says how long it took, and its memory."""
    with console.status(f"Compiling {name}"):
        began = time.monotonic()
        program = jitted.lower(*shapes).compile()
        seconds = time.monotonic() - began
        cluster.meet("compiled")  # on CPUs, a computation waits half a minute for the others
    console.print(f"compiled    {name} in {seconds:.0f} s; it needs {memory(program)}")
    return program


def memory(program: Any) -> str:
    """Bytes per device that a compiled program holds at once, as text."""
    total = bytes_needed(program)
    if total is None:
        return "memory that this backend does not tell"
    temporary = program.memory_analysis().temp_size_in_bytes
    return f"{total / 2**20:,.0f} MiB a device ({temporary / 2**20:,.0f} of it temporary)"


def bytes_needed(program: Any) -> int | None:
    """Bytes per device that a compiled program holds at once; None if the backend does not tell."""
    m = program.memory_analysis()
    if m is None:
        return None
    total = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes
    return total - m.alias_size_in_bytes
