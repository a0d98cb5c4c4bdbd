"""Meters of a run: its metrics over steps, its speed, and mishaps with its data."""

import collections
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import rich.console
import tensorboardX

from otter_jax.data.source import Source
from otter_jax.files import read_text, write_text
from otter_jax.run import cluster
from otter_jax.run.directory import evaluations
from otter_jax.training.profiling import PAUSED, WAITING

LINES, EVENTS = "metrics.jsonl", "tensorboard"  # in a run's directory
LARGEST = 1 << 30  # bytes of metrics.jsonl: five million lines
NAMED = 10  # unreadable images

Metrics = dict[str, float]


class Mishaps:
    """Counts and names unreadable images and cut captions since this start, of all processes."""

    def __init__(self, source: Source, console: rich.console.Console):
        self._source, self._console = source, console
        self._replaced: set[int] = set()  # numbers of records whose image cannot be read
        self._cut = 0  # captions that did not fit their rows
        self._own_replaced: set[int] = set()  # of this process, since the last `counts`
        self._own_cut = 0

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Removes from the batch the counts of replaced images and cut captions."""
        self._own_replaced |= {int(n) for n in batch.pop("replaced") if n >= 0}
        self._own_cut += int(np.sum(batch.pop("cut", 0)))

    def counts(self) -> dict[str, int]:
        """Returns how many images were replaced and captions cut, and prints new ones.

        All processes call it.
        """
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

    def print_totals(self, pairs: int) -> None:
        """Prints how many images were replaced and captions cut, of so many pairs.

        All processes call it.
        """
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


class Clock:
    """Measures speed and waiting over a logging period, and averages its metrics."""

    def __init__(self, batch_size: int, unit: str):
        self._batch_size, self._unit = batch_size, unit
        self._reset()

    def _reset(self):
        self._sums: collections.Counter = collections.Counter()
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._began = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in this context as waiting for data."""
        began = time.monotonic()
        with jax.profiler.TraceAnnotation(WAITING):
            yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in this context from all speeds."""
        began = time.monotonic()
        with jax.profiler.TraceAnnotation(PAUSED):
            yield
        self._paused += time.monotonic() - began

    def add(self, values: Metrics) -> None:
        """Adds the metrics of one step."""
        self._steps += 1
        self._sums.update(values)

    def period(self, now: int, last: int) -> Metrics:
        """Returns the means since the last call, and the speeds; starts a new period."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        means = {name: total / self._steps for name, total in self._sums.items()}
        rates = {
            f"{self._unit}_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds_left": (last - now) * seconds / self._steps,
        }
        self._reset()
        return means | rates


class Scalars:
    """Writes metrics to metrics.jsonl (one object per line) and as TensorBoard events.

    A run that resumes from step `start` first removes the lines, and the results, of later steps.
    """

    def __init__(self, workdir: pathlib.Path, start: int = 0):
        path = workdir / LINES
        with contextlib.suppress(FileNotFoundError):
            lines = read_text(path, LARGEST, errors="replace").splitlines()
            lines = [line for line in lines if _step_of(line) <= start]
            write_text(path, "".join(line + "\n" for line in lines))
        for result in evaluations(workdir):
            if result.step > start:
                result.path.unlink()
        self._lines = path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(str(workdir / EVENTS), purge_step=start + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the metrics of one step."""
        self._lines.write(json.dumps({"step": step} | dict(scalars)) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Writes out what is buffered."""
        self._lines.close()
        self._events.close()


def _step_of(line):
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf  # the half line of a killed process, or a damaged one
