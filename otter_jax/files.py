"""Reads files that others made: regular ones alone, and never more of them than was allowed for.

A path may name a pipe, which blocks for ever, or a device, which never ends, also through a
symbolic link; and what `stat` says of a file's size need not be true, as in /proc or while it is
written to. All that opens a user's path goes through here.
"""

import contextlib
import errno
import fcntl
import glob
import io
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from otter_jax.errors import UserError

TEXT = 64 << 20  # bytes of a text that is read whole: a list of names, a vocabulary, a config
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Refused(OSError):
    """Raised for what is no regular file, and for one that holds too much."""


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a file to read its bytes.

    Raises OSError; Refused for what is no regular file, such as a pipe, without waiting for it.
    """
    try:
        _check(os.stat(path).st_mode, path)  # opening alone may do something to a device
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise Refused(error.errno, error.strerror, str(path)) from None
        raise
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(number).st_mode, path)  # it may be another one by now
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_bytes(path: str | os.PathLike, most: int = TEXT) -> bytes:
    """Returns what a regular file holds.

    Raises OSError; Refused, of errno EFBIG, for over `most` bytes, whatever its size is said to be.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Refused(errno.EFBIG, too_large(most), str(path))
        try:
            content = file.read(size + 1) or b""
            if len(content) > size:  # it has grown, or has a size of 0 as in /proc
                content += file.read(most + 1 - len(content)) or b""
        except OSError as error:  # which does not say of which file
            error.filename = error.filename or str(path)
            raise
    if len(content) > most:
        raise Refused(errno.EFBIG, too_large(most), str(path))
    return content


def read_text(
    path: str | os.PathLike,
    most: int = TEXT,
    *,
    encoding: str = "utf-8-sig",
    errors: str = "strict",
) -> str:
    """Returns what a regular file holds as text.

    Raises OSError as `read_bytes` does, and UnicodeDecodeError, a ValueError.
    """
    return read_bytes(path, most).decode(encoding, errors)


def read_json(path: str | os.PathLike, most: int = TEXT) -> Any:
    """Returns what a file of JSON holds.

    Raises OSError as `read_bytes` does, and ValueError for what is no JSON, or nests without end.
    """
    try:
        return json.loads(read_text(path, most))
    except RecursionError:
        raise ValueError("it nests too deeply") from None


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write a file to, which becomes `path` at the end of the context.

    So neither a reader nor a kill ever meets half of it; of several that write `path` at once, the
    last stays. After an error nothing is left; what a kill leaves, the next that writes `path`
    removes. The file there is to be written to, not replaced: it is locked while this lasts.
    """
    _remove_abandoned(path)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _locked_if_possible(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)):
            yield scratch
            os.replace(scratch, path)
    except OSError as error:  # of a full disk it names no file
        if error.filename in (None, str(scratch), scratch):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, so that neither a reader nor a kill ever meets half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file as `write_text` does."""
    with written_whole(path) as scratch:
        scratch.write_bytes(content)


def _remove_abandoned(path: pathlib.Path) -> None:
    """Removes what killed processes left of `path`: the system has taken their locks away."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError), scratch.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            scratch.unlink()


@contextlib.contextmanager
def _locked_if_possible(number: int) -> Iterator[None]:
    """Holds the lock of an open file, which is closed at the end; none where there are no locks."""
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path: pathlib.Path, held: Callable[[], str], *, shared: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is made, in this context: one process at a time.

    If it is shared, several may hold it that share it. The lock is the system's (flock, also over
    NFS): a killed process leaves none. Where a file system has no locks, nothing is held. Raises
    UserError, with the text of `held`, if another process has it.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(held()) from None
        except OSError:  # a file system without locks
            pass
        yield


def too_large(most: int) -> str:
    """Returns what is said of a file that holds more than `most` bytes."""
    return f"over {most >> 20} MiB"


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Tells whether a path lies in a folder once all links are followed."""
    try:
        return pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # a NUL in the name
        return False


def _check(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISDIR(mode):
        raise Refused(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS if test(mode)), "none that is known")
        raise Refused(errno.EINVAL, f"no regular file, but {kind}", str(path))
