"""The world as :mod:`core.decide.derive` may know it, and the questions that it must have answered first.

Law: values and look-ups in them. Nothing is decided here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from iscsi_ipsec.base.addresses import Address, parse_address
from iscsi_ipsec.base.identity import Peer
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalPattern, PortalRange
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings

HOST_STACK_TRANSPORTS = ("", "tcp", "iser")
"""open-iscsi transports whose packets pass through the host's IP stack; offload cards bypass IPsec."""


@dataclass(frozen=True, slots=True)
class PortalBinding:
    """A portal as reached through one binding: ``oif`` is the bound interface, empty for none."""

    portal: Portal
    oif: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that deriving may depend on.

    ``names`` maps host names to their addresses (absent: not resolved yet);
    ``sources`` maps ``(destination, oif)`` to the source address that the
    kernel would use (None: unreachable); ``previously_managed`` are the portals that were
    managed before and have not been released; ``previous_key_first`` says between whom
    the previous key of a rotation goes first (absent: as the role has it).
    """

    settings: Settings = field(default_factory=Settings)
    keys: tuple[Key, ...] = ()
    policies: tuple[PortalPolicy, ...] = ()
    broken: tuple[BrokenFile, ...] = ()
    records: tuple[NodeRecord, ...] = ()
    sessions: tuple[IscsiSession, ...] = ()
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    sources: Mapping[tuple[Address, str], Address | None] = field(default_factory=dict)
    local_addresses: frozenset[Address] = frozenset()
    previously_managed: frozenset[tuple[Portal, Role]] = frozenset()
    user_space_esp: bool = False
    fast_aes: bool = True
    previous_key_first: Mapping[tuple[tuple[Peer, ...], Secret, Secret], bool] = field(default_factory=dict)


class Lookup:
    """Policies and keys of one world, arranged so that a portal is not compared with each of them.

    ``before``: an earlier one; what depends on nothing that differs is taken from there.
    """

    def __init__(self, world: World, before: Lookup | None = None) -> None:
        self.world = world
        self.key_by_name = {key.name: key for key in world.keys}
        self.keys = tuple(sorted(world.keys, key=attrgetter("path")))
        self.groups = tuple(k for k in self.keys if isinstance(k, GroupKey))
        self.named = tuple(k for k in self.keys if isinstance(k, PerIdKey) and not k.id.is_address)
        self.by_address: dict[str, list[PerIdKey]] = {}
        for key in self.keys:
            if isinstance(key, PerIdKey) and key.id.is_address:
                self.by_address.setdefault(key.id.text, []).append(key)
        self.unresolved = tuple(
            (key, pattern)
            for key in self.keys
            for pattern in key.portals
            if isinstance(pattern, NamedPortal) and pattern.host not in world.names
        )
        self._exact: dict[tuple[Role, Portal], PortalPolicy] = {}
        self._ranges: list[tuple[int, PortalRange, PortalPolicy]] = []
        self.candidates: Mapping[PortalBinding, tuple[str, ...]]
        self.wanted_sources: frozenset[tuple[Address, str]]
        if before and _portals_from(before.world) == _portals_from(world):
            self._exact, self._ranges = before._exact, before._ranges  # noqa: SLF001  # of its own kind
            self.candidates, self.wanted_sources = before.candidates, before.wanted_sources
            return
        for policy in sorted(world.policies, key=lambda p: p.name):
            for pattern in policy.patterns:
                for portal in portals_of(world, pattern):
                    self._exact.setdefault((policy.role, portal), policy)
                if isinstance(pattern, PortalRange) and not pattern.single:
                    self._ranges.append((pattern.network.prefixlen, pattern, policy))
        self._ranges.sort(key=lambda row: -row[0])  # stable: of equals, the first file by name
        self.candidates = candidates(world)
        self.wanted_sources = wanted_sources(self)

    def with_sources(self, world: World) -> Lookup:
        """The same arrangement for a world that differs in nothing but ``sources``."""
        same = copy.copy(self)
        same.world = world
        return same

    def policy_for(self, portal: Portal, role: Role) -> PortalPolicy | None:
        """The policy with the most specific pattern for this portal (ties: the first file by name)."""
        exact = self._exact.get((role, portal))
        if exact:
            return exact
        for _, pattern, policy in self._ranges:
            if policy.role is role and pattern.contains(portal):
                return policy
        return None

    def broken_for(self, portal: Portal) -> BrokenFile | None:
        """A file with a mistake that means this portal of another host."""
        for file in self.world.broken:
            if file.role is Role.INITIATOR and (
                not file.patterns or any(matches(self.world, pattern, portal) for pattern in file.patterns)
            ):
                return file
        return None

    def applies(self, key: Key, portal: Portal) -> bool:
        """Whether the key's ``portals`` let it be used for this portal."""
        return not key.portals or any(matches(self.world, pattern, portal) for pattern in key.portals)

    def may_apply(self, portal: Portal) -> Iterator[tuple[PerIdKey, str]]:
        """Explicit keys that will apply should a name in their ``portals`` turn out to be this portal's, and the name."""
        for key, pattern in self.unresolved:
            if isinstance(key, PerIdKey) and pattern.port == portal.port and not self.applies(key, portal):
                yield key, pattern.host


