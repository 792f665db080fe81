"""Decides which key a portal gets.

The rules for a managed portal, in the order in which they are tried (contract for admins:
iscsi-ipsec.toml(5), "Which key"):

1. the policy's ``psk``;
2. the per-ID key whose address is the local source address of the route;
3. the only FQDN or USER_FQDN key that applies (several: refused);
4. the group key, under the source address as identity.

A key applies to the portals that its ``portals`` name, one without ``portals`` to all
managed ones. Within one rule a key that names the address takes precedence over one that names it by a host
name. An explicit key therefore always beats the group key; one that may apply, since
a name in its ``portals`` has no address yet, keeps a lesser key from being used instead. Each rule that decided leaves a sentence in ``reasons``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import TypeVar

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import PortalPolicy
from iscsi_ipsec.base.portal import NamedPortal, Portal, PortalRange
from iscsi_ipsec.core.decide.desired import Refused
from iscsi_ipsec.core.decide.policy_choice import NAME, NOWHERE, portals_of, rank
from iscsi_ipsec.core.decide.world import World

K = TypeVar("K", PerIdKey, GroupKey)

_NAMED_AT_MOST = 5


class KeyIndex:
    """Indexes the keys of one world, and answers which of them apply to a portal.

    Not ``by_name``: as if the host names in keys' ``portals`` had no address.
    """

    def __init__(self, world: World, *, by_name: bool = True) -> None:
        self._world, self._by_name = world, by_name
        self.by_name = {key.name: key for key in world.keys}
        self.all = tuple(sorted(world.keys, key=attrgetter("path")))
        self.groups = tuple(k for k in self.all if isinstance(k, GroupKey))
        self.named = tuple(k for k in self.all if isinstance(k, PerIdKey) and not k.id.is_address)
        self.by_address: dict[str, list[PerIdKey]] = {}
        for key in self.all:
            if isinstance(key, PerIdKey) and key.id.is_address:
                self.by_address.setdefault(key.id.text, []).append(key)
        self.unresolved = tuple(
            (key, pattern)
            for key in self.all
            for pattern in key.portals
            if by_name and isinstance(pattern, NamedPortal) and pattern.host not in world.names
        )
        self._literal: dict[Portal, set[str]] = {}
        self._named: set[Portal] = set()
        self._networks: dict[PortalRange, None] = {}
        for key in self.all:
            for pattern in key.portals:
                if isinstance(pattern, NamedPortal):
                    self._named.update(portals_of(world, pattern) if by_name else ())
                elif pattern.single:
                    self._literal.setdefault(pattern.single, set()).add(_rivals(key))
                else:
                    self._networks[pattern] = None

    def applies(self, key: Key, portal: Portal) -> bool:
        """Whether the key's ``portals`` let it be used for this portal.

        One that names it by a host name does not beside one of the same kind that names its address.
        """
        if not key.portals:
            return True
        how = self.rank(key, portal)
        return how != NOWHERE and not (how == NAME and _rivals(key) in self._literal.get(portal, ()))

    def rank(self, key: Key, portal: Portal) -> int:
        """How narrowly the key's ``portals`` name this portal (``policy_choice.rank``)."""
        return max(
            (rank(self._world, p, portal, by_name=self._by_name) for p in key.portals), default=NOWHERE
        )

    def best_rank(self, portal: Portal) -> int:
        """How narrowly any key's ``portals`` name this portal."""
        return max((self.rank(key, portal) for key in self.all if key.portals), default=NOWHERE)

    def cover(self, portal: Portal) -> bool:
        """Whether some key's own ``portals`` name this portal, which makes it a managed one."""
        return (
            portal in self._literal
            or portal in self._named
            or any(network.contains(portal) for network in self._networks)
        )

    @property
    def portals_by_name(self) -> frozenset[Portal]:
        """The portals that keys name by a host name."""
        return frozenset(self._named)

    def may_apply(self, portal: Portal) -> Iterator[tuple[PerIdKey, str]]:
        """Explicit keys that will apply should a name in their ``portals`` turn out to be this portal's, and the name."""
        for key, pattern in self.unresolved:
            if isinstance(key, PerIdKey) and pattern.port == portal.port and not self.applies(key, portal):
                yield key, pattern.host


def _rivals(key: Key) -> str:
    """A value that is equal for keys of which a portal may have only one."""
    if isinstance(key, GroupKey):
        return "group"
    return key.id.text if key.id.is_address else "name"


