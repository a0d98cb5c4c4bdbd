"""Bounds the pixels that the threads of a process decode at the same time."""

import contextlib
import threading
from collections.abc import Iterator


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
