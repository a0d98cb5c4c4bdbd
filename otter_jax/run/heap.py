"""Keeps the memory that one step of a training frees for the next one, on CPUs.

XLA takes the memory of a program's temporaries anew at each call. glibc asks the system for pieces
as large as these and gives them back at once, so that each of their pages costs a fault at every
step: an eighth of a step's time, and more of a step that fits the processor's caches.

Both functions are for this process, and do nothing where another C library is.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h


def share() -> None:
    """Makes threads that start from here on take memory from one heap.

    It must come before JAX starts its own: a thread's own heap cannot hold a large piece.
    """
    _set(M_ARENA_MAX, 1)


def keep() -> None:
    """Makes this heap keep what is freed, of any size, until the process ends.

    New pieces may not fit into what others have left, so that it can grow to twice what is used.
    """
    _set(M_MMAP_MAX, 0)
    _set(M_TRIM_THRESHOLD, -1)


def _set(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)
