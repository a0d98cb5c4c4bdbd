"""The steps of a run, and everything that happens between two of them."""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import mesh as meshes
from otter_jax.data.source import Source
from otter_jax.errors import Stopped, UserError
from otter_jax.run import cluster, directory
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.console import progress_bar
from otter_jax.training import meters
from otter_jax.training.meters import Clock, Metrics, Mishaps


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
    scalars: meters.Scalars | None  # of the first process alone
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
        with progress_bar(self.console) as bar:
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
        done = directory.results(self.workdir, start).exists() and self.checkpoints.is_rated(start)
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
) -> Iterator[meters.Scalars | None]:
    """Describes a start from step `start` in `workdir`, for which the first process has Scalars."""
    if not cluster.is_first():
        yield None
        return
    directory.describe(workdir, json.loads(config.to_json()))
    with contextlib.closing(meters.Scalars(workdir, start)) as scalars:
        yield scalars


def every(*periods: int) -> Callable[[int], bool]:
    """Whether a step is a multiple of one of these; 0 is no period."""
    return lambda now: any(period and now % period == 0 for period in periods)
