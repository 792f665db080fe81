"""Route lookups and addresses, by :mod:`pyroute2`.

Law: reads only. The library's synchronous calls run an event loop and a
socket of their own per thread, so one :class:`Routes` belongs to the thread
that made it, and that thread closes it; inside a running event loop it does
not work at all.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.model import Address

RTN_LOCAL = 2
"""Type of the route to an address of this host (include/uapi/linux/rtnetlink.h)."""

_NO_WAY = frozenset(
    {
        errno.ENETUNREACH,  # no route
        errno.EHOSTUNREACH,  # a route of type unreachable
        errno.EACCES,  # prohibit
        errno.EINVAL,  # blackhole
        errno.ENODEV,  # the interface went away
    }
)

T = TypeVar("T")


class Routes:
    """Asks the kernel. Every method raises :class:`KernelUnavailable` and opens a new socket next time."""

    def __init__(self) -> None:
        self._open: Any = None

    def source_for(self, address: Address, oif_name: str = "") -> Address | None:
        """The address that packets to ``address`` leave with; None if it cannot be reached.

        ``oif_name`` limits the lookup to one interface, as SO_BINDTODEVICE
        does. The answer obeys all policy rules, so it sees charon's table 220
        too: with a tunnel-mode SA up that routes to ``address``, it is the
        inner source, which is also what the iSCSI connection gets.
        """
        route = self._lookup(address, oif_name)
        prefsrc = route.get("prefsrc") if route is not None else None
        return ipaddress.ip_address(prefsrc) if prefsrc else None

    def device_for(self, address: Address) -> str | None:
        """The interface that packets to ``address`` leave by; None if it cannot be reached."""
        route = self._lookup(address, "")
        index = route.get("oif") if route is not None else None
        try:
            return socket.if_indextoname(index) if index else None
        except OSError:
            return None  # it went away since

    def is_local(self, address: Address) -> bool:
        """Whether ``address`` is one of this host's own (the kernel routes it to itself)."""
        route = self._lookup(address, "")
        return route is not None and route["type"] == RTN_LOCAL

    def local_addresses(self) -> frozenset[Address]:
        """All addresses on all interfaces, loopback and link-local ones too."""
        found = set()
        for message in self._asked(lambda ipr: ipr.get_addr()):
            # on a point-to-point link, address is the peer's and local ours
            text = message.get("local") or message.get("address")
            if text:
                found.add(ipaddress.ip_address(text))
        return frozenset(found)

    def iface_by_hwaddress(self, mac: str) -> str | None:
        """The interface with this hardware address; of several the one with the lowest index."""
        links = [m for m in self._asked(lambda ipr: ipr.get_links()) if m.get("address") == mac.lower()]
        lowest = min(links, key=lambda m: int(m["index"]), default=None)
        return None if lowest is None else str(lowest.get("ifname"))

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        was, self._open = self._open, None
        if was is not None:
            with contextlib.suppress(Exception):  # one that broke before raises again, and is gone either way
                was.close()

    def _lookup(self, address: Address, oif_name: str) -> Any | None:
        index = 0
        if oif_name:
            try:
                index = socket.if_nametoindex(oif_name)
            except OSError:
                return None  # no such interface: no way out through it
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        request = {"dst": str(address).partition("%")[0], "family": family}
        if index:
            request["oif"] = index
        found = self._asked(lambda ipr: ipr.route("get", **request), ignored=_NO_WAY)
        return next(iter(found), None)

    def _asked(
        self, ask: Callable[[Any], Iterable[Any]], ignored: frozenset[int] = frozenset()
    ) -> tuple[Any, ...]:
        try:
            if self._open is None:
                self._open = IPRoute()
            return tuple(ask(self._open))
        except NetlinkError as err:
            if err.code in ignored:
                return ()
            self.close()
            raise KernelUnavailable(f"rtnetlink: {err}") from err
        except Exception as err:  # the library has no error class of its own for the rest
            self.close()
            raise KernelUnavailable(f"rtnetlink: {type(err).__name__} {err}") from err
