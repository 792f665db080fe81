"""Which key and which flags a portal gets.

The rules, in the order in which they are tried (contract for admins:
iscsi-ipsec.toml(5), "Which key"):

1. the policy's ``psk``;
2. the per-ID key whose address is the local source address of the route;
3. the only FQDN or USER_FQDN key that applies (several: refused);
4. the group key, under the source address as identity.

An explicit key therefore always beats the group key; one that may apply, since
a name in its ``portals`` has no address yet, keeps a lesser key from standing in
for it. Each rule that decided leaves a sentence in ``reasons``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TypeVar

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.policy import IpsecChoice, PortalPolicy
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.config import presets
from iscsi_ipsec.core.config.security_flags import default_choice, encode, flag_names
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.desired import Refused
from iscsi_ipsec.core.decide.world import Lookup

K = TypeVar("K", PerIdKey, GroupKey)

BUILT_IN = dataclasses.replace(default_choice(), esp=None)
"""The choice where nobody said anything: the outer address decides about the ESP mode."""

_NAMED_AT_MOST = 5


def pick_key(
    lookup: Lookup, portal: Portal, policy: PortalPolicy | None, source: Address | None, reasons: list[str]
) -> Key | None:
    """The portal's key, or None where none applies; :class:`Refused` where the files contradict each other."""
    if policy and policy.psk is not None:
        return _named_by_policy(lookup, portal, policy, policy.psk, reasons)
    if source is not None:
        mine = [k for k in lookup.by_address.get(str(source), ()) if lookup.applies(k, portal)]
        by_source = exactly_one(mine, f"for the identity {source}", portal)
        if by_source:
            reasons.append(f"key {by_source.path}: its identity is the source address {source}")
            return by_source
    else:
        _refuse_without_route(lookup, portal, policy)
    if lookup.by_address:
        reasons.append(f"no address key is for the source address {source or '(no route)'}")
    doubts = [
        (k, host) for k, host in lookup.may_apply(portal) if not k.id.is_address or k.id.text == str(source)
    ]
    named = exactly_one(
        (k for k in lookup.named if lookup.applies(k, portal)), "with a name as identity", portal
    )
    if named:
        _refuse_in_doubt([(k, host) for k, host in doubts if k.id.is_address], portal)
        reasons.append(f"key {named.path}: the only one with a name as identity")
        return named
    group = exactly_one((k for k in lookup.groups if lookup.applies(k, portal)), "for the group", portal)
    if group or policy:
        _refuse_in_doubt(doubts, portal)
    reasons.append(
        f"key {group.path}: the group key, since no explicit key applies" if group else "no key applies"
    )
    return group


def _refuse_in_doubt(doubts: list[tuple[PerIdKey, str]], portal: Portal) -> None:
    """While an explicit key may apply, a lesser one must not stand in for it, nor its flags open the portal."""
    if doubts:
        key, host = doubts[0]
        raise Refused(
            "name-not-resolved",
            f"the key {key.path} is for {host}, which does not resolve yet and may be {portal}",
            "write the address into the key's portals, or mend DNS or /etc/hosts", key.path,
        )  # fmt: skip


def _refuse_without_route(lookup: Lookup, portal: Portal, policy: PortalPolicy | None) -> None:
    """Without a source address an address key may or may not be the right one: no other key may stand in for it."""
    if any(lookup.applies(key, portal) for keys in lookup.by_address.values() for key in keys):
        raise Refused(
            "no-route",
            f"the kernel has no route to {portal}, so the key of the source address cannot be chosen",
            route_hint(portal, policy),
        )


def route_hint(portal: Portal, policy: PortalPolicy | None) -> str:
    """How to mend a missing route; charon makes none where a traffic selector names a port."""
    if policy and policy.tunnel_outer_remote:
        return (
            "a tunnel needs a route to what is behind it too, such as: "
            f"ip route add {portal.address} via {policy.tunnel_outer_remote}, or via the router towards that"
        )
    return f"check with: ip route get {portal.address}"


def _named_by_policy(
    lookup: Lookup, portal: Portal, policy: PortalPolicy, name: str, reasons: list[str]
) -> Key:
    key = lookup.key_by_name.get(name)
    if key is None:
        raise Refused(
            "missing-key", f'the policy names the key "{name}", but no file of that name is in force',
            f"add psk.d/{name}.toml or change psk", policy.path,
        )  # fmt: skip
    if not lookup.applies(key, portal):
        _refuse_in_doubt([(k, host) for k, host in lookup.may_apply(portal) if k is key], portal)
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


def pick_choice(
    settings: Settings, policy: PortalPolicy | None, key: Key | None, reasons: list[str]
) -> IpsecChoice:
    """The flags in force: the policy's, its preset's, the key's, the settings', the built-in ones."""
    sources: list[tuple[str, IpsecChoice | None]] = []
    if policy:
        sources.append((f"the policy {policy.path}", policy.choice))
    if policy and policy.preset:
        sources.append((f"the preset {policy.preset}", presets.PRESETS[policy.preset].choice))
    if key:
        sources.append((f"the key {key.path}", key.choice))
    for name, choice in (*sources, ("the settings' defaults", settings.default_choice)):
        if choice:
            flags = encode(choice)
            reasons.append(f"flags from {name}: 0x{flags:02x} {' '.join(flag_names(flags))}")
            return choice
    reasons.append("built-in flags: IKEv2, PFS, transport mode unless an outer address is set")
    return BUILT_IN
