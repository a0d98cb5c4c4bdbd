"""Keeps a second start out of the directory of a run that lives.

The lock is the system's (flock, also over NFS): one that is killed holds it no longer.
"""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from otter_jax import files

FILE = ".lock"


def check_free(workdir: pathlib.Path) -> None:
    """Raises UserError, which names host and process, if another start trains in `workdir`."""
    path = workdir / FILE
    if path.exists():
        with _taken(path):
            pass


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run in this context. Raises UserError if another start holds it."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    with _taken(path):
        about = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        path.write_text(json.dumps(about), "utf-8")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _taken(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return files.locked(
        path,
        lambda: (
            f"The run in {path.parent} is being trained{_by(path)}. Wait for its end, stop it, or "
            "give another --workdir."
        ),
    )


def _by(path: pathlib.Path) -> str:
    """Returns " by process N on HOST since TIME", as far as the lock's file says so."""
    try:
        about = json.loads(path.read_text("utf-8"))
        return f" by process {about['process']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