def wanted_names(
    records: Iterable[NodeRecord],
    broken: Iterable[BrokenFile],
    policies: Iterable[PortalPolicy],
    keys: Iterable[Key],
) -> Mapping[str, str]:
    """Host names that must be resolved before :func:`derive` can say anything about them, each with a file that has it."""
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


def wanted_sources(lookup: Lookup) -> frozenset[tuple[Address, str]]:
    """``(destination, oif)`` pairs whose source address :func:`derive` needs."""
    wanted: set[tuple[Address, str]] = set()
    for binding in lookup.candidates:
        wanted.add((binding.portal.address, binding.oif))
        policy = lookup.policy_for(binding.portal, Role.INITIATOR)
        if policy and policy.tunnel_outer_remote:
            wanted.add((policy.tunnel_outer_remote, binding.oif))
    return frozenset(wanted)


def _portals_from(world: World) -> tuple[object, ...]:
    """All that :func:`candidates` and the policies' arrangement depend on."""
    return world.records, world.policies, world.broken, world.names, world.sessions, world.previously_managed


def candidates(world: World) -> Mapping[PortalBinding, tuple[str, ...]]:
    """Every portal that anything names, reached as an initiator, with what names it."""
    found: dict[PortalBinding, dict[str, None]] = {}

    def add(portal: Portal, oif: str, origin: str) -> None:
        found.setdefault(PortalBinding(portal, oif), {})[origin] = None

    for record in world.records:
        if record.transport in HOST_STACK_TRANSPORTS:
            kind = "discovery record" if record.is_discovery else "node record"
            for address in _addresses(world, record.host):
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


def matches(world: World, pattern: PortalPattern, portal: Portal) -> bool:
    """Whether the pattern names the portal (a name through its present addresses)."""
    if isinstance(pattern, PortalRange):
        return pattern.contains(portal)
    return pattern.port == portal.port and portal.address in world.names.get(pattern.host, ())


def served_by(world: World, pattern: PortalPattern) -> Iterable[Portal]:
    """The portals on this host that a target policy's pattern names; a network names the addresses we have in it."""
    if isinstance(pattern, PortalRange) and not pattern.single:
        mine = sorted(
            (a for a in world.local_addresses if parse_address(str(a))), key=lambda a: (a.version, int(a))
        )
        return [p for a in mine if pattern.contains(p := Portal(a, pattern.port)) and not a.is_link_local]
    return portals_of(world, pattern)


def portals_of(world: World, pattern: PortalPattern) -> Iterable[Portal]:
    """The portals that a pattern names one by one (a network names none)."""
    if isinstance(pattern, PortalRange):
        return [pattern.single] if pattern.single else []
    return [Portal(address, pattern.port) for address in world.names.get(pattern.host, ())]


def _addresses(world: World, host: str) -> tuple[Address, ...]:
    address = parse_address(host)
    return (address,) if address else world.names.get(host, ())
