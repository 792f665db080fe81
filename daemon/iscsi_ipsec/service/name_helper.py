"""The program behind ``iscsi-ipsec-names.service``: resolves names without any right.

The daemon may use no network but the kernel's own sockets, so it cannot ask DNS. Whatever the C library does
with an answer from the network happens here, in a process without rights.

Law: imports as little as it can. A client sends one name and a line break and gets, in lines,
``address ADDRESS`` for each, or ``failed REASON``, and then the end.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from iscsi_ipsec.adapters.resolver import MAX_NAME, system_resolve

LISTEN_FD = 3
"""The socket that systemd hands over (sd_listen_fds(3))."""
THREADS = 4
CLIENT_TIMEOUT = 5.0


def main() -> int:
    """Answer until systemd ends it."""
    with socket.socket(fileno=LISTEN_FD) as listener, ThreadPoolExecutor(THREADS) as pool:
        while True:
            client, _ = listener.accept()
            pool.submit(serve, client)


def serve(client: socket.socket) -> None:
    """Read one name, and write its addresses or the reason of the failure."""
    with client, contextlib.suppress(OSError):  # a client that went away
        client.settimeout(CLIENT_TIMEOUT)
        asked = b""
        while b"\n" not in asked and len(asked) <= MAX_NAME:
            data = client.recv(MAX_NAME + 1)
            if not data:
                break
            asked += data
        name, ended, _ = asked.partition(b"\n")
        answer = answer_for(name.decode("ascii", "replace")) if ended else "failed no name was asked for\n"
        client.sendall(answer.encode("utf-8", "backslashreplace"))


def answer_for(name: str) -> str:
    """The lines of an answer."""
    try:
        return "".join(f"address {address}\n" for address in system_resolve(name))
    except (OSError, UnicodeError) as err:  # UnicodeError: the idna codec on labels that are too long
        reason = (err.strerror if isinstance(err, OSError) else "") or str(err)
        return f"failed {' '.join(reason.split())}\n"


if __name__ == "__main__":
    sys.exit(main())
