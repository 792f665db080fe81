"""Collects the portals that this host knows as an initiator, and the look-ups they need.

Law: pure. Whether a portal is managed, and how, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from iscsi_ipsec.base.addresses import Address, is_of_one_host, parse_address
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalPattern
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.decide.policy_choice import PolicyMatch, portals_of
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


def kept_names(
    before: Mapping[str, tuple[Address, ...]],
    now: Mapping[str, tuple[Address, ...]],
    sessions: Iterable[IscsiSession],
    records: Iterable[NodeRecord],
) -> Mapping[str, tuple[Address, ...]]:
    """The addresses of the names: the present ones, and earlier ones that a session or a record still uses.

    Otherwise a changed DNS answer (round robin, another view of DNS, a forged answer) would take policy and
    key, and with them the SA, from a session that is up.
    """
    used = {parse_address(record.host) for record in records}
    for session in sessions:
        used.add(session.remote.address)
        if session.persistent:
            used.add(session.persistent.address)
    return {
        name: (*present, *(a for a in before.get(name, ()) if a in used and a not in present))
        for name, present in now.items()
    }


def wanted_sources(
    bindings: Iterable[PortalBinding], policies: PolicyMatch, world: World
) -> frozenset[tuple[Address, str]]:
    """``(destination, oif)`` pairs whose source address the kernel must be asked for."""
    wanted: set[tuple[Address, str]] = set()
    by_name = policies.portals_by_name
    literal = PolicyMatch(world, by_name=False) if by_name else policies
    for binding in bindings:
        wanted.add((binding.portal.address, binding.oif))
        for match in (policies, literal) if binding.portal in by_name else (policies,):
            policy = match.policy_for(binding.portal, Role.INITIATOR)
            if policy and policy.tunnel_outer_remote:
                wanted.add((policy.tunnel_outer_remote, binding.oif))
    return frozenset(wanted)


def candidates(world: World) -> Mapping[PortalBinding, tuple[str, ...]]:
    """Every portal that this host reaches as an initiator, with the sources that name it."""
    found: dict[PortalBinding, dict[str, None]] = {}

    def add(portal: Portal, oif: str, origin: str) -> None:
        found.setdefault(PortalBinding(portal, oif), {})[origin] = None

    for record in world.records:
        if record.transport in HOST_STACK_TRANSPORTS:
            kind = "discovery record" if record.is_discovery else "node record"
            for address in addresses_of(world, record.host):
                add(Portal(address, record.port), record.net_ifacename, f"{kind} {record.path}")
    for portal, origin in _named_by_files(world):
        add(portal, "", origin)
    known = {binding.portal for binding in found}
    for session in world.sessions:
        if session.remote not in known and parse_address(str(session.remote.address)):
            add(session.remote, "", f"iSCSI session {session.sid}")
    for portal, role in world.previously_managed:
        if role is Role.INITIATOR and portal not in known:
            add(portal, "", "managed before")
    ordered = sorted(found, key=lambda s: (s.portal.sort_key, s.oif))
    return {binding: tuple(found[binding]) for binding in ordered}


def _named_by_files(world: World) -> Iterator[tuple[Portal, str]]:
    """The portals that policies and keys name one by one, files with mistakes among them."""
    for policy in world.policies:
        if policy.role is Role.INITIATOR:
            for portal in _portals(world, policy.patterns):
                yield portal, f"policy {policy.path}"
    for broken in world.broken:
        if broken.role is Role.INITIATOR:
            kind = "policy" if broken.is_policy else "key"
            for portal in _portals(world, broken.patterns):
                yield portal, f"{kind} {broken.path}"
    for key in world.keys:
        for portal in _portals(world, key.portals):
            # on a target these are the portals that the key serves
            if portal.address not in world.local_addresses:
                yield portal, f"key {key.path}"


def _portals(world: World, patterns: Iterable[PortalPattern]) -> Iterator[Portal]:
    return (portal for pattern in patterns for portal in portals_of(world, pattern))


def addresses_of(world: World, host: str) -> tuple[Address, ...]:
    """The addresses of a host that is an address or a name; none of a name that has not been resolved."""
    address = parse_address(host)
    if address:  # some targets announce 0.0.0.0, to which no TCP connection leaves the host
        return (address,) if is_of_one_host(address) else ()
    return world.names.get(host, ())
