"""Collects the portals that this host knows as an initiator, and the look-ups they need.

Law: pure. Whether a portal is managed, and how, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from iscsi_ipsec.base.addresses import Address, is_of_one_host, parse_address
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalPattern
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.decide.policy_match import PolicyMatch, portals_of
from iscsi_ipsec.core.decide.world import PortalBinding, World

HOST_STACK_TRANSPORTS = ("", "tcp")
"""open-iscsi transports whose packets pass through the host's IP stack; iSER (RDMA) and offload cards bypass it."""


def wanted_names(
    records: Iterable[NodeRecord],
    broken: Iterable[BrokenFile],
    policies: Iterable[PortalPolicy],
    keys: Iterable[Key],
) -> Mapping[str, str]:
    """Host names that must be resolved before anything can be decided about them, each with a file that has it."""
    names = {r.host: r.path for r in records if r.host and "%" not in r.host and not parse_address(r.host)}
    named: Iterable[tuple[str, Iterable[PortalPattern]]] = (
        *((file.path, file.patterns) for file in broken),
        *((policy.path, policy.patterns) for policy in policies),
        *((key.path, key.portals) for key in keys if key.portals),
    )
    for path, patterns in named:
        for pattern in patterns:
            if isinstance(pattern, NamedPortal):
                names[pattern.host] = path
    return names


def wanted_sources(
    bindings: Iterable[PortalBinding], policies: PolicyMatch
) -> frozenset[tuple[Address, str]]:
    """``(destination, oif)`` pairs whose source address the kernel must be asked for."""
    wanted: set[tuple[Address, str]] = set()
    for binding in bindings:
        wanted.add((binding.portal.address, binding.oif))
        policy = policies.policy_for(binding.portal, Role.INITIATOR)
        if policy and policy.tunnel_outer_remote:
            wanted.add((policy.tunnel_outer_remote, binding.oif))
    return frozenset(wanted)


def candidates(world: World) -> Mapping[PortalBinding, tuple[str, ...]]:
    """Every portal that anything names, reached as an initiator, with what names it."""
    found: dict[PortalBinding, dict[str, None]] = {}

    def add(portal: Portal, oif: str, origin: str) -> None:
        found.setdefault(PortalBinding(portal, oif), {})[origin] = None

    for record in world.records:
        if record.transport in HOST_STACK_TRANSPORTS:
            kind = "discovery record" if record.is_discovery else "node record"
            for address in addresses_of(world, record.host):
                add(Portal(address, record.port), record.net_ifacename, f"{kind} {record.path}")
    policies: tuple[PortalPolicy | BrokenFile, ...] = (
        *world.policies,
        *(b for b in world.broken if b.is_policy),
    )
    for policy in policies:
        if policy.role is Role.INITIATOR:
            for pattern in policy.patterns:
                for portal in portals_of(world, pattern):
                    add(portal, "", f"policy {policy.path}")
    known = {binding.portal for binding in found}
    for session in world.sessions:
        if session.remote not in known and parse_address(str(session.remote.address)):
            add(session.remote, "", f"iSCSI session {session.sid}")
    for portal, role in world.previously_managed:
        if role is Role.INITIATOR and portal not in known:
            add(portal, "", "managed before")
    ordered = sorted(found, key=lambda s: (s.portal.sort_key, s.oif))
    return {binding: tuple(found[binding]) for binding in ordered}


def addresses_of(world: World, host: str) -> tuple[Address, ...]:
    """The addresses of a host that is an address or a name; none of a name that has not been resolved."""
    address = parse_address(host)
    if address:  # some targets announce 0.0.0.0, to which no TCP connection leaves the host
        return (address,) if is_of_one_host(address) else ()
    return world.names.get(host, ())
