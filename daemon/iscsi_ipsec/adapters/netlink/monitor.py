"""Threads that listen to the kernel's multicast groups and wake the main loop.

Law: a monitor calls ``wake`` and nothing else. It wakes also after each time
that it subscribed and when the kernel says that messages were lost, so nothing
can change unnoticed for longer than a pass.

These are plain sockets, not :mod:`pyroute2`: there is nothing to parse but a
name, and a lost message (ENOBUFS), which ends that library's reader for good,
is to a plain socket just one error, after which it goes on.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator

from iscsi_ipsec.adapters.netlink.endpoint import bound
from iscsi_ipsec.base.netlink_framing import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NETLINK_XFRM,
    attributes,
    messages,
)

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1

ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19)
"""RTNLGRP_ LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE
(include/uapi/linux/rtnetlink.h). LINK counts: when a link goes down its IPv4 routes
vanish without a message of their own."""

NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWGEN = 0, 2, 15
NFTA_TABLE_NAME = 1
"""Attribute 1 is the table's name in the messages about tables, chains, rules, sets, elements
and objects alike (include/uapi/linux/netfilter/nf_tables.h); of NEWGEN it is a number."""

XFRMNLGRP_POLICY, XFRM_MSG_FLUSHPOLICY = 4, 0x1D
"""A single deleted policy is ignored: charon removes and reinstalls its own all day."""

FIRST_DELAY, LAST_DELAY = 0.2, 5.0
RECEIVE_BYTES = 65536

_NFGENMSG_BYTES = 4

_log = logging.getLogger(__name__)


class _Monitor(threading.Thread):
    """Joins ``groups`` of ``protocol``; wakes for each datagram with the reason that ``_reason`` finds in it.

    ``reason`` is the reason where it may have missed something.
    """

    protocol: int
    groups: tuple[int, ...]
    reason: str

    def __init__(self, wake: Callable[[str], None], *, receive_buffer: int | None = None) -> None:
        """``receive_buffer``: bytes for SO_RCVBUF, the kernel's default if None."""
        super().__init__(name=type(self).__name__, daemon=True)
        self._wake = wake
        self._receive_buffer = receive_buffer
        self._stopping = threading.Event()
        self._stop_reader, self._stop_writer = socket.socketpair()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self._stop_writer.close()  # makes the other end readable
        if self.is_alive() and threading.current_thread() is not self:
            self.join(5)

    def run(self) -> None:
        """Subscribe and listen; on an error wait a little and do so again."""
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            try:
                with self._subscribed() as subscribed:
                    self._tell(self.reason)
                    delay = FIRST_DELAY
                    self._listen(subscribed)
            except OSError as err:
                if err.errno == errno.EPROTONOSUPPORT:  # a kernel that does not have this at all
                    break
                _log.warning("%s listens again in %g s: %s", self.name, delay, err.strerror)
                self._stopping.wait(delay)
                delay = min(2 * delay, LAST_DELAY)
        self._stop_reader.close()

    def _subscribed(self) -> socket.socket:
        opened = bound(self.protocol)
        try:
            if self._receive_buffer is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            for group in self.groups:
                opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            opened.close()
            raise
        return opened

    def _listen(self, subscribed: socket.socket) -> None:
        poll = select.poll()
        poll.register(subscribed, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        while True:
            poll.poll()
            if self._stopping.is_set():
                return
            try:
                data, _, flags, sender = subscribed.recvmsg(RECEIVE_BYTES, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                self._tell(self.reason)  # messages were lost, so anything may have changed
                continue
            from_kernel = sender[0] == 0
            reason = self.reason if flags & socket.MSG_TRUNC else self._reason(data)
            if from_kernel and reason:
                self._tell(reason)

    def _tell(self, reason: str) -> None:
        try:
            self._wake(reason)
        except Exception as err:  # noqa: BLE001  # a callback's bug must not end the thread
            _log.error("waking failed: %s", type(err).__name__)

    def _reason(self, data: bytes) -> str:
        """The reason to wake with; empty where nothing in the datagram concerns us."""
        raise NotImplementedError


class RouteMonitor(_Monitor):
    """Wakes with ``network`` when a link, an address, a route or a routing rule changes."""

    protocol = NETLINK_ROUTE
    groups = ROUTE_GROUPS
    reason = "network"

    def _reason(self, data: bytes) -> str:
        return self.reason if data else ""  # all of these groups' messages concern us


class GuardMonitor(_Monitor):
    """Wakes with ``guard`` when anything in nftables' table ``iscsi_ipsec`` changes, also by ourselves.

    When the table was deleted and not made again in the same transaction (we always do both in one), it wakes
    with ``guard-gone`` instead, so that the table need not be read first.
    """

    protocol = NETLINK_NETFILTER
    groups = (NFNLGRP_NFTABLES,)
    reason = "guard"
    gone = "guard-gone"
    reasons = frozenset({reason, gone})

    def _reason(self, data: bytes) -> str:
        kinds = [kind for kind, name in tables(data) if name == b"iscsi_ipsec"]
        if not kinds:
            return ""
        of_the_table = [kind for kind in kinds if kind in (NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE)]
        return self.gone if of_the_table[-1:] == [NFT_MSG_DELTABLE] else self.reason


class PolicyMonitor(_Monitor):
    """Wakes with ``policies`` when somebody throws away all of the kernel's IPsec policies."""

    protocol = NETLINK_XFRM
    groups = (XFRMNLGRP_POLICY,)
    reason = "policies"

    def _reason(self, data: bytes) -> str:
        flushed = any(kind == XFRM_MSG_FLUSHPOLICY for kind, _, _, _ in messages(data))
        return self.reason if flushed else ""


def tables(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The message types (NFT_MSG_) in a datagram of nftables notifications, with their tables; stops quietly at a cut message."""
    for kind, _, _, payload in messages(data):
        if kind >> 8 != NFNL_SUBSYS_NFTABLES or kind & 0xFF == NFT_MSG_NEWGEN:
            continue
        for attribute, value in attributes(payload[_NFGENMSG_BYTES:]):
            if attribute == NFTA_TABLE_NAME:
                yield kind & 0xFF, value.rstrip(b"\0")
