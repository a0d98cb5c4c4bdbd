"""Starts a command: its parser, its first and last printed lines, and its exit status.

Nothing here imports JAX, so that help and mistakes on the command line are answered at once.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import pathlib
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import LogRecord
from typing import Any, NoReturn

from otter_jax.errors import Stopped, UserError
from otter_jax.files import Refused

COMPILER = "compiler"  # how names of threads begin that XLA compiles in
# What a disk answers when it is full, read-only, failing, or not this user's.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped and saved; the same command goes on
# Asks once more where Python ignores what a signal raises; nobody else sends it, or heeds it.
AGAIN = signal.SIGURG
PARTLY = 3  # done, but for pictures that cannot be read
WIDTH = 100  # columns


def program() -> str:
    """Returns the words that call this program here, for commands that people copy."""
    if pathlib.Path(sys.argv[0]).stem == "otter-jax":
        return "otter-jax"
    python, here = pathlib.Path(sys.executable), pathlib.Path.cwd()
    known = shutil.which("python")
    if known and pathlib.Path(known).parent == python.parent:
        return "python -m otter_jax"
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return f"{shlex.quote(str(shown))} -m otter_jax"


def nearest(word: str, known: Sequence[str]) -> str:
    """Returns '; did you mean X?' for the most similar of the known words, '.' without one."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else "."


