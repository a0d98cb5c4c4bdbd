"""Ties a worker process, which decodes or prepares for another one, to its parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def begin(*_: int) -> None:
    """Makes this worker process ignore signals and end when its parent ends.

    A parent that is killed cannot end its workers, which would then wait for ever. A terminal and a
    cluster send signals to the workers too, but the parent decides what follows. Arguments, such as
    the worker's number, are ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel

    def wait():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
