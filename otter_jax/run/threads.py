"""Lets signals be heard while something is computed or waited for in C++."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any


def in_thread(work: Callable[[], Any], name: str) -> Any:
    """Calls `work` in another thread of this name, and returns what it does, or raises.

    Python handles signals in its main thread, between two of its own instructions; a call of C++
    may take minutes. What a signal raises leaves the thread behind.
    """
    done: concurrent.futures.Future = concurrent.futures.Future()

    def call():
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, daemon=True, name=name).start()
    return done.result()
