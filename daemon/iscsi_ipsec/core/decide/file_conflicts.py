"""Checks all files together, offline: finds what the daemon would refuse or decide against the admin's intent.

Law: pure. The daemon's own :func:`~iscsi_ipsec.core.decide.derive.derive` decides: about the portals that are known,
about one of each network that no narrower pattern of any file names (all others of it are decided alike), and about
one of each name, at an address that no file names. Only inputs of the moment (routes, DNS, portals managed before) are left out.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalPattern, PortalRange, patterns_overlap
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.toml_reader import KeyLines
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World

OF_THE_MOMENT = frozenset(
    {
        "no-route",
        "orphaned",
        "ipsec-required",
        "name-not-resolved",
        "broken-file",
        "no-transport-mode",
        "not-protected",
        "name-overruled",
    }
)
"""Problems that come and go without a change of files."""

_LINE_KEYS = {
    "missing-key": "psk", "key-not-for-portal": "psk", "pfs-without-group": "esp_proposals",
    "group-without-pfs": "esp_proposals", "outer-without-tunnel": "tunnel_outer_remote", "clear-allowed": "security_flags",
    "main-mode-names": "initiators",
}  # fmt: skip
"""The key of a file that a problem of this code is about; ``portals`` for all others."""

NOBODYS: Mapping[int, Address] = {
    4: ipaddress.IPv4Address("192.0.2.254"),
    6: ipaddress.IPv6Address("2001:db8::fe"),
}
"""Addresses of documentation (RFC 5737, RFC 3849)."""


def check_together(world: World, lines: Mapping[str, KeyLines]) -> tuple[Problem, ...]:
    """Everything that is wrong between these files; ``lines`` are those of each file by path."""
    found = [*_two_keys(world), *_missing_keys(world), *_two_policies(world.policies)]
    found += [p for p in _derived(world) if p.code != "missing-key"]  # found above, whatever a policy covers
    unique: dict[tuple[str, str, str], Problem] = {}
    for problem in found:
        unique.setdefault(
            (problem.code, problem.file, problem.message.replace(problem.portal or "\0", "")), problem
        )
    return tuple(_with_line(problem, lines) for problem in unique.values())


def _with_line(problem: Problem, lines: Mapping[str, KeyLines]) -> Problem:
    if problem.line or problem.file not in lines:
        return problem
    at = lines[problem.file]
    line = at.line_of(_LINE_KEYS.get(problem.code, "portals")) or at.line_of("portals")
    return dataclasses.replace(problem, line=line)


# -- keys


def _two_keys(world: World) -> Iterator[Problem]:
    """Two keys of one identity, or of the group, that may be meant for one portal; one that a policy names is chosen."""
    named = {policy.psk for policy in world.policies}
    owners: dict[object, list[Key]] = {}
    for key in sorted(world.keys, key=lambda k: k.path):
        if key.name in named:
            continue
        owners.setdefault(key.id if isinstance(key, PerIdKey) else None, []).append(key)
    for several in owners.values():
        for one, other in combinations(several, 2):
            if patterns_overlap(one.portals, other.portals):
                whose = f"of {other.id}" if isinstance(other, PerIdKey) else "of the group"
                yield Problem(
                    code="ambiguous-key",
                    message=f"{one.path} has a key {whose} too, and both may be meant for one portal",
                    hint="keep one of them, or give both different portals",
                    file=other.path,
                )


def _missing_keys(world: World) -> Iterator[Problem]:
    names = {key.name for key in world.keys}
    for policy in world.policies:
        if policy.psk is not None and policy.psk not in names:
            yield Problem(
                code="missing-key",
                message=f'the policy names the key "{policy.psk}", but no file of that name is in force',
                hint=f"add psk.d/{policy.psk}.toml or change psk",
                file=policy.path,
            )


# -- policies


def _two_policies(policies: Sequence[PortalPolicy]) -> Iterator[Problem]:
    """A portal in two policies, of which the second has no effect, or in both roles."""
    named: dict[PortalPattern, list[PortalPolicy]] = {}
    for policy in sorted(policies, key=lambda p: p.name):
        for pattern in dict.fromkeys(policy.patterns):
            named.setdefault(pattern, []).append(policy)
    for pattern, several in named.items():
        first = several[0]
        for other in several[1:]:
            if other.role is first.role:
                yield Problem(
                    code="portal-in-two-policies",
                    message=f"{pattern} is in {first.path} too, which counts: this file says nothing about it",
                    hint="take it out of one of them",
                    file=other.path,
                )
            else:
                yield Problem(
                    code="portal-in-two-roles",
                    message=f"{pattern} is in {first.path} too, with role {first.role.value}, and here with {other.role.value}",
                    hint="a portal is this host's (target) or another's (initiator)",
                    file=other.path,
                )


# -- what the daemon decides


def _derived(world: World) -> Iterator[Problem]:
    """The daemon's problems with known portals, and with one portal of each network and name."""
    shown: dict[Portal, str] = {}
    names: dict[str, tuple[Address, ...]] = dict(world.names)
    fresh = (ipaddress.IPv4Address("192.0.2.0") + n for n in itertools.count(1))  # RFC 5737: nobody's
    patterns = tuple(_patterns(world))
    for pattern in patterns:
        if isinstance(pattern, NamedPortal):
            if pattern.host not in world.names:
                names.setdefault(pattern.host, (next(fresh),))
                shown[Portal(names[pattern.host][0], pattern.port)] = str(pattern)
        elif not pattern.single:
            example, has_narrower = _example(pattern, patterns)
            shown.setdefault(example, f"{example}, in {pattern}" if has_narrower else str(pattern))
    initiator = [portal for portal in shown if _role_of(portal, world.policies) is not Role.TARGET]
    whole = dataclasses.replace(
        world,
        names=names,
        records=(
            *world.records,
            *(NodeRecord(host=str(p.address), port=p.port, target="-", path="-") for p in initiator),
        ),
        local_addresses=world.local_addresses | {p.address for p in shown if p not in initiator},
    )
    if not any(isinstance(key, PerIdKey) and key.id.is_address for key in world.keys):
        # no key depends on the source address, so a documentation address is used where there is no route from here
        wanted = Lookup(whole).wanted_sources
        here = {at: world.sources.get(at) or NOBODYS[at[0].version] for at in wanted}
        whole = dataclasses.replace(whole, sources=here)
    for problem in derive(Lookup(whole)).problems:
        if problem.code not in OF_THE_MOMENT:
            yield _renamed(problem, shown)


