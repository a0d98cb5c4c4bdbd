"""Binds a worker process, which decodes or prepares for another one, to its parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def begin(*_: int) -> None:
    """Makes this process end with its parent, and not before.

    However the parent ends: a kill cannot be passed on, and what it leaves behind would wait for
    ever. Signals are the parent's to answer, though a terminal and a cluster send them to both.
    Arguments, such as the worker's number, are not looked at.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel

    def wait():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
