"""Looks up routes and addresses through :mod:`pyroute2`.

Law: reads only. A network namespace belongs to a thread, and so does the library's
socket: one :class:`Routes` belongs to the thread that made it, and that thread closes it.

The library waits for an answer as long as it takes. The kernel puts it into the queue before the
request's ``send`` returns (netlink_unicast_kernel in af_netlink.c), so there is nothing to wait for.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from pyroute2 import IPRoute, NetlinkDumpInterrupted, NetlinkError

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable

_NO_WAY = frozenset(
    {
        errno.ENETUNREACH,  # no route
        errno.EHOSTUNREACH,  # a route of type unreachable
        errno.EACCES,  # prohibit
        errno.EINVAL,  # blackhole
        errno.ENODEV,  # the interface went away
        errno.EOPNOTSUPP,  # a family that this kernel does not route: IPv6 with ipv6.disable=1
        errno.EAFNOSUPPORT,
    }
)

ATTEMPTS = 4
"""A list during which the tables changed (NLM_F_DUMP_INTR) is asked for again, this often."""


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
        prefsrc = route.get_attr("RTA_PREFSRC") if route is not None else None
        return ipaddress.ip_address(prefsrc) if prefsrc else None

    def device_for(self, address: Address) -> str | None:
        """The interface that packets to ``address`` leave by; None if it cannot be reached."""
        route = self._lookup(address, "")
        index = route.get_attr("RTA_OIF") if route is not None else None
        try:
            return socket.if_indextoname(index) if index else None
        except OSError:
            return None  # it went away since

    def local_addresses(self) -> frozenset[Address]:
        """All addresses on all interfaces, loopback and link-local ones too."""
        found = set()
        for message in self._list(lambda library: library.get_addr()):
            # on a point-to-point link, IFA_ADDRESS is the peer's and IFA_LOCAL ours
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                found.add(ipaddress.ip_address(text))
        return frozenset(found)

    def iface_by_hwaddress(self, mac: str) -> str | None:
        """The interface with this hardware address; of several the one with the lowest index."""
        links = self._list(lambda library: library.get_links())
        found = [link for link in links if link.get_attr("IFLA_ADDRESS") == mac.lower()]
        lowest = min(found, key=lambda link: int(link["index"]), default=None)
        return None if lowest is None else str(lowest.get_attr("IFLA_IFNAME"))

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        was, self._open = self._open, None
        if was is not None:
            was.close()

    def _lookup(self, address: Address, oif_name: str) -> Any | None:
        request: dict[str, Any] = {
            "dst": str(address).partition("%")[0],
            "family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
        }
        if oif_name:
            try:
                request["oif"] = socket.if_nametoindex(oif_name)
            except (OSError, ValueError):  # a NUL in a name that open-iscsi's record has
                return None  # no such interface: no way out through it
        try:
            return next(iter(self._ask(lambda library: library.route("get", **request))), None)
        except NetlinkError as err:
            if err.code in _NO_WAY:
                return None
            self.close()
            raise KernelUnavailable(f"rtnetlink: {_reason(err)}") from err

    def _list(self, ask: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """A whole list; one during which the tables changed is asked for again."""
        for _ in range(ATTEMPTS):
            try:
                return self._ask(ask)
            except NetlinkError as err:
                self.close()  # with what is left of the answer
                if not isinstance(err, NetlinkDumpInterrupted):
                    raise KernelUnavailable(f"rtnetlink: {_reason(err)}") from err
        raise KernelUnavailable("rtnetlink: the tables kept changing during the dump")

    def _ask(self, ask: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """The answer; what the kernel says is a :class:`NetlinkError`, all else :class:`KernelUnavailable`."""
        try:
            if self._open is None:
                self._open = IPRoute()
            return list(ask(self._open))
        except NetlinkError:
            raise
        except Exception as err:  # what the library raises at bytes that it cannot read, it does not say
            self.close()
            raise KernelUnavailable(f"rtnetlink: {_reason(err)}") from err


def _reason(err: Exception) -> str:
    if isinstance(err, NetlinkError):
        return os.strerror(err.code)
    return (isinstance(err, OSError) and err.strerror) or f"{type(err).__name__} {err}"