def pick_key(
    keys: KeyIndex, portal: Portal, policy: PortalPolicy | None, source: Address | None, reasons: list[str]
) -> Key | None:
    """The portal's key, or None where none applies; :class:`Refused` where the files contradict each other."""
    if policy and policy.psk is not None:
        return _named_by_policy(keys, portal, policy, policy.psk, reasons)
    if source is not None:
        mine = [k for k in keys.by_address.get(str(source), ()) if keys.applies(k, portal)]
        by_source = exactly_one(mine, f"for the identity {source}", portal)
        if by_source:
            reasons.append(f"key {by_source.path}: its identity is the source address {source}")
            return by_source
    else:
        _refuse_without_route(keys, portal, policy)
    if keys.by_address:
        reasons.append(f"no address key is for the source address {source or '(no route)'}")
    doubts = [
        (k, host) for k, host in keys.may_apply(portal) if not k.id.is_address or k.id.text == str(source)
    ]
    named = exactly_one((k for k in keys.named if keys.applies(k, portal)), "with a name as identity", portal)
    if named:
        _refuse_in_doubt([(k, host) for k, host in doubts if k.id.is_address], portal)
        reasons.append(f"key {named.path}: the only one with a name as identity")
        return named
    group = exactly_one((k for k in keys.groups if keys.applies(k, portal)), "for the group", portal)
    if group or policy or keys.cover(portal):
        _refuse_in_doubt(doubts, portal)
    reasons.append(
        f"key {group.path}: the group key, since no explicit key applies" if group else "no key applies"
    )
    return group


def _refuse_in_doubt(doubts: list[tuple[PerIdKey, str]], portal: Portal) -> None:
    """Refuse while an explicit key may still apply: a lesser key must not be used instead, nor its flags open the portal."""
    if doubts:
        key, host = doubts[0]
        raise Refused(
            "name-not-resolved",
            f"the key {key.path} is for {host}, which does not resolve yet and may be {portal}",
            "write the address into the key's portals, or fix DNS or /etc/hosts", key.path,
        )  # fmt: skip


def _refuse_without_route(keys: KeyIndex, portal: Portal, policy: PortalPolicy | None) -> None:
    """Refuse to choose while the source address is unknown: an address key may be the right one, so no other may be used instead."""
    if any(keys.applies(key, portal) for found in keys.by_address.values() for key in found):
        raise Refused(
            "no-route",
            f"the kernel has no route to {portal}, so the key of the source address cannot be chosen",
            route_hint(portal, policy),
        )


def route_hint(portal: Portal, policy: PortalPolicy | None) -> str:
    """The hint for a missing route; charon installs none where a traffic selector names a port."""
    outer = policy.tunnel_outer_remote if policy else None
    if outer and outer.version == portal.address.version:
        return (
            "a tunnel also needs a route to the portal behind it, such as: "
            f"ip route add {portal.address} via {outer}, or via the router towards that"
        )
    if outer:  # a gateway has the same IP version as the portal behind it
        return f"a tunnel also needs a route to the portal behind it: ip -{portal.address.version} route add {portal.address} dev INTERFACE"
    return f"check with: ip route get {portal.address}"


def _named_by_policy(
    keys: KeyIndex, portal: Portal, policy: PortalPolicy, name: str, reasons: list[str]
) -> Key:
    key = keys.by_name.get(name)
    if key is None:
        raise Refused(
            "missing-key", f'the policy names the key "{name}", but no file of that name is in force',
            f"add psk.d/{name}.toml or change psk", policy.path,
        )  # fmt: skip
    if not keys.applies(key, portal):
        _refuse_in_doubt([(k, host) for k, host in keys.may_apply(portal) if k is key], portal)
        raise Refused(
            "key-not-for-portal", f'the policy names the key "{name}", whose portals leave out {portal}',
            "add the portal to the key's portals", policy.path,
        )  # fmt: skip
    reasons.append(f"key {key.path}: the policy names it")
    return key


def exactly_one(keys: Iterable[K], what: str, portal: Portal) -> K | None:
    """The one key, None for none; :class:`Refused` naming the files where there are several."""
    first: K | None = None
    paths: list[str] = []
    for key in keys:
        first = first or key
        paths.append(key.path)
        if len(paths) > _NAMED_AT_MOST:
            break
    if len(paths) > 1:
        more = " and more" if len(paths) > _NAMED_AT_MOST else ""
        raise Refused(
            "ambiguous-key",
            f"several keys {what} apply to {portal}: {', '.join(sorted(paths[:_NAMED_AT_MOST]))}{more}",
            "say which with psk in a policy, or narrow the keys with portals",
        )
    return first
