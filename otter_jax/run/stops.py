"""Stops one process, or several together, when a signal asks for it.

In steps and batches, which a `Stop` encloses, several processes agree on one to stop after. At all
other times nothing would be lost: one process leaves at once (`commands.start`), and several leave
together, whichever of them got the signal, as long as they `listen`.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from otter_jax.errors import Stopped
from otter_jax.run import cluster

NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # JAX's key for a SIGTERM to one of the processes
POLL = 0.25  # seconds between two looks for it
PATIENCE = 2  # seconds to break off in order; who waits in C++ for longer is cut off
WAIT = 10  # seconds to wait for the others when leaving; none comes late, but one that hangs
BREAK = signal.SIGURG  # breaks off the main thread: `commands.start` handles it as a SIGTERM

_asked = itertools.count(1)  # what JAX is asked; of all processes it agrees on the largest
_numbers = itertools.count()
_leaving = threading.Lock()
_listener: "_Listener | None" = None


class Stop:
    """A context in which SIGTERM and Ctrl-C are requests to stop; a second one acts as usual.

    Any of several processes may get the signal; JAX lets all agree on the step to stop at.
    """

    def __init__(self):
        self.by = ""  # name of the signal, if this is the only process
        self._reached, self._interrupts = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if not jax.distributed.is_initialized():  # several hear signals in `listen`, and by JAX
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            listen()

    def reached(self) -> bool:
        """Tells whether to stop here. All processes must ask equally often; they get one answer."""
        if not jax.distributed.is_initialized():
            self._reached = bool(self.by)
        elif not self._reached:
            settle()
            self._reached = multihost_utils.reached_preemption_sync_point(next(_asked))
        return self._reached

    def check(self) -> None:
        """Raises Stopped if a stop was asked for (`reached`)."""
        if self.reached():
            raise Stopped

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Makes a signal raise Stopped in this context at once, if there is a single process."""
        self._interrupts = not jax.distributed.is_initialized()
        try:
            if self._interrupts and self.by:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def _ask(self, number, _frame):
        self.by = signal.Signals(number).name
        signal.signal(number, self._before[number])
        if self._interrupts:
            raise Stopped
        # A step or an evaluation's batch may take a while. print must not be called in a handler.
        os.write(2, f"{self.by}: stopping after this step; a second one saves nothing.\n".encode())


def listen() -> None:
    """Lets several processes leave, from here to `settle`, once one of them is asked to stop.

    They have to be joined, and all call it; a single process needs none of this.
    """
    global _listener
    if not jax.distributed.is_initialized() or _listener is not None:
        return
    number = next(_numbers)
    if not number:
        _pass_on(signal.SIGINT)
    cluster.meet("listen")  # what was computed together is done
    _listener = _Listener(f"otter_jax/leave {number}")


def settle() -> None:
    """Ends the time since `listen`: all processes go on together, or all leave. All call it."""
    global _listener
    if _listener is not None:
        _listener.settle()
        _listener = None


def leave() -> NoReturn:
    """Ends this process with status 75, once the others are about to end, too."""
    _leaving.acquire()  # the thread that listens comes, too
    if _listener is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # one does not come
            _client().wait_at_barrier("otter_jax/leaving", WAIT * 1000)
    sys.stdout.flush()
    sys.stderr.flush()
    if _listener is not None and cluster.is_first():
        time.sleep(1)  # it has the coordinator, without which JAX makes the others dump core
    os._exit(os.EX_TEMPFAIL)


class _Listener:
    """Looks, in a thread, for a stop that any of several processes was asked for.

    Whether all go on or leave is said by a key of the coordinator that can be written only once: by
    the first process when all are to go on, and by any one that sees JAX's notice.
    """

    def __init__(self, key: str):
        self._key = key
        self._thread = threading.Thread(target=self._listen, daemon=True, name="listener")
        self._thread.start()

    def settle(self) -> None:
        cluster.meet("settle")
        if cluster.is_first():
            self._say("go on")
        self._thread.join()  # which does not return if all leave

    def _listen(self) -> None:
        try:
            while not (said := _value(self._key)):
                if _value(NOTICE):
                    self._say("leave")
                else:
                    time.sleep(POLL)
        except jax.errors.JaxRuntimeError:  # without the coordinator JAX ends this process
            return
        if said == "leave":
            signal.pthread_kill(threading.main_thread().ident, BREAK)
            time.sleep(PATIENCE)
            leave()

    def _say(self, what: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it is written already
            _client().key_value_set(self._key, what, allow_overwrite=False)


def _value(key: str) -> str:
    """Returns what one of the processes wrote under a key, "" if none did."""
    try:
        return _client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return ""
        raise


def _client() -> Any:
    return ocp.multihost.get_jax_distributed_client()


def _pass_on(number: int) -> None:
    """Makes the first of these signals a SIGTERM, of which JAX tells all processes."""
    before = signal.getsignal(number)

    def pass_on(_number, _frame):
        signal.signal(number, before)
        os.write(2, b"Stopping all processes; a second signal saves nothing.\n")
        os.kill(os.getpid(), signal.SIGTERM)

    if callable(before):
        signal.signal(number, pass_on)
