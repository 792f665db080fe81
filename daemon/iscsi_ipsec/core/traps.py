"""Which connections have lost their policies in the kernel, although charon still believes in them.

Law: pure. charon installs the policy of a trap when the connection is loaded,
and those of an SA when it comes up, and never looks at them again. So after
`ip xfrm policy flush` nothing asks for an SA any more, and on a target nothing
is sent through one: the guard keeps the portal closed, and it stays closed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from iscsi_ipsec.base.model import Address, Network, Role
from iscsi_ipsec.base.sa import IkeSa
from iscsi_ipsec.base.xfrm import KernelPolicy
from iscsi_ipsec.core.desired import Connection

IPPROTO_TCP = 6


def lost_traps(connections: Iterable[Connection], policies: Iterable[KernelPolicy]) -> frozenset[str]:
    """Names of the connections towards whose portal no policy of the kernel leads."""
    leading: set[tuple[Network, Network, int]] = {
        (policy.src, policy.dst, policy.dport)
        for policy in policies
        if policy.direction == "out" and policy.proto in (0, IPPROTO_TCP) and not policy.restricted
    }
    return frozenset(
        connection.name
        for connection in connections
        if connection.role is Role.INITIATOR
        and not connection.user_space_esp
        and (_source(connection), _host(connection.seat.portal.address), connection.seat.portal.port)
        not in leading
    )


def stranded_sas(
    connections: Iterable[Connection], sas: Iterable[IkeSa], policies: Iterable[KernelPolicy]
) -> tuple[IkeSa, ...]:
    """The IKE_SAs of served portals with a child through which no policy of the kernel sends anything."""
    served = {c.name for c in connections if c.role is Role.TARGET and not c.user_space_esp}
    sending = {policy.reqid for policy in policies if policy.direction == "out"}
    return tuple(
        ike
        for ike in sas
        if ike.conn in served
        and any(child.state == "INSTALLED" and child.reqid not in sending for child in ike.children)
    )


def _source(connection: Connection) -> Network:
    selected, _, _ = connection.local_ts.partition("[")
    return _host(connection.local_address) if selected == "dynamic" else ipaddress.ip_network(selected)


def _host(address: Address) -> Network:
    return ipaddress.ip_network(address)
