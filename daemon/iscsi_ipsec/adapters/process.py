"""This process' memory: closed to those who would look into it, and tidied when nobody waits.

Law: closed first, before a key is read; a system that refuses is no reason not to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource

PR_SET_DUMPABLE = 4
"""include/uapi/linux/prctl.h"""


def forbid_dumps() -> None:
    """No core dump, whatever kills us, and no look at our memory for who is not root.

    The limit alone is not enough: the kernel ignores it where ``core_pattern`` is a pipe, as
    with systemd-coredump (core(5)). Without the flag not even that is started, and ``/proc``
    shows our environment and memory to root only (ptrace(2)).
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


GARBAGE = 50_000
"""So many objects more than after the last search are searched for rings of garbage: at most some 10 MB."""


def tidy_by_hand() -> None:
    """Have Python search for rings of garbage only where :func:`tidy` is called.

    Nearly all that is made here is freed as soon as nothing refers to it. Python's own searches look through
    hundreds of thousands of keys and views that live on, again and again, in the middle of a pass.
    """
    gc.disable()


def tidy() -> None:
    """Search if enough has gathered; with 10,000 keys that takes about a tenth of a second."""
    if gc.get_count()[0] > GARBAGE:
        gc.collect()
