"""Opens netlink sockets.

Law: opens a socket, sends nothing.
"""

from __future__ import annotations

import socket


def bound(protocol: int, timeout: float | None = None) -> socket.socket:
    """A socket with a port id that the kernel chose, in the namespace of this thread. Raises :class:`OSError`.

    ``timeout`` in seconds is that of each operation; None: as long as it takes.
    """
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        opened.settimeout(timeout)
        opened.bind((0, 0))
    except OSError:
        opened.close()
        raise
    return opened
