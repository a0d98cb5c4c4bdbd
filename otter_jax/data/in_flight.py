"""Works on pictures in threads, of which only so many, and so many pixels, are in hand at once."""

import collections
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

THREADS = 16  # per process, at most
Item, Result = TypeVar("Item"), TypeVar("Result")


def _nothing(_: object) -> int:
    """Says that an item holds no memory worth counting."""
    return 0


class Bound:
    """Lets threads in while all that they hold together is at most `most`; others wait.

    One that alone asks for more is let in when no other is there.
    """

    def __init__(self, most: int):
        self.most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Holds so much in this context; waits until there is room for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self.most)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()

    def __reduce__(self):
        """Another process has a bound of its own."""
        return Bound, (self.most,)


def in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    threads: int = 0,
    size: Callable[[Item], int] = _nothing,
    most: int = 0,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, work(item)) in the order of the items, at most `ahead` of them ahead.

    And at most so many that their sizes add up to `most`, or one alone.
    `threads` 0 are as many as there are cores, at most THREADS. What is not begun when the iterator
    is closed is left undone.
    """
    threads = threads or min(THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads, "pictures")
    waiting: collections.deque = collections.deque()
    held = 0
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item), size(item)))
            held += waiting[-1][-1]
            while len(waiting) > ahead or (held > most and waiting):
                item, result, of_item = waiting.popleft()
                yield item, result.result()
                held -= of_item
        while waiting:
            item, result, _ = waiting.popleft()
            yield item, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
