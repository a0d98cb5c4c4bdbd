"""Keeps the memory that one call of a program frees for the next one, on CPUs.

XLA takes the memory of a program's temporaries anew at each call. glibc asks the system for pieces
as large as these and gives them back at once, so that each of their pages costs a fault at every
call: an eighth of a training step's time, a fifth of a vision transformer's forward pass.

All here is for this process, and does nothing where there is another C library, or another device.
"""

import ctypes
import importlib.metadata
import platform

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h


def share() -> None:
    """Makes threads that start from here on take memory from one heap.

    It must come before JAX starts its own: a thread's own heap cannot hold a large piece. Where JAX
    has a plugin for other devices nothing is done: steps do not run here, and the many threads that
    compile would wait for each other.
    """
    if not importlib.metadata.entry_points(group="jax_plugins"):
        _set(M_ARENA_MAX, 1)


def keep() -> None:
    """Makes this heap keep what is freed, of any size; starts JAX.

    New pieces may not fit into what others have left, so that it can grow to twice what is used.
    """
    if jax.default_backend() == "cpu":
        _set(M_MMAP_MAX, 0)
        _set(M_TRIM_THRESHOLD, -1)


def share_and_keep() -> None:
    """Does both, for a process that joins no others."""
    share()
    keep()


def give_back() -> None:
    """Makes it give back what is freed from here on.

    The limits are those that glibc starts with; it raises them no more by itself, so that this is
    only for a process that `keep` was called in.
    """
    if jax.default_backend() == "cpu":
        _set(M_MMAP_MAX, 65_536)
        _set(M_TRIM_THRESHOLD, 131_072)


def _set(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)
