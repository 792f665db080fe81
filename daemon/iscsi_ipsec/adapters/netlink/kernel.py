"""Reads the kernel's IPsec databases (SPD and SAD) through NETLINK_XFRM.

Law: reads only. A dump of states carries their keys. They are neither
parsed nor kept, and no exception is raised in or through a frame that holds a
received buffer, since a traceback shows local variables.

Layouts: include/uapi/linux/xfrm.h. Parsing is pure, takes any
bytes, and passes over what it cannot read.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

from iscsi_ipsec.adapters.netlink.endpoint import bound
from iscsi_ipsec.base.addresses import Address, Network
from iscsi_ipsec.base.errors import KernelUnavailable
from iscsi_ipsec.base.netlink_framing import (
    ATTRIBUTE,
    HEADER,
    NETLINK_XFRM,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    error_code,
    messages,
)
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState, Selector

XFRM_MSG_GETSA, XFRM_MSG_NEWSA = 0x12, 0x10
XFRM_MSG_GETPOLICY, XFRM_MSG_NEWPOLICY = 0x15, 0x13
XFRMA_ALG_AUTH, XFRMA_ALG_CRYPT, XFRMA_TMPL, XFRMA_ALG_AEAD, XFRMA_MARK, XFRMA_IF_ID = 1, 2, 5, 18, 21, 31


TIMEOUT = 5.0
"""Seconds for a whole dump; 10,000 entries take well under one."""
MAX_ENTRIES = 200_000
ATTEMPTS = 4
"""How often a dump is repeated if the tables changed during it (NLM_F_DUMP_INTR)."""
RECEIVE_BYTES = 1 << 18

_SELECTOR = struct.Struct("=16s16s8sHBBB3xiI")
_PORTS = struct.Struct("!4H")
_LIFETIME = struct.Struct("=4Q")
_STATE_ID = struct.Struct("!16sIB3x")
_STATE_TAIL = struct.Struct("=IIHBBB")
_POLICY_TAIL = struct.Struct("=IIBBBB")
_TEMPLATE = struct.Struct("=16s4sB3xH2x16sIBBBx12x")
_LIMITS_BYTES, _STATS_BYTES = 64, 12
_ALGORITHM_NAME_BYTES = 64

_ALIGNMENT = struct.calcsize("@BQ") - 8  # of a __u64 inside a struct: 8, but 4 on i386


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


_STATE_CURRENT = _SELECTOR.size + _STATE_ID.size + 16 + _LIMITS_BYTES
_STATE_BYTES = _padded(_STATE_CURRENT + _LIFETIME.size + _STATS_BYTES + _STATE_TAIL.size)
_POLICY_CURRENT = _SELECTOR.size + _LIMITS_BYTES
_POLICY_BYTES = _padded(_POLICY_CURRENT + _LIFETIME.size + _POLICY_TAIL.size)

_DIRECTIONS = ("in", "out", "fwd")  # numbers from 3 on are the sockets' own policies
_MODES = ("transport", "tunnel", "route-optimization", "in-trigger", "beet")
_ACTIONS = ("allow", "block")

T = TypeVar("T")


class Xfrm:
    """The kernel's policies and states, for who asks often: a policy that was in the last dump is not parsed again.

    Messages are known by a digest: thousands of them would take as much memory as what they say.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, KernelPolicy | None] = {}
        self._last: tuple[KernelPolicy, ...] = ()

    def policies(self) -> tuple[KernelPolicy, ...]:
        """All policies but the sockets' own, the very same tuple as long as they are the same.

        Raises :class:`KernelUnavailable` (EPERM: not root).
        """
        known, seen = self._known, dict[bytes, KernelPolicy | None]()
        ends = _Ends()

        def parse(payload: bytes) -> KernelPolicy | None:
            # counters and times differ with each packet
            said = payload[:_POLICY_CURRENT] + payload[_POLICY_CURRENT + _LIFETIME.size :]
            at = hashlib.blake2b(said, digest_size=16).digest()
            seen[at] = known[at] if at in known else parse_policy(payload, ends)
            return seen[at]

        found = _dump(XFRM_MSG_GETPOLICY, XFRM_MSG_NEWPOLICY, parse)
        self._known = seen
        if found != self._last:
            self._last = found
        return self._last

    def states(self) -> tuple[KernelState, ...]:
        """All states, without their keys. Raises :class:`KernelUnavailable` (EPERM: not root)."""
        return states()


