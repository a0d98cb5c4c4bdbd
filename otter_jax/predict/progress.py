"""Shows how far many pictures, classes or texts are: rate, time left, what is waited for."""

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

import rich.console
import rich.progress

from otter_jax.run.console import duration

EVERY = 30.0  # seconds between two lines where no bar can be drawn
FROM = 2.0  # seconds before anything is shown: one picture needs no bar
Item = TypeVar("Item")


class Progress:
    """Counts pictures or the like, and the time in which devices wait for them, in a context.

    A terminal shows a bar; anything else gets a line every half minute.
    """

    def __init__(
        self, console: rich.console.Console, total: int, done: int = 0, *, what: str = "pictures"
    ):
        """`done` of the `total` pictures, or `what` they are, were done by an earlier start."""
        self._console, self._total, self._first, self._done = console, total, done, done
        self._what = what
        self._began = self._said = time.monotonic()
        self._waited: float | None = None  # nothing was waited for
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, completed=done, text="")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yields the batches, and adds up how long each was waited for; closes them at the end."""
        self._waited = self._waited or 0.0
        with contextlib.closing(batches):
            while True:
                began = time.monotonic()
                batch = next(batches, None)
                self._waited += time.monotonic() - began
                if batch is None:
                    return
                yield batch

    def advance(self, count: int) -> None:
        """Counts what is done, and shows it where it is time to."""
        self._done += count
        now = time.monotonic()
        if self._console.is_terminal and now - self._began > FROM:
            self._bar.start()
        self._bar.update(self._task, completed=self._done, text=self._text(now))
        if not self._console.is_terminal and now - self._said > EVERY:
            self._said = now
            text = self._text(now)
            self._console.print(f"{self._done:,} of {self._total:,} {self._what}, {text}")

    def told(self) -> str:
        """Returns how many there were, how fast, and what took the time."""
        now = time.monotonic()
        count, rate = self._done - self._first, self._rate(now)
        seconds = duration(now - self._began)
        return f"{count:,} {self._what} in {seconds}, {rate:,.1f}/s{self._waits(now)}"

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(now - self._began, 1e-9)

    def _text(self, now: float) -> str:
        left = (self._total - self._done) / max(self._rate(now), 1e-9)
        return f"{self._rate(now):,.1f}/s, {duration(left)} left{self._waits(now)}"

    def _waits(self, now: float) -> str:
        if self._waited is None:
            return ""
        share = self._waited / max(now - self._began, 1e-9)
        return f", {share:.0%} of the time waiting for pictures to be read"