def choose(commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Runs the command that `argv` begins with; returns its exit status.

    `commands` maps a name to (module, one line about it); only the chosen module is imported.
    """
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h", "help"):
        print(f"usage: {program()} COMMAND [FLAGS]\n")
        for command, (_, line) in commands.items():
            print(f"  {command:10}{line}")
        print(f"\nThe flags of a command:  {program()} COMMAND --help")
        print(
            f"Three minutes, two cores:  {program()} train --config quickstart --workdir runs/first"
        )
        return 0
    if name not in commands:
        there = f"There are: {', '.join(commands)}."
        print(
            f"error: There is no command {name!r}{nearest(name, [*commands])} {there}",
            file=sys.stderr,
        )
        return 2
    return status(lambda: importlib.import_module(commands[name][0]).main(rest))


class Parser(argparse.ArgumentParser):
    """A parser whose help fits a screen, and whose errors are UserErrors that name the nearest."""

    def __init__(
        self,
        command: str,
        usage: str,
        description: str,
        examples: Sequence[str],
        *,
        called: str = "",
    ):
        """Prefixes `usage` and the two `examples` with the command's name."""
        self.command, self.called = command, called or f"{program()} {command}"
        super().__init__(
            usage=f"{self.called} {usage}",
            description=textwrap.fill(description, WIDTH),
            epilog="\n".join(f"  {self.called} {example}" for example in examples),
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._flags = self.add_argument_group("flags")
        self.flag("--help", "-h", action="help", help=argparse.SUPPRESS)

    def flag(self, *names: str, beside: str = "", **settings: Any) -> None:
        """Adds a flag, or a positional argument, as `add_argument` does.

        One `beside` another shares its line of the help, whose text speaks of both.
        """
        if beside:
            settings["help"] = argparse.SUPPRESS
        action = self._flags.add_argument(*names, **settings)
        action.sharing = []
        if beside:
            self._option_string_actions[beside].sharing.append(action)

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the values of the flags; raises UserError for an unknown flag or a stray word."""
        known = list(self._option_string_actions)
        for word in argv:
            name = word.split("=")[0]
            if name.startswith("--") and " " not in word and name not in (*known, "--"):
                raise UserError(
                    f"There is no flag {name}{nearest(name.split('.')[0], known)} {self._all()}"
                )
        options, surplus = self.parse_known_intermixed_args(argv)
        if surplus:
            raise UserError(f"What is {' '.join(surplus)!r}? {self._all()}")
        return options

    def error(self, message: str) -> NoReturn:
        """Turns an error of argparse into a UserError."""
        raise UserError(f"{message[0].upper()}{message[1:]}. {self._all()}")

    def _all(self) -> str:
        return f"All flags: {self.called} --help"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        of_one = super()._format_action_invocation
        return " ".join(map(of_one, (action, *action.sharing)))


def print_loading(process_id: int | None = None, *, waits_for: str = "JAX and the program") -> None:
    """Prints at once what is being loaded; in process 0 only."""
    env = os.environ
    ranks = (process_id, env.get("SLURM_PROCID"), env.get("OMPI_COMM_WORLD_RANK"))
    if not int(next((rank for rank in ranks if rank is not None), 0)):
        print(f"Loading {waits_for}", flush=True)


def exported(workdir: pathlib.Path, kind: str = "", *flags: object) -> tuple[object, ...]:
    """Returns the words that export a run into a folder beside it, which `kind` tells apart."""
    out = workdir.with_name(f"{workdir.name}_{kind}exported")
    return ("export", "--workdir", workdir, "--out", out, *flags)


def following(*commands: Sequence[object]) -> str:
    """Returns the next commands as lines to copy; each command is given as its words."""
    lines = ["Next:"]
    for words in commands:
        first, *flags = shlex.join(map(str, words)).split(" --")
        lines.append(f"  {program()} {first}")
        for flag in flags:
            if len(f"{lines[-1]} --{flag} \\") <= WIDTH:
                lines[-1] += f" --{flag}"
            else:
                lines[-1] += " \\"
                lines.append(f"      --{flag}")
    return "\n".join(lines)


def status(run: Callable[[], int | None]) -> int:
    """Calls `run` and returns the exit status: what it returns, or 0.

    A user's mistake and a disk that refuses print one paragraph and give 2, a requested stop and
    SIGTERM `REQUEUE`, Ctrl-C 130, and any other exception a traceback and 1. With several
    processes, an exception ends this one here.
    """
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax warns about what is intended here
    logging.get_absl_logger().addFilter(_is_not_orbax)  # and raises all the errors that it logs
    with _signals() as asked:
        try:
            number = run() or 0
            if _is_one_of_several():
                from otter_jax.run import stops

                stops.settle()  # JAX waits for the others, then all end
            return number
        except Stopped:
            return leave(REQUEUE)  # all processes agreed on it: none waits for another
        except (Exception, KeyboardInterrupt) as error:
            # Extension modules that are being imported make an ImportError of what a signal raises.
            return _told(asked[-1] if asked else error)


def _is_not_orbax(record: LogRecord) -> bool:
    return "orbax" not in pathlib.Path(record.pathname).parts


@contextlib.contextmanager
def _signals() -> Iterator[list[KeyboardInterrupt]]:
    """Makes SIGTERM and Ctrl-C raise exceptions in this context; yields those raised so far."""
    asked: list[KeyboardInterrupt] = []

    def ask(number, _frame):
        if number != AGAIN or not asked:
            asked.append(_Interrupted() if number == signal.SIGINT else _Terminated())
        raise asked[-1]

    def report(found):
        if asked and found.exc_value is asked[-1]:  # as while Python collects garbage
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, (main, AGAIN)).start()
        else:
            usual(found)

    signals = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in (*signals, AGAIN)}
    usual, sys.unraisablehook = sys.unraisablehook, report
    try:
        yield asked
    finally:
        sys.unraisablehook = usual
        for number, handler in before.items():
            signal.signal(number, handler)


class _Interrupted(KeyboardInterrupt):
    """Raised by Ctrl-C.

    Once a plain KeyboardInterrupt has left `exec`, in which an import makes dataclasses, `python
    -m` ends by a signal, whatever the status is.
    """


class _Terminated(KeyboardInterrupt):
    """Raised by SIGTERM where nothing else handles it, as KeyboardInterrupt is by Ctrl-C."""


def _told(error: BaseException) -> int:
    """Prints how a command ended early; returns its exit status."""
    if isinstance(error, _Terminated):
        several = _is_one_of_several()
        by = "a signal to one of the processes" if several else "SIGTERM"
        print(f"Stopped by {by}. The same command starts again.", file=sys.stderr)
        if several:
            from otter_jax.run import stops

            stops.leave()
        return leave(REQUEUE)
    if isinstance(error, KeyboardInterrupt):
        print("Stopped by Ctrl-C.", file=sys.stderr)
        if _is_one_of_several():
            _end(130)  # others may wait
        return leave(130)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f" {error.filename}" if error.filename else ""
        error = UserError(f"The system refused to read or write{where}: {error.strerror}.")
    if isinstance(error, Refused):
        error = UserError(f"{error.filename} cannot be read: {error.strerror}.")
    return _failed(error, 2 if isinstance(error, UserError) else 1)


def leave(number: int) -> int:
    """Returns the exit status of the process; ends it at once if XLA compiles.

    Python would unload itself below the thread that compiles, which then aborts the process.
    """
    if any(t.is_alive() for t in threading.enumerate() if t.name.startswith(COMPILER)):
        _end(number)
    return number


def _end(number: int) -> NoReturn:
    """Ends the process without waiting for a thread or another process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(number)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _failed(error: BaseException, number: int) -> int:
    """Prints what went wrong and returns the exit status; with several processes, ends this one."""
    jax, several = sys.modules.get("jax"), _is_one_of_several()
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    who = f" in process {jax.process_index()}" if several else ""
    if several or isinstance(error, UserError):
        print(f"error{who}: {error}", file=sys.stderr)
    if several:
        # At a normal exit JAX waits for the other processes, which wait for this one in a
        # computation. So exit hard: they miss its heartbeat, and end with a message that names it.
        sys.stdout.flush()
        if jax.process_index() == 0:  # without the coordinator JAX makes the others dump core, so
            time.sleep(2)  # leave them time to end by the same error
        _end(number)
    return number