def policies() -> tuple[KernelPolicy, ...]:
    """All policies but the sockets' own. Raises :class:`KernelUnavailable` (EPERM: not root)."""
    return Xfrm().policies()


def states() -> tuple[KernelState, ...]:
    """All states, without their keys. Raises :class:`KernelUnavailable` (EPERM: not root)."""
    now = int(time.time())
    return _dump(XFRM_MSG_GETSA, XFRM_MSG_NEWSA, lambda payload: parse_state(payload, now))


class _Ends:
    """Addresses and networks from their bytes; equal ones of one dump are the very same, since many policies have them."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[bytes, int], Address | None] = {}
        self._networks: dict[tuple[bytes, int, int], Network | None] = {}

    def address(self, raw: bytes, family: int) -> Address | None:
        """None for a family that is not IP."""
        if (raw, family) not in self._addresses:
            self._addresses[raw, family] = _address(raw, family)
        return self._addresses[raw, family]

    def network(self, raw: bytes, length: int, family: int) -> Network | None:
        """None too for a prefix that is too long."""
        at = raw, length, family
        if at not in self._networks:
            address = self.address(raw, family)
            self._networks[at] = (
                None
                if address is None or length > address.max_prefixlen
                else ipaddress.ip_network((address, length), strict=False)
            )
        return self._networks[at]


def parse_policy(payload: bytes, ends: _Ends | None = None) -> KernelPolicy | None:
    """One XFRM_MSG_NEWPOLICY without its header; None: a socket's own, or not readable."""
    ends = ends or _Ends()
    if len(payload) < _POLICY_BYTES:
        return None
    priority, index, direction, action, _, _ = _POLICY_TAIL.unpack_from(
        payload, _POLICY_CURRENT + _LIFETIME.size
    )
    selector = _parse_selector(payload, 0, ends)
    if direction >= len(_DIRECTIONS) or selector is None:
        return None
    reqid, mode, protocol = 0, "", 0
    tmpl_src: Address | None = None
    tmpl_dst: Address | None = None
    (ifindex,) = struct.unpack_from("=i", payload, _SELECTOR.size - 8)
    restricted = ifindex != 0
    for kind, value in attributes(payload[_POLICY_BYTES:]):
        if kind == XFRMA_TMPL and len(value) >= _TEMPLATE.size and not mode:
            daddr, _, protocol, family, saddr, reqid, number, _, _ = _TEMPLATE.unpack_from(value)
            mode = _named(_MODES, number, "mode")
            tmpl_src, tmpl_dst = ends.address(saddr, family), ends.address(daddr, family)
        elif kind == XFRMA_IF_ID or (kind == XFRMA_MARK and value[4:8] != bytes(4)):
            restricted = True
    return KernelPolicy(
        direction=_DIRECTIONS[direction],
        src=selector.src,
        dst=selector.dst,
        proto=selector.proto,
        sport=selector.sport,
        sport_mask=selector.sport_mask,
        dport=selector.dport,
        dport_mask=selector.dport_mask,
        action=_named(_ACTIONS, action, "action"),
        priority=priority,
        index=index,
        reqid=reqid,
        mode=mode,
        tmpl_proto=protocol,
        tmpl_src=tmpl_src,
        tmpl_dst=tmpl_dst,
        restricted=restricted,
    )


def parse_state(payload: bytes, now: int) -> KernelState | None:
    """One XFRM_MSG_NEWSA without its header, at ``now`` (Unix time); None: not readable.

    Of the attributes, keys among them, only the cipher's name is read.
    """
    if len(payload) < _STATE_BYTES:
        return None
    daddr, spi, protocol = _STATE_ID.unpack_from(payload, _SELECTOR.size)
    saddr = payload[_SELECTOR.size + _STATE_ID.size : _SELECTOR.size + _STATE_ID.size + 16]
    byte_count, packets, added, _ = _LIFETIME.unpack_from(payload, _STATE_CURRENT)
    _, reqid, family, mode, _, _ = _STATE_TAIL.unpack_from(
        payload, _STATE_CURRENT + _LIFETIME.size + _STATS_BYTES
    )
    src, dst = _address(saddr, family), _address(daddr, family)
    if src is None or dst is None:
        return None
    return KernelState(
        src=src,
        dst=dst,
        spi=spi,
        proto=protocol,
        reqid=reqid,
        mode=_named(_MODES, mode, "mode"),
        bytes=byte_count,
        packets=packets,
        age=max(0, now - added) if added else 0,
        sel=_parse_selector(payload, family, _Ends()),
        cipher=_cipher_name(payload),
    )


