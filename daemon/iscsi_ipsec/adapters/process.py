"""Forbids core dumps of this process, and returns freed memory to the system.

Law: dumps are forbidden first, before a key is read; a system that refuses anything here is no reason not to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource

PR_SET_DUMPABLE = 4
"""include/uapi/linux/prctl.h"""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""malloc.h of glibc"""

_libc = ctypes.CDLL(None)

LARGE = 128 * 1024
"""Bytes; glibc's own value for both before it adapts them."""


def forbid_dumps() -> None:
    """No core dump, whatever kills us, and no look at our memory for who is not root.

    The limit alone is not enough: the kernel ignores it where ``core_pattern`` is a pipe, as
    with systemd-coredump (core(5)). Without the flag not even that is started, and ``/proc``
    shows our environment and memory to root only (ptrace(2)).
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def return_large_blocks() -> None:
    """Have large blocks of memory go back to the system when they are freed.

    glibc raises both limits to the size of the largest block that was ever freed (mallopt(3)): an
    answer or a file of megabytes then comes from the heap, and leaves a hole there. Saying the
    values stops that. All threads share one heap, since one does most of the work. Other C
    libraries have no such call.
    """
    with contextlib.suppress(AttributeError):
        _libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        _libc.mallopt(M_TRIM_THRESHOLD, LARGE)
        _libc.mallopt(M_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Give back what is free now, between what is in use too: a third of a millisecond, and a megabyte after each pass."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)
