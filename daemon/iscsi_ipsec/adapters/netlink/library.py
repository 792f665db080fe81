"""Imports the parts of :mod:`pyroute2` that are used, without the others.

Law: nothing here but imports. Whoever imports a part of the library runs its
``__init__`` first, which imports all of it, asyncio and OpenSSL with it: 280
modules, 20 MB and a fifth of a second. The daemon needs its messages only,
which need none of that; its sockets are plain ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _parts_of(package: str) -> Iterator[None]:
    """Within it, parts of a package are imported without running what the package itself begins with.

    After it the package is not there again: whoever imports it has its whole beginning run.
    """
    if package in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)  # it knows its folder, and is not run
    try:
        yield
    finally:
        del sys.modules[package]


with _parts_of("pyroute2"):
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["diag_socket", "ifaddrmsg", "link_message", "rtmsg"]


def link_message() -> type[Any]:
    """The message of a link, which brings every kind of link with it (1 MB): few hosts bind to a hardware address."""
    with _parts_of("pyroute2"):
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415
    return ifinfmsg  # type: ignore[no-any-return]


def diag_socket() -> type[Any]:
    """The library's own socket for sock_diag, with the event loop it runs: for the command, which soon ends."""
    with _parts_of("pyroute2"):
        from pyroute2.netlink.diag import DiagSocket  # noqa: PLC0415
    return DiagSocket  # type: ignore[no-any-return]
