"""Decides which policy a portal gets.

The rules (for admins: iscsi-ipsec.toml(5), "Which policy"):

1. a policy that names the portal's address;
2. one that names it by a host name, which DNS resolves to that address;
3. one that names a network with it, the longest prefix first;
4. of equals, the first file by name.

A name decides only as far as ``name_limits`` lets it. A file with a mistake takes part as
if it were whole (:func:`outranks`): what it names and nothing narrower does stays closed.

Law: pure. No other module compares a portal with a pattern.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from iscsi_ipsec.base.addresses import parse_address
from iscsi_ipsec.base.keys import GroupKey, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalPattern, PortalRange
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.decide.world import World

LITERAL, NAME, NOWHERE = 130, 129, -1
"""Ranks of patterns that name one portal, and of none; a network's is its prefix length, at most 128."""


class PolicyMatch:
    """The policies of one world, arranged so that a portal is not compared with each of them.

    Not ``by_name``: as if no policy held a host name.
    """

    def __init__(self, world: World, *, by_name: bool = True) -> None:
        self._world, self._by_name = world, by_name
        self._literal: dict[tuple[Role, Portal], PortalPolicy] = {}
        self._named: dict[tuple[Role, Portal], PortalPolicy] = {}
        self._ranges: list[tuple[int, PortalRange, PortalPolicy]] = []
        for policy in sorted(world.policies, key=lambda p: p.name):
            for pattern in policy.patterns:
                if isinstance(pattern, NamedPortal):
                    for portal in portals_of(world, pattern) if by_name else ():
                        self._named.setdefault((policy.role, portal), policy)
                elif pattern.single:
                    self._literal.setdefault((policy.role, pattern.single), policy)
                else:
                    self._ranges.append((pattern.network.prefixlen, pattern, policy))
        self._ranges.sort(key=lambda row: -row[0])  # stable: of equals, the first file by name

    @property
    def portals_by_name(self) -> frozenset[Portal]:
        """The portals that policies of the initiator's role name by a host name."""
        return frozenset(portal for role, portal in self._named if role is Role.INITIATOR)

    def policy_for(self, portal: Portal, role: Role) -> PortalPolicy | None:
        """The policy that decides about this portal, None where none names it."""
        exact = self._literal.get((role, portal)) or self._named.get((role, portal))
        if exact:
            return exact
        for _, pattern, policy in self._ranges:
            if policy.role is role and pattern.contains(portal):
                return policy
        return None

    def broken_for(self, portal: Portal, role: Role) -> list[BrokenFile]:
        """The files with mistakes that name this portal, the narrowest first; of equals a policy, then the first by path."""
        found = [f for f in self._world.broken if f.role is role and self.rank(f.patterns, portal) != NOWHERE]
        return sorted(found, key=lambda f: (-self.rank(f.patterns, portal), not f.is_policy, f.path))

    def deciding_broken(
        self, portal: Portal, role: Role, policy: PortalPolicy | None, by_keys: int = NOWHERE
    ) -> BrokenFile | None:
        """The file with a mistake that would decide, were it whole; ``by_keys`` is the rank of good keys' ``portals``."""
        good = self.rank(policy.patterns, portal) if policy else by_keys
        outranking = (
            f for f in self.broken_for(portal, role)
            if outranks(f, self.rank(f.patterns, portal), policy, good)
        )  # fmt: skip
        return next(outranking, None)

    def rank(self, patterns: Iterable[PortalPattern], portal: Portal) -> int:
        """How narrowly the narrowest of the patterns names the portal; NOWHERE where none does."""
        return max((rank(self._world, p, portal, by_name=self._by_name) for p in patterns), default=NOWHERE)


def outranks(broken: BrokenFile, broken_rank: int, policy: PortalPolicy | None, good_rank: int) -> bool:
    """Whether a file with a mistake would decide, were it whole, and not the good files.

    ``good_rank`` is the good policy's, or that of the keys' portals where there is no policy.
    """
    if broken.is_policy and policy is None:
        return True  # a policy's flags beat a key's, however wide it is
    if broken.is_policy and policy and broken_rank == good_rank:
        return broken.name < policy.name
    return broken_rank > good_rank


def beyond(broken: Iterable[BrokenFile], good: object) -> tuple[BrokenFile, ...]:
    """The patterns of a file with a mistake that its last good content, which stays in force, does not have."""
    known: tuple[PortalPattern, ...] = ()
    role = Role.INITIATOR
    if isinstance(good, PortalPolicy):
        known, role = good.patterns, good.role
    elif isinstance(good, PerIdKey | GroupKey):
        known = good.portals
    left = (
        dataclasses.replace(file, patterns=tuple(p for p in file.patterns if p not in known))
        if file.role is role
        else file
        for file in broken
    )
    return tuple(file for file in left if file.patterns)


def rank(world: World, pattern: PortalPattern, portal: Portal, *, by_name: bool = True) -> int:
    """How narrowly the pattern names the portal; NOWHERE where it does not."""
    if isinstance(pattern, NamedPortal):
        named = by_name and pattern.port == portal.port
        return NAME if named and portal.address in world.names.get(pattern.host, ()) else NOWHERE
    if not pattern.contains(portal):
        return NOWHERE
    return LITERAL if pattern.single else pattern.network.prefixlen


def portals_of(world: World, pattern: PortalPattern) -> Iterable[Portal]:
    """The portals that a pattern names one by one (a network names none)."""
    if isinstance(pattern, PortalRange):
        return [pattern.single] if pattern.single else []
    return [Portal(address, pattern.port) for address in world.names.get(pattern.host, ())]


def served_by(world: World, pattern: PortalPattern) -> Iterable[Portal]:
    """The portals on this host that a target policy's pattern names; a network names the addresses we have in it."""
    if isinstance(pattern, PortalRange) and not pattern.single:
        mine = sorted(
            (a for a in world.local_addresses if parse_address(str(a))), key=lambda a: (a.version, int(a))
        )
        return [p for a in mine if pattern.contains(p := Portal(a, pattern.port)) and not a.is_link_local]
    return portals_of(world, pattern)