def _cipher_name(payload: bytes) -> str:
    """The name with which XFRMA_ALG_CRYPT or XFRMA_ALG_AEAD begins; the key behind it stays where it is."""
    offset = _STATE_BYTES
    while offset + ATTRIBUTE.size <= len(payload):
        length, kind = ATTRIBUTE.unpack_from(payload, offset)
        begin, end = offset + ATTRIBUTE.size, offset + length
        if length < ATTRIBUTE.size or end > len(payload):
            break
        if kind in (XFRMA_ALG_CRYPT, XFRMA_ALG_AEAD) and end - begin >= _ALGORITHM_NAME_BYTES:
            name = payload[begin : begin + _ALGORITHM_NAME_BYTES]
            return name.partition(b"\0")[0].decode("ascii", "replace")
        offset += (length + 3) & ~3
    return ""


def _parse_selector(payload: bytes, family: int, ends: _Ends) -> Selector | None:
    """``family`` stands in where the selector has none, as in states for any address."""
    daddr, saddr, ports, own_family, dlen, slen, protocol, _, _ = _SELECTOR.unpack_from(payload)
    dport, dport_mask, sport, sport_mask = _PORTS.unpack(ports)
    src = ends.network(saddr, slen, own_family or family)
    dst = ends.network(daddr, dlen, own_family or family)
    if src is None or dst is None:
        return None
    return Selector(
        src=src,
        dst=dst,
        proto=protocol,
        sport=sport,
        sport_mask=sport_mask,
        dport=dport,
        dport_mask=dport_mask,
    )


def _address(raw: bytes, family: int) -> Address | None:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(raw[:4])
    if family == socket.AF_INET6:
        return ipaddress.IPv6Address(raw)
    return None


def _named(names: tuple[str, ...], number: int, what: str) -> str:
    return names[number] if number < len(names) else f"{what}-{number}"


def _dump(request: int, wanted: int, parse: Callable[[bytes], T | None]) -> tuple[T, ...]:
    found: list[T] = []
    reason = ""
    for _ in range(ATTEMPTS):
        found, reason, again = _collect(request, wanted, parse)
        if not again:
            break
    if reason:
        raise KernelUnavailable(f"XFRM: {reason}")
    return tuple(found)


def _collect(request: int, wanted: int, parse: Callable[[bytes], T | None]) -> tuple[list[T], str, bool]:
    """One dump: what was found, why it is no use (if so), whether to try again. Never raises."""
    found: list[T] = []
    try:
        with bound(NETLINK_XFRM, TIMEOUT) as opened:
            opened.send(HEADER.pack(HEADER.size, request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0))
            end = time.monotonic() + TIMEOUT
            while True:
                data, _, truncated, sender = opened.recvmsg(RECEIVE_BYTES)
                if truncated & socket.MSG_TRUNC:
                    return found, "an entry is too long", False
                if sender[0] != 0:  # only the kernel has number 0
                    continue
                for kind, flags, _, payload in messages(data):
                    if flags & NLM_F_DUMP_INTR:
                        return found, "the tables kept changing during the dump", True
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        code = error_code(payload)
                        return found, os.strerror(code) if code > 0 else "", False
                    entry = parse(payload) if kind == wanted else None
                    if entry is not None:
                        found.append(entry)
                if len(found) > MAX_ENTRIES:
                    return found, f"more than {MAX_ENTRIES} entries", False
                if time.monotonic() > end:
                    return found, f"the answer did not end within {TIMEOUT:g} s", False
    except OSError as err:
        # not re-raised: this frame holds what was received
        return found, err.strerror or str(err), False


def _algorithm(kind: int, name: bytes, *, key_bytes: int) -> bytes:
    value = struct.pack("=64sI", name, 8 * key_bytes) + bytes(key_bytes)
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value


def has_aes_instructions(path: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU does AES itself (x86 flag ``aes``, Arm feature ``aes``); True where that is unknown."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
    except OSError:
        return True
    return not lines or " aes" in lines[0]
