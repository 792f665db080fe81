"""Forbids core dumps of this process, and other processes' access to its memory.

Law: dumps are forbidden before the first key is read; the daemon also runs on a system that refuses this.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource

PR_SET_DUMPABLE = 4
"""include/uapi/linux/prctl.h"""

_libc = ctypes.CDLL(None)


def forbid_dumps() -> None:
    """Forbid core dumps, and access to our memory by anybody but root.

    The limit alone is not enough: the kernel ignores it where ``core_pattern`` is a pipe, as
    with systemd-coredump (core(5)). Without the flag not even that is started, and ``/proc``
    shows our environment and memory to root only (ptrace(2)).
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
