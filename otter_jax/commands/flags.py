"""What the programs' command lines have in common: a config, and mistakes as one paragraph."""

import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from otter_jax.errors import Stopped, UserError
from otter_jax.run import directory
from otter_jax.run.directory import flatten

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, :VARIANT after it if it takes one."
)


WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, all that it needs to go on.")


COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where neither SLURM nor Open MPI tell it."
)


NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the run has.")


PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped and saved; the same command goes on


def workdir() -> pathlib.Path:
    """The directory of the run."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing: the directory of the run, for example runs/first.")
    return pathlib.Path(WORKDIR.value).expanduser()


def config(*, saved_in: pathlib.Path | None, needs: str) -> ConfigDict:
    """The config given; without one, and where that will do, the one that a run was started by.

    Raises UserError if there is none, or it has no key `needs` and so is of another program.
    """
    if CONFIG.value is not None:
        if needs not in CONFIG.value:
            raise UserError(f"This --config is of another program: it has no key {needs!r}.")
        return CONFIG.value
    if saved_in is not None and (saved_in / "config.json").exists():
        return directory.config_of(saved_in, needs=needs)
    raise UserError(
        "--config is missing: a config file, for example configs/quickstart.py."
        + (f" And there is no {saved_in / 'config.json'} to take its place." if saved_in else "")
    )


def join(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Joins the other processes of this run, if there are any; all but the first fall silent.

    Raises UserError as `cluster.join` does, if they were not started alike, or `workdir` is not
    one folder for all.
    """
    from otter_jax import cluster  # here: a mistake in the flags need not wait for JAX

    cluster.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if not cluster.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print in C++, too
    cluster.agree(lambda: directory.versions() | flatten(json.loads(config.to_json())))
    cluster.check_shared(workdir)


def parse(argv: list[str]) -> list[str]:
    """Flags and config from the command line; UserError for what cannot be understood."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that could not be loaded is an error only when used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # A KeyError's text is quoted; an error inside the config file is a whole traceback.
        text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
        if "Traceback" in text:
            text = text.splitlines()[-1].split("Error: ", 1)[-1]
        raise UserError(f"In the command line or its config: {' '.join(text.split())}") from error
    if len(rest) > 1:
        raise UserError(f"What is {' '.join(rest[1:])!r}? Only flags are expected.")
    return rest


def run(main: Callable[[list[str]], None]) -> None:
    """`main` with exit status 2 and one paragraph for a user's mistake, `REQUEUE` for a stop."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    try:
        app.run(main, flags_parser=parse)
    except Stopped:
        sys.exit(REQUEUE)
    except UserError as error:
        _fail(error, 2)
    except Exception as error:
        _fail(error, 1)
    except KeyboardInterrupt as error:
        _fail(error, 130)


def _fail(error, status):
    """Says what went wrong and ends, alone if it must be."""
    jax = sys.modules.get("jax")
    several = jax is not None and jax.distributed.is_initialized()
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    who = f" in process {jax.process_index()}" if several else ""
    if several or isinstance(error, UserError):
        print(f"error{who}: {error}", file=sys.stderr)
    if several:
        # At a usual exit JAX waits for the other processes, and these wait for this one in a
        # computation. Instead they miss its signs of life, and end with a message that names it.
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # without the coordinator JAX ends the others with a dump:
            time.sleep(2)  # time for the same error to end them by themselves
        os._exit(status)
    sys.exit(status)
