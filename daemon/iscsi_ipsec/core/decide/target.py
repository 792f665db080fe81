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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from iscsi_ipsec.base.addresses import Address, Network, parse_address
from iscsi_ipsec.base.identity import IdType, IkeId, Peer
from iscsi_ipsec.base.keys import GroupKey, Key, PerIdKey
from iscsi_ipsec.base.networks import subtract
from iscsi_ipsec.base.policy import IkeMode, IpsecChoice, PortalPolicy, Role, Start
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
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
from iscsi_ipsec.core.decide.name_limits import overruled, weaker_flags
from iscsi_ipsec.core.decide.policy_choice import NAME, served_by
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
    addresses: set[Address] = set()
    served = _served(world)
    literal = lookup.without_names()
    for portal in served:
        policy = lookup.policies.policy_for(portal, Role.TARGET)
        broken = lookup.policies.deciding_broken(portal, Role.TARGET, policy)
        again = portal.address in addresses
        views = list(_portal_views(lookup, portal, policy, ours, again=again))
        if broken:
            held = (portal, Role.TARGET) in world.previously_managed
            bare = [] if policy else [_bare_view(portal, f"policy {broken.path}")]
            views = [
                view if view.closed else broken_view(view, broken, held, list(view.reasons))
                for view in (*views, *bare)
            ]
        if policy and lookup.policies.rank(policy.patterns, portal) == NAME:
            views = _limited(lookup, literal, portal, policy, views, ours, again=again)
        if policy:
            addresses.add(portal.address)
        yield from views
    for portal, role in sorted(world.previously_managed, key=lambda h: h[0].sort_key):
        if role is Role.TARGET and portal not in served:
            yield uncovered_view(world, _bare_view(portal, "managed before"), True, [])


def _served(world: World) -> dict[Portal, None]:
    """The portals of this host that policies and files with mistakes name, in their order."""
    policies = sorted(world.policies, key=lambda p: p.name)
    patterns = (
        *(pattern for policy in policies if policy.role is Role.TARGET for pattern in policy.patterns),
        *(pattern for broken in world.broken if broken.role is Role.TARGET for pattern in broken.patterns),
    )
    return dict.fromkeys(portal for pattern in patterns for portal in served_by(world, pattern))


def _bare_view(portal: Portal, origin: str) -> PortalView:
    return PortalView(
        binding=PortalBinding(portal), role=Role.TARGET, managed=False, closed=False, reasons=(), origins=(origin,)
    )  # fmt: skip


def _limited(
    lookup: Lookup, literal: Lookup, portal: Portal, policy: PortalPolicy, views: list[PortalView],
    ours: tuple[Connection, ...], *, again: bool,
) -> list[PortalView]:  # fmt: skip
    """The views, unless a host name makes them weaker than they are without it (``name_limits``)."""
    world, wider = lookup.world, literal.policies.policy_for(portal, Role.TARGET)
    settings, without = world.settings, list[PortalView]()
    fault = ""
    if wider:
        chosen = pick_choice(settings, policy, None, []), pick_choice(settings, wider, None, [])
        fault = weaker_flags(*chosen)
        without = list(_portal_views(literal, portal, wider, ours, again=again))
    elif (portal, Role.TARGET) in world.previously_managed:
        without = [uncovered_view(world, _bare_view(portal, "managed before"), True, [])]
    closed = any(view.closed for view in without)
    if closed and not all(view.closed for view in views):
        fault = "would allow unencrypted traffic"
    if not fault or not closed:
        return views
    return [overruled(view, view.origins, policy.path, fault) for view in without]


def _portal_views(
    lookup: Lookup, portal: Portal, policy: PortalPolicy | None, ours: tuple[Connection, ...], *, again: bool
) -> Iterator[PortalView]:
    """One view for each peer that may come in; one without a connection where none may."""
    if policy is None:
        return
    base = PortalView(
        binding=PortalBinding(portal), role=Role.TARGET, managed=True, closed=True, reasons=(f"policy {policy.path} applies",),
        origins=(f"policy {policy.path}",), policy=policy.path, covered=True,
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
        # charon holds each per-ID key under its identity alone, whatever its portals, and would take it here too
        own = [key.id for key in lookup.keys.all if isinstance(key, PerIdKey)]
        own += _ends(_under_other_keys(ours, group))
        shut_out = _shut_out(lookup, portal, policy, peers)
        for peer in _group_peers(policy, own):
            nobody = False
            view = _view(lookup, base, policy, _Admission(peer, group), alone=True)
            yield dataclasses.replace(view, problem=view.problem or shut_out)
            shut_out = None
    if nobody:
        problem = Problem(
            code="no-key", message=f"{portal} admits no initiator: no per-ID key applies to it",
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
            "served-twice", f"{portal.address} already serves another port, and charon cannot distinguish the two",
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
    """Whether at most one peer with a name would use main mode, in which charon learns the identity too late to choose by it."""
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
    """The peers that may use the group key: named ones without a key of their own, and networks without the addresses of peers that have one."""
    names = set(own)
    taken = [ipaddress.ip_network(identity.text) for identity in own if identity.is_address]
    for peer in policy.initiators:
        if isinstance(peer, IkeId):
            if peer not in names:
                yield peer
        else:
            yield from subtract(peer, taken)


def _shut_out(
    lookup: Lookup, portal: Portal, policy: PortalPolicy, peers: Mapping[IkeId, list[PerIdKey]]
) -> Problem | None:
    """A warning of those who might use the group key here, but have a key of their own for other portals."""
    allowed = {peer for peer in policy.initiators if isinstance(peer, IkeId)}
    networks = [peer for peer in policy.initiators if not isinstance(peer, IkeId)]
    shut_out = [
        key
        for key in lookup.keys.all
        if isinstance(key, PerIdKey)
        and key.id not in peers
        and (key.id in allowed or any(_is_in(key.id, network) for network in networks))
    ]
    if not shut_out:
        return None
    more = f" and {len(shut_out) - 1} more" if len(shut_out) > 1 else ""
    return Problem(
        code="own-key-elsewhere",
        message=f"{shut_out[0].id}{more} cannot come in to {portal}: its own key {shut_out[0].path} is not for this portal,"
        " and the group key is for those without a key",
        hint=f'add "{portal}" to the portals of that key, or remove the key',
        file=policy.path,
        portal=str(portal),
        severity=Severity.WARNING,
    )


def _is_in(identity: IkeId, network: Network) -> bool:
    address = parse_address(identity.text) if identity.is_address else None
    return address is not None and address.version == network.version and address in network


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
    """The address from which the peer comes; None for any.

    In main mode charon must find the key before it learns the identity, and
    takes the first connection whose addresses match (ike_sa_manager.c,
    get_shared in phase1.c): the peers must then differ in their addresses.
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
            f"{portal} has several initiators with names as identities, which main mode cannot distinguish",
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
