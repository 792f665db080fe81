"""Decides for each portal that this host serves: one connection per initiator that may come in.

An IKEv2 responder tries every key that matches either id, so charon can be
trusted to keep initiators apart only if no secret matches more than one of
them and none matches our own id. Hence: each initiator has a connection with
its identity pinned; each secret is owned by that identity alone; the group key
is loaded only for the identities and networks that the policy names, with the
addresses of initiators that have a key of their own cut out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address, Network, parse_address
from iscsi_ipsec.base.identity import IdType, IkeId, Peer
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.networks import subtract
from iscsi_ipsec.base.policy import IkeMode, IpsecChoice, PortalPolicy, Role, Start
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.connection_settings import (
    address_identity,
    connection_name,
    esp_mode,
    host_selector,
)
from iscsi_ipsec.core.decide.desired import Connection, PortalView, Refused
from iscsi_ipsec.core.decide.initiator import broken_view, clear_view, uncovered_view
from iscsi_ipsec.core.decide.key_choice import exactly_one
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.policy_match import served_by
from iscsi_ipsec.core.decide.setting_precedence import (
    esp_proposals,
    ike_proposals,
    pick_choice,
    proposal_reasons,
    tuning_of,
)
from iscsi_ipsec.core.decide.world import PortalBinding, World

_LABEL_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Admission:
    """An initiator and the key it must have."""

    peer: Peer
    key: Key


def target_views(lookup: Lookup, ours: tuple[Connection, ...] = ()) -> Iterator[PortalView]:
    """One view for each pair of served portal and initiator.

    ``ours``: this host's connections as an initiator. A served portal must not
    answer under an identity at either end of one, since the initiator's
    secrets match it; nor may the group key be owned by such an identity, since
    whoever has it could then take part in a connection that has another key.
    """
    world = lookup.world
    seen: set[Portal] = set()
    addresses: set[Address] = set()
    for policy in sorted(world.policies, key=lambda p: p.name):
        if policy.role is not Role.TARGET:
            continue
        for pattern in policy.patterns:
            for portal in served_by(world, pattern):
                if portal in seen:
                    continue
                seen.add(portal)
                yield from _portal_views(lookup, portal, policy, ours, again=portal.address in addresses)
                addresses.add(portal.address)
    for broken in world.broken:
        for pattern in broken.patterns if broken.role is Role.TARGET else ():
            for portal in served_by(world, pattern):
                if portal not in seen:
                    seen.add(portal)
                    view = PortalView(
                        binding=PortalBinding(portal), role=Role.TARGET, managed=False, closed=False, reasons=(),
                        origins=(f"policy {broken.path}",),
                    )  # fmt: skip
                    yield broken_view(view, broken, (portal, Role.TARGET) in world.previously_managed, [])
    for portal, role in sorted(world.previously_managed, key=lambda h: h[0].sort_key):
        if role is Role.TARGET and portal not in seen:
            view = PortalView(
                binding=PortalBinding(portal), role=Role.TARGET, managed=False, closed=False, reasons=(),
                origins=("managed before",),
            )  # fmt: skip
            yield uncovered_view(world, view, True, [])


def _portal_views(
    lookup: Lookup, portal: Portal, policy: PortalPolicy, ours: tuple[Connection, ...], *, again: bool
) -> Iterator[PortalView]:
    """One view for each peer that may come in; one without a connection where none may."""
    base = PortalView(
        binding=PortalBinding(portal), role=Role.TARGET, managed=True, closed=True, reasons=(f"policy {policy.path} applies",),
        origins=(f"policy {policy.path}",), policy=policy.path,
    )  # fmt: skip
    try:
        _check_portal(portal, policy, _ends(ours), again=again)
        group = _group_key(lookup, portal, policy)
    except Refused as refusal:
        yield dataclasses.replace(base, problem=refusal.problem(portal))
        return
    peers = _explicit_peers(lookup, portal, policy)
    nobody = True
    for keys in peers.values():
        nobody = False
        try:
            exactly_one(keys, f"for the identity {keys[0].id}", portal)
            _check_peer(keys[0], ours)
        except Refused as refusal:
            yield dataclasses.replace(base, problem=refusal.problem(portal))
            continue
        yield _view(
            lookup, base, policy, _Admission(keys[0].id, keys[0]), alone=_is_alone(lookup, policy, peers)
        )
    if group:
        own = [keys[0].id for keys in peers.values()] + [key.id for key, _ in lookup.keys.may_apply(portal)]
        own += _ends(_under_other_keys(ours, group))
        for peer in _group_peers(policy, own):
            nobody = False
            yield _view(lookup, base, policy, _Admission(peer, group), alone=True)
    if nobody:
        problem = Problem(
            code="no-key", message=f"{portal} serves no one: no per-ID key applies to it",
            hint="add the initiators' per-ID keys to psk.d, or name those who may use the group key with initiators",
            file=policy.path, portal=str(portal),
        )  # fmt: skip
        yield dataclasses.replace(base, problem=problem)


def _under_other_keys(connections: Iterable[Connection], key: Key) -> Iterator[Connection]:
    return (c for c in connections if c.key.secret != key.secret)


def _ends(connections: Iterable[Connection]) -> list[IkeId]:
    return [e for c in connections for e in (c.local_id, c.remote_id) if isinstance(e, IkeId)]


def _check_peer(key: PerIdKey, ours: Iterable[Connection]) -> None:
    for connection in _under_other_keys(ours, key):
        if key.id in _ends([connection]):
            raise Refused(
                "shared-identity",
                f"{key.id} is also an end of this host's connection as an initiator, there with the key"
                f" {connection.key.path}: charon cannot keep the two apart",
                "use one key in both directions, or narrow portals of one of the two", key.path,
            )  # fmt: skip


def _check_portal(portal: Portal, policy: PortalPolicy, taken: list[IkeId], *, again: bool) -> None:
    if again:
        raise Refused(
            "served-twice", f"{portal.address} already serves another port, and charon cannot tell the two apart",
            "serve one port on each address", policy.path,
        )  # fmt: skip
    local_id = _local_id(portal, policy)
    if local_id in taken:
        raise Refused(
            "shared-identity",
            f"this host would answer as {local_id}, which is an end of one of its connections as an initiator: charon would accept the keys of both",
            "give the portal an identity of its own with target_id", policy.path,
        )  # fmt: skip


def _explicit_peers(lookup: Lookup, portal: Portal, policy: PortalPolicy) -> dict[IkeId, list[PerIdKey]]:
    peers: dict[IkeId, list[PerIdKey]] = {}
    local = _local_id(portal, policy)
    for key in lookup.keys.all:
        if (
            isinstance(key, PerIdKey)
            and key.id != local
            and policy.psk in (None, key.name)
            and lookup.keys.applies(key, portal)
        ):
            peers.setdefault(key.id, []).append(key)
    return peers


def _is_alone(lookup: Lookup, policy: PortalPolicy, peers: dict[IkeId, list[PerIdKey]]) -> bool:
    """Whether at most one peer with a name would come in by main mode, which hides the identity until too late."""
    names = [
        keys[0]
        for keys in peers.values()
        if not keys[0].id.is_address
        and pick_choice(lookup.world.settings, policy, keys[0], []).ike is IkeMode.MAIN
    ]
    return len(names) <= 1


def _group_key(lookup: Lookup, portal: Portal, policy: PortalPolicy) -> GroupKey | None:
    """The group key, where the policy confines it to named initiators."""
    if not policy.initiators:
        return None
    groups = [
        k for k in lookup.keys.groups if lookup.keys.applies(k, portal) and policy.psk in (None, k.name)
    ]
    return exactly_one(groups, "for the group", portal)


def _group_peers(policy: PortalPolicy, own: list[IkeId]) -> Iterator[Peer]:
    """Those who may use the group key: named ones without a key of their own, networks without their addresses."""
    names = set(own)
    taken = [ipaddress.ip_network(identity.text) for identity in own if identity.is_address]
    for peer in policy.initiators:
        if isinstance(peer, IkeId):
            if peer not in names:
                yield peer
        else:
            yield from subtract(peer, taken)


def _view(
    lookup: Lookup, base: PortalView, policy: PortalPolicy, admission: _Admission, *, alone: bool
) -> PortalView:
    portal, key, peer = base.binding.portal, admission.key, admission.peer
    reasons: list[str] = [*base.reasons, f"initiator {peer} with key {key.path}"]
    choice = pick_choice(lookup.world.settings, policy, key, reasons)
    view = dataclasses.replace(base, key=key.name, key_path=key.path, choice=choice, identity=peer)
    if not choice.required:
        return clear_view(lookup.world, dataclasses.replace(view, closed=False), reasons)
    try:
        connection = _answer(lookup.world, portal, policy, admission, choice, alone=alone)
    except Refused as refusal:
        return dataclasses.replace(view, problem=refusal.problem(portal), reasons=tuple(reasons))
    reasons.append(f"identity {connection.local_id.text} ({connection.local_id.type.name}) is ours")
    reasons.extend(proposal_reasons(lookup.world, policy))
    return dataclasses.replace(view, connection=connection, reasons=tuple(reasons))


def _answer(
    world: World,
    portal: Portal,
    policy: PortalPolicy,
    admission: _Admission,
    choice: IpsecChoice,
    *,
    alone: bool,
) -> Connection:
    peer = admission.peer
    esp = esp_mode(world, policy, choice, portal)
    tuning = tuning_of(world, policy)
    local = policy.tunnel_outer_local or portal.address
    selector = f"[6/{portal.port}]"
    return Connection(
        name=connection_name(portal, peer=_label(peer)),
        binding=PortalBinding(portal),
        role=Role.TARGET,
        local_address=local,
        remote_address=_remote_address(peer, choice, portal, policy, alone=alone),
        local_id=_local_id(portal, policy),
        remote_id=peer,
        ike=choice.ike,
        esp=esp,
        pfs=choice.pfs,
        ike_proposals=ike_proposals(world, policy, choice, tuning),
        esp_proposals=esp_proposals(world, policy, choice, tuning),
        local_ts=("dynamic" if local == portal.address else host_selector(portal.address)) + selector,
        remote_ts="dynamic[6]",
        start=Start.TRAP,
        user_space_esp=world.user_space_esp,
        tuning=tuning,
        key=admission.key,
    )


def _remote_address(
    peer: Peer, choice: IpsecChoice, portal: Portal, policy: PortalPolicy, *, alone: bool
) -> Address | Network | None:
    """Where the peer comes from; None for anywhere.

    In main mode charon must find the key before it hears the identity, and
    takes the first connection whose addresses match (ike_sa_manager.c,
    get_shared in phase1.c): addresses must then tell the peers apart.
    """
    if choice.ike is not IkeMode.MAIN:
        return None
    if not isinstance(peer, IkeId):
        return peer
    if peer.is_address:
        return parse_address(peer.text)
    if not alone:
        raise Refused(
            "main-mode-names",
            f"{portal} has several initiators with names as identities, which main mode cannot tell apart",
            "use IKEv2 or AGGRESSIVE_MODE_ENABLED for them", policy.path,
        )  # fmt: skip
    return None


def _local_id(portal: Portal, policy: PortalPolicy) -> IkeId:
    return policy.target_id or address_identity(policy.tunnel_outer_local or portal.address, portal)


def _label(peer: Peer) -> str:
    """The peer in a connection's name: unique, and short enough for VICI's 255 bytes."""
    text = str(peer).lower()
    if isinstance(peer, IkeId) and peer.type is IdType.ID_FQDN and parse_address(text):
        text = f"fqdn:{text}"
    if len(text) > _LABEL_BYTES:
        text = f"{text[: _LABEL_BYTES - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text
