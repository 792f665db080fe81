"""Decides which policy a portal gets.

The rules (for admins: iscsi-ipsec.toml(5), "Which policy"):

1. the most specific pattern wins: an address or what a name resolves to, then the longer prefix;
2. of equals, the first file by name.

Law: pure. No other module compares a portal with a pattern.
"""

from __future__ import annotations

from collections.abc import Iterable

from iscsi_ipsec.base.addresses import parse_address
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, PortalPattern, PortalRange
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.decide.world import World


class PolicyMatch:
    """The policies of one world, arranged so that a portal is not compared with each of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._exact: dict[tuple[Role, Portal], PortalPolicy] = {}
        self._ranges: list[tuple[int, PortalRange, PortalPolicy]] = []
        for policy in sorted(world.policies, key=lambda p: p.name):
            for pattern in policy.patterns:
                for portal in portals_of(world, pattern):
                    self._exact.setdefault((policy.role, portal), policy)
                if isinstance(pattern, PortalRange) and not pattern.single:
                    self._ranges.append((pattern.network.prefixlen, pattern, policy))
        self._ranges.sort(key=lambda row: -row[0])  # stable: of equals, the first file by name

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
        for file in self._world.broken:
            if file.role is Role.INITIATOR and (
                not file.patterns or any(matches(self._world, pattern, portal) for pattern in file.patterns)
            ):
                return file
        return None


def matches(world: World, pattern: PortalPattern, portal: Portal) -> bool:
    """Whether the pattern names the portal (a name through its present addresses)."""
    if isinstance(pattern, PortalRange):
        return pattern.contains(portal)
    return pattern.port == portal.port and portal.address in world.names.get(pattern.host, ())


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