def _renamed(problem: Problem, shown: Mapping[Portal, str]) -> Problem:
    """The problem about the network or name that its portal was taken from."""
    for portal, text in shown.items():
        if str(portal) in (problem.portal, *problem.message.split()) or str(portal) in problem.message:
            return dataclasses.replace(
                problem,
                message=problem.message.replace(str(portal), text),
                hint=problem.hint.replace(str(portal), text),
                portal=text if problem.portal else "",
            )
    return problem


def _patterns(world: World) -> Iterable[PortalPattern]:
    holders: Iterable[Key | PortalPolicy] = (*world.policies, *world.keys)
    return dict.fromkeys(
        pattern
        for holder in holders
        for pattern in (holder.patterns if isinstance(holder, PortalPolicy) else holder.portals)
    )


def _example(network: PortalRange, patterns: Iterable[PortalPattern]) -> tuple[Portal, bool]:
    """A portal of the network that no narrower pattern names, if there is one; and whether there are narrower ones.

    Networks lie in one another or apart, so what is free begins at the network's begin or right behind a narrower one.
    """
    whole = network.network
    narrower = [
        pattern
        for pattern in patterns
        if isinstance(pattern, PortalRange)
        and pattern.port == network.port
        and pattern.network.version == whole.version
        and pattern.network.prefixlen > whole.prefixlen
        and pattern.network.network_address in whole
    ]
    first = whole.network_address
    behind = [int(pattern.network.broadcast_address) - int(first) + 1 for pattern in narrower]
    tried = [first + offset for offset in (1, 0, *behind) if offset < whole.num_addresses]
    portals = [Portal(address, network.port) for address in tried]
    free = (portal for portal in portals if not any(pattern.contains(portal) for pattern in narrower))
    return next(free, portals[0]), bool(narrower)


def _role_of(portal: Portal, policies: Sequence[PortalPolicy]) -> Role | None:
    covering = [
        (pattern.network.prefixlen, policy.role)
        for policy in policies
        for pattern in policy.patterns
        if isinstance(pattern, PortalRange) and pattern.contains(portal)
    ]
    return max(covering, key=lambda row: row[0])[1] if covering else None
