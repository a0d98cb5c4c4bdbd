"""Runs the steps of any task, and logs, evaluates and saves between them.

A `Task` defines what is trained; there are two, `training.contrastive` and `transfer.task`.
"""

import collections
import contextlib
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from ml_collections import ConfigDict

import otter_jax
from otter_jax import mesh as meshes
from otter_jax.data.source import Source
from otter_jax.errors import Diverged, Stopped, UserError
from otter_jax.run import cluster, directory, lock, stops, watched
from otter_jax.run.checkpoint import Checkpoints
from otter_jax.run.console import duration, progress_bar
from otter_jax.training import profiling
from otter_jax.training.meters import EVENTS, LINES, Clock, Metrics, Mishaps, Scalars

Step = Callable[[Any, Any], tuple[Any, Any]]  # (state, batch) -> (state, metrics)


@runtime_checkable
class Task(Protocol):
    """The interface of what a run trains; `train` calls it.

    Attributes:
      config: with the sections that all runs have: data, train, eval, checkpoint.
      source: the training set.
      contents: number and fingerprint of its records, by which another set is noticed.
      unit: the word for the rows of a batch, for speeds: "pairs" or "images".
      steps: of the whole run.
      remedy: what to try when a number is not finite; the subject of "... usually helps".
    """

    config: ConfigDict
    mesh: Mesh
    source: Source
    contents: str
    unit: str
    steps: int
    remedy: str

    def initial_state(self, start: int) -> Any:
        """Returns the state before step 1; a restored state has its shapes.

        It is called once. Raises UserError if a run of this task cannot be at step `start`.
        """

    def begin(self, state: Any, start: int) -> None:
        """Prints what will be trained after step `start`, before anything is compiled.

        It is called once, and only if steps are left.
        """

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the batches from step `start` on; it can be closed."""

    def step_at(self, now: int) -> Step:
        """Returns the compiled function that makes step `now` = 1, 2, ..."""

    def is_evaluated(self, now: int) -> bool:
        """Tells whether an evaluation follows step `now`, other than the last."""

    def evaluate(self, now: int, state: Any, check_stop: Callable[[], None]) -> Metrics:
        """Evaluates the state after step `now`; writes and prints the result, returns its metrics.

        It must call `check_stop` once per batch, which raises Stopped if a stop was asked for.
        """

    def numbers(self, now: int) -> Metrics:
        """Returns further numbers to record for step `now`, such as its learning rate."""

    def line(self, now: int, recorded: Metrics) -> str:
        """Returns the log line of step `now`, from all numbers recorded for it."""


def train(
    task: Task,
    workdir: pathlib.Path,
    *,
    from_step: int | None = None,
    anyway: bool = False,
    profile: profiling.Span | None = None,
    console: rich.console.Console,
) -> bool:
    """Trains `task` to its last step, from the newest checkpoint in `workdir` if there is one.

    Returns whether a signal asked this process, if it is alone, to stop as nothing was left to do.

    With `from_step` it goes on from that checkpoint, and sets later ones aside. The steps of
    `profile` are traced. SIGTERM or Ctrl-C saves after the current step, and raises Stopped. Raises
    UserError if the checkpoint is of another task or (without `anyway`) of another data set, if the
    run is being trained by another start, and when a number is no longer finite.
    """
    config = task.config
    whole, _ = meshes.shardings(task.mesh)
    about = {"name": task.source.name, "contents": task.contents}
    best, keep_every = config.eval.best, config.checkpoint.keep_every
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_trace_without_steps(workdir))
        if cluster.is_first():
            stack.enter_context(lock.held(workdir))
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir, best=best, keep_every=keep_every, about=about))
        )
        start = checkpoints.latest or 0 if from_step is None else checkpoints.find(from_step)
        cluster.agree(lambda: {"checkpoint": start})
        if profile is not None:
            profile = profiling.check(profile, task.steps, start, console)
        if start and not anyway:
            _check_same_data(checkpoints.about(start), about, start)
        state = task.initial_state(start)
        if checkpoints.latest is not None:
            state = checkpoints.restore(start, state, whole)
        else:
            state = meshes.put_whole(state, task.mesh)
        batches = stack.enter_context(contextlib.closing(task.batches(start)))
        # Not before: a start that was refused above must leave the run as it was.
        aside = checkpoints.set_aside(after=start)
        if aside:
            console.print(
                f"Set aside, in {workdir / 'set_aside'}: the later steps "
                f"{', '.join(map(str, aside))}."
            )
        owed, stop = _owes_evaluation(task, workdir, checkpoints, start), stops.Stop()
        if owed or start < task.steps:
            scalars = stack.enter_context(_recorded(workdir, start))
            loop = Loop(task, workdir, checkpoints, scalars, stop, console)
            if owed:
                loop.make_up(start, state)
        if start >= task.steps:
            console.print(f"Done already: {start} of {task.steps} steps are in {workdir}.")
            return bool(stop.by)
        task.begin(state, start)
        loop.run(start, state, batches, profiling.Profile(profile, workdir, console))
        return bool(stop.by)


def _owes_evaluation(
    task: Task, workdir: pathlib.Path, checkpoints: Checkpoints, start: int
) -> bool:
    """Tells whether a stop came before the evaluation of step `start`."""
    if not start or not (start == task.steps or task.is_evaluated(start)):
        return False
    done = directory.results(workdir, start).exists() and checkpoints.is_rated(start)
    return not cluster.stack(np.array(done))[0]


@contextlib.contextmanager
def _no_trace_without_steps(workdir: pathlib.Path) -> Iterator[None]:
    """Removes what a start made, new folders too, if it was refused or made no step."""
    workdir = workdir.absolute()
    folders = (workdir / "checkpoints", workdir, *workdir.parents)
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        if workdir in new and cluster.is_first() and not directory.is_run(workdir):
            (workdir / LINES).unlink(missing_ok=True)
            for folder in (EVENTS, watched.FOLDER):
                shutil.rmtree(workdir / folder, ignore_errors=True)
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty, or another process was first
                folder.rmdir()


def _check_same_data(saved: Mapping[str, str], here: Mapping[str, str], start: int) -> None:
    """Raises UserError if a checkpoint was saved by a training on other data."""
    if saved and dict(saved) != dict(here):
        raise UserError(
            f"When step {start} was saved, the data set was {saved['name']} ({saved['contents']}), "
            f"and now it is {here['name']} ({here['contents']}): it was made anew, or data.name or "
            "data.split is another. Give another --workdir; or --anyway, if this run is meant to "
            "go on with it."
        )


class Loop:
    """Trains, logs, evaluates and saves until the last step or a stop.

    An evaluation and a checkpoint follow the last step; a checkpoint follows every evaluation.
    """

    def __init__(
        self,
        task: Task,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        scalars: Scalars | None,
        stop: stops.Stop,
        console: rich.console.Console,
    ):
        """Takes the `stop` to enter, and to ask after every step.

        Only the first process has `scalars`.
        """
        self._task, self._workdir, self._checkpoints = task, workdir, checkpoints
        self._scalars, self._stop, self._console = scalars, stop, console

    def run(
        self,
        start: int,
        state: Any,
        batches: Iterator[dict[str, np.ndarray]],
        profile: profiling.Profile,
    ) -> None:
        """Makes all steps after `start`.

        Raises Stopped after a stop was asked for and the state is saved, and UserError when a
        number is no longer finite, or no batch can be read.
        """
        with self._stop:
            try:
                with self._stop.interrupting():
                    self._task.step_at(start + 1)  # compiled before the clock starts
            except Stopped:
                self._print_stop(start)
                raise
            stops.settle()
            with profile:
                self._make_steps(start, state, batches, profile)

    def _make_steps(self, start, state, batches, profile) -> None:
        task, last, batch_size = self._task, self._task.steps, self._task.config.train.batch_size
        now, stopped = start, False
        mishaps, clock = Mishaps(task.source, self._console), Clock(batch_size, task.unit)
        pending: collections.deque = collections.deque()  # metrics still being computed
        with progress_bar(self._console) as bar:
            shown = bar.add_task("training", total=last, completed=start)
            while now < last and not stopped:
                profile.before(now + 1, state)
                try:
                    with clock.waiting(), self._stop.interrupting():
                        batch = next(batches)
                except Stopped:
                    stopped = True
                    break
                except Exception as error:  # damaged files, a worker that was killed
                    raise self._saved_before(error, now, start, state, pending) from error
                self._checkpoints.check()
                now += 1
                mishaps.add(batch)
                with clock.paused():  # a step of another kind may have to be compiled
                    make_step = task.step_at(now)
                state, metrics = make_step(state, meshes.put_batch(batch, task.mesh))
                pending.append((now, metrics))
                if now == start + 1:
                    self._begun(metrics)
                stopped = self._stop.reached()  # once a step: all processes must ask equally often
                milestone = self._is_evaluated(now) or self._is_saved(now)
                log = now % task.config.train.log_every == 0 or now == last
                # Numbers are read one step late, so that devices never wait for this process.
                while len(pending) > (0 if milestone or log else 1):
                    clock.add(self._finite(*pending.popleft()))
                bar.update(shown, completed=now)
                if log:
                    recorded = clock.period(now, last) | task.numbers(now) | mishaps.counts()
                    self._write(now, recorded)
                    self._console.print(task.line(now, recorded))
                if milestone and not stopped:
                    bar.update(shown, description="evaluating, saving")
                    with clock.paused():
                        stopped = self._milestone(now, state)
                    bar.update(shown, description="training")
                profile.after(now, state, make_step)
        for step in pending:
            self._finite(*step)
        self._end(start, now, state, stopped)
        mishaps.print_totals(pairs=(now - start) * batch_size)
        if stopped:
            self._print_stop(now)
            raise Stopped

    def _begun(self, metrics: dict[str, jax.Array]) -> None:
        """Writes what the run is, and prints how long its first step was waited for."""
        if cluster.is_first():
            # Not before: a start that makes no step is none of this run's.
            directory.describe(self._workdir, json.loads(self._task.config.to_json()))
        jax.block_until_ready(metrics)
        waited = duration(time.monotonic() - otter_jax.BEGAN)
        self._console.print(f"first step  {waited} after the start of the program")

    def _saved_before(
        self, error: Exception, now: int, start: int, state: Any, pending: Iterable[tuple]
    ) -> UserError:
        """Saves the state, since no batch follows it; returns the error that says so.

        With several processes the others may not be here to save too.
        """
        for step in pending:
            self._finite(*step)
        if now > start and jax.process_count() == 1:
            self._checkpoints.save(now, state)
            self._checkpoints.wait()
        kept = self._checkpoints.latest
        known = isinstance(error, UserError)
        what = str(error) if known else f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return UserError(
            f"No batch could be read for step {now + 1}: {what.rstrip('.')}. "
            + (f"Step {kept} is saved, and the same command goes on from there." if kept else "")
        )

    def make_up(self, start: int, state: Any) -> None:
        """Evaluates the checkpoint that the run resumes from."""
        try:
            with self._stop:
                self._checkpoints.rate(start, self._evaluate(start, state))
        except Stopped:
            self._print_stop(start)
            raise

    def _is_evaluated(self, now: int) -> bool:
        return now == self._task.steps or self._task.is_evaluated(now)

    def _is_saved(self, now: int) -> bool:
        periods = self._task.config.checkpoint
        return is_multiple(now, periods.every) or is_multiple(now, periods.keep_every)

    def _milestone(self, now: int, state: Any) -> bool:
        """Evaluates if that is due, and saves; tells whether a stop came in between."""
        metrics, stopped = {}, False
        try:
            if self._is_evaluated(now):
                metrics = self._evaluate(now, state)
        except Stopped:
            stopped = True
        except Exception:
            if jax.process_count() == 1:  # with several, the others may not be here to save too
                self._checkpoints.save(now, state)
            raise
        self._checkpoints.save(now, state, metrics)
        return stopped

    def _evaluate(self, now: int, state: Any) -> Metrics:
        metrics = self._task.evaluate(now, state, self._stop.check)
        if metrics:
            self._write(now, metrics)
        return metrics

    def _end(self, start: int, now: int, state: Any, stopped: bool) -> None:
        """Waits until the last state is on disk; after a stop it is saved first."""
        if stopped and now > start:
            # A stop may leave only seconds: save now, and evaluate at the next start.
            self._checkpoints.save(now, state)
        self._checkpoints.wait()

    def _write(self, now: int, numbers: Metrics) -> None:
        if self._scalars is not None:
            self._scalars.write(now, numbers)

    def _print_stop(self, now: int) -> None:
        by = self._stop.by or "a signal to one of the processes"
        self._console.print(
            f"Stopped by {by} after step {now} of {self._task.steps}{'; saved' * (now > 0)}. "
            "The same command goes on from there."
        )

    def _finite(self, now: int, metrics: dict[str, jax.Array]) -> Metrics:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            # Every saved state had a finite loss, gradient and parameters: name the last one.
            self._checkpoints.wait()
            good = self._checkpoints.latest
            raise Diverged(
                f"Step {now}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. The run ends; "
                + (f"the last good checkpoint is step {good}" if good else "there is no checkpoint")
                + f". {self._task.remedy} usually helps; if dtype is bfloat16, float32 tells "
                "whether precision is the cause.",
                now,
            )
        return values


@contextlib.contextmanager
def _recorded(workdir: pathlib.Path, start: int) -> Iterator[Scalars | None]:
    """Yields the writer of metrics (process 0 only), and closes it."""
    if not cluster.is_first():
        yield None
        return
    with contextlib.closing(Scalars(workdir, start)) as scalars:
        yield scalars


def is_multiple(now: int, period: int) -> bool:
    """Tells whether step `now` is a multiple of `period`; no step is one of 0."""
    return bool(period) and now % period == 0
