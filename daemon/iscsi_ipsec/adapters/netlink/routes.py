"""Looks up routes and addresses: the messages are :mod:`pyroute2`'s, the socket is our own.

Law: reads only. A network namespace belongs to a thread, so one
:class:`Routes` belongs to the thread that made it, and that thread closes it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from iscsi_ipsec.adapters.netlink.endpoint import bound
from iscsi_ipsec.adapters.netlink.library import ifaddrmsg, link_message, rtmsg
from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.netlink_framing import (
    HEADER,
    NETLINK_ROUTE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    error_code,
    messages,
)

RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE = 18, 22, 26

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

TIMEOUT = 5.0
"""Seconds for a whole answer."""
ATTEMPTS = 4
"""A dump during which the tables changed (NLM_F_DUMP_INTR) is taken again, this often."""
RECEIVE_BYTES = 1 << 16
"""A dump comes in pieces of 32 KiB at most (netlink_dump in af_netlink.c)."""


class Routes:
    """Asks the kernel. Every method raises :class:`KernelUnavailable` and opens a new socket next time."""

    def __init__(self) -> None:
        self._open: socket.socket | None = None
        self._sequence = 0

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

    def local_addresses(self) -> frozenset[Address]:
        """All addresses on all interfaces, loopback and link-local ones too."""
        found = set()
        for message in self._dumped(RTM_GETADDR, ifaddrmsg):
            # on a point-to-point link, address is the peer's and local ours
            text = message.get("local") or message.get("address")
            if text:
                found.add(ipaddress.ip_address(text))
        return frozenset(found)

    def iface_by_hwaddress(self, mac: str) -> str | None:
        """The interface with this hardware address; of several the one with the lowest index."""
        links = [m for m in self._dumped(RTM_GETLINK, link_message()) if m.get("address") == mac.lower()]
        lowest = min(links, key=lambda m: int(m["index"]), default=None)
        return None if lowest is None else str(lowest.get("ifname"))

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        was, self._open = self._open, None
        if was is not None:
            was.close()

    def _lookup(self, address: Address, oif_name: str) -> Any | None:
        index = 0
        if oif_name:
            try:
                index = socket.if_nametoindex(oif_name)
            except (OSError, ValueError):  # a NUL in a name that open-iscsi's record has
                return None  # no such interface: no way out through it
        request = rtmsg()
        request["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
        request["dst_len"] = address.max_prefixlen
        request["attrs"] = [("RTA_DST", str(address).partition("%")[0])]
        if index:
            request["attrs"].append(("RTA_OIF", index))
        code, found = self._request(RTM_GETROUTE, request, NLM_F_REQUEST)
        if code in _NO_WAY:
            return None
        return next(iter(_usable(code, found)), None)

    def _dumped(self, kind: int, message: type[Any]) -> list[Any]:
        for _ in range(ATTEMPTS):
            code, found = self._request(kind, message(), NLM_F_REQUEST | NLM_F_DUMP)
            if code != errno.EINTR:
                return _usable(code, found)
        raise KernelUnavailable("rtnetlink: the tables kept changing")

    def _request(self, kind: int, request: Any, flags: int) -> tuple[int, list[Any]]:
        """What the kernel answers: an errno, 0 for none, and messages of the request's class.

        EINTR: the tables changed during the dump.
        """
        self._sequence += 1
        header = request["header"]
        header["type"], header["flags"], header["sequence_number"] = kind, flags, self._sequence
        try:
            if self._open is None:
                self._open = bound(NETLINK_ROUTE, TIMEOUT)
            request.encode()
            self._open.send(request.data)
            return self._answer(self._open, type(request), dump=bool(flags & NLM_F_DUMP))
        except Exception as err:  # what the library raises at bytes that it cannot read, it does not say
            self.close()
            raise KernelUnavailable(f"rtnetlink: {_reason(err)}") from err

    def _answer(self, opened: socket.socket, message: type[Any], *, dump: bool) -> tuple[int, list[Any]]:
        found: list[Any] = []
        interrupted = 0
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            for kind, flags, payload in _received(opened, self._sequence):
                if flags & NLM_F_DUMP_INTR:
                    interrupted = errno.EINTR
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    return error_code(payload) or interrupted, found
                found.append(message(HEADER.pack(HEADER.size + len(payload), kind, flags, 0, 0) + payload))
                found[-1].decode()
                if not dump:
                    return 0, found
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _received(opened: socket.socket, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """The (type, flags, payload) of what the kernel answers to the question of this number.

    What another process sends (the kernel's own number is 0), or a late answer to an older question, is passed over.
    """
    data, _, truncated, sender = opened.recvmsg(RECEIVE_BYTES)
    if truncated & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    for kind, flags, number, payload in messages(data):
        if sender[0] == 0 and number == sequence:
            yield kind, flags, payload


def _usable(code: int, found: list[Any]) -> list[Any]:
    if code:
        raise KernelUnavailable(f"rtnetlink: {os.strerror(code)}")
    return found


def _reason(err: Exception) -> str:
    return (isinstance(err, OSError) and err.strerror) or f"{type(err).__name__} {err}"
