"""Finds connections whose policies or SAs the kernel lost although charon still counts on them.

Law: pure. charon installs the policy of a trap when the connection is loaded,
and those of an SA when it comes up, and never looks at them again. So after `ip xfrm policy flush` nothing
asks for an SA any more, and on a target nothing is sent through one: the guard keeps the portal closed for
good. Conversely, a killed charon leaves SAs that the next charon does not know, and after `ip xfrm state
flush` charon still counts on SAs that are gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from iscsi_ipsec.base.addresses import Address, Network
from iscsi_ipsec.base.charon_sa import ChildSa, IkeSa
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from iscsi_ipsec.core.decide.desired import Connection
from iscsi_ipsec.core.ike.sa_lifecycle import carrying

IPPROTO_TCP, IPPROTO_ESP = 6, 50


def lost_traps(connections: Iterable[Connection], policies: Iterable[KernelPolicy]) -> frozenset[str]:
    """Names of the connections towards whose portal no policy of the kernel leads."""
    leading = _leading(policies)
    return frozenset(c.name for c in connections if _has_trap(c) and _way(c) not in leading)


def orphaned_sas(
    connections: Iterable[Connection],
    sas: Iterable[IkeSa],
    policies: Iterable[KernelPolicy],
    states: Iterable[KernelState],
) -> frozenset[str]:
    """Names of the connections whose packets go through an SA in the kernel that charon does not know.

    A charon that is killed leaves them, and the next one gives its trap the same reqid. Nobody renews them,
    and once the far end has dropped them, packets in them are lost until they expire.
    """
    sending: dict[object, set[int]] = {}
    for state in states:
        if state.proto == IPPROTO_ESP and not state.larval:
            sending.setdefault((state.src, state.dst), set()).add(state.reqid)
    known = {ike.conn for ike in sas if carrying(ike)}
    suspects = [
        (c, sending[ends])
        for c in connections
        if (ends := (c.local_address, c.remote_address)) in sending and _has_trap(c) and c.name not in known
    ]
    leading = _leading(policies) if suspects else {}
    return frozenset(c.name for c, reqids in suspects if leading.get(_way(c)) in reqids)


def stranded_sas(
    connections: Iterable[Connection], sas: Iterable[IkeSa], policies: Iterable[KernelPolicy]
) -> tuple[IkeSa, ...]:
    """The IKE_SAs of served portals with a child that no policy of the kernel uses."""
    served = {c.name for c in connections if c.role is Role.TARGET and not c.user_space_esp}
    sending: dict[int, set[Network]] = {}
    for policy in policies:
        if policy.direction == "out":
            sending.setdefault(policy.reqid, set()).add(policy.dst)
    return tuple(
        ike
        for ike in sas
        if ike.conn in served
        and any(child.state == "INSTALLED" and not _is_sent_through(child, sending) for child in ike.children)
    )


def _is_sent_through(child: ChildSa, sending: Mapping[int, set[Network]]) -> bool:
    """Whether a policy leads into the CHILD_SA: the initiators of one connection share a reqid."""
    ends = set(_remote_ends(child))
    return child.reqid in sending and (not ends or not ends.isdisjoint(sending[child.reqid]))


def missing_sas(
    connections: Iterable[Connection], sas: Iterable[IkeSa], states: Iterable[KernelState]
) -> tuple[IkeSa, ...]:
    """The IKE_SAs with a child that charon has and the kernel does not.

    The kernel asks for an SA, but charon takes the request for a duplicate of the one that it has. Where the
    outbound state is missing, the kernel's larval state may have its SPI, as the policy has.
    """
    in_kernel = {c.name for c in connections if not c.user_space_esp}
    held = {state.spi_hex for state in states}
    return tuple(
        ike
        for ike in sas
        if ike.conn in in_kernel
        and any(c.state == "INSTALLED" and not {c.spi_in, c.spi_out} - {""} <= held for c in ike.children)
    )


def _remote_ends(child: ChildSa) -> tuple[Network, ...]:
    """The peer's addresses in a CHILD_SA's selectors, which charon writes as ``10.0.0.5/32[tcp]``."""
    ends = []
    for selector in child.remote_ts:
        with contextlib.suppress(ValueError):  # we never ask for a range of addresses
            ends.append(ipaddress.ip_network(selector.partition("[")[0]))
    return tuple(ends)


_Way: TypeAlias = tuple[Network, Network, int]
"""Source, destination and destination port of the packets that a trap is for."""


def _leading(policies: Iterable[KernelPolicy]) -> dict[_Way, int]:
    """The reqid of the kernel's policy for each way."""
    return {
        (policy.src, policy.dst, policy.dport): policy.reqid
        for policy in policies
        if policy.direction == "out" and policy.proto in (0, IPPROTO_TCP) and not policy.restricted
    }


def _has_trap(connection: Connection) -> bool:
    return connection.role is Role.INITIATOR and not connection.user_space_esp


def _way(connection: Connection) -> _Way:
    portal = connection.binding.portal
    return _source(connection), _host(portal.address), portal.port


def _source(connection: Connection) -> Network:
    selected, _, _ = connection.local_ts.partition("[")
    return _host(connection.local_address) if selected == "dynamic" else ipaddress.ip_network(selected)


def _host(address: Address) -> Network:
    return ipaddress.ip_network(address)
