"""Portals that this host serves: one connection per initiator that may come in.

An IKEv2 responder tries every key that matches either id, so each initiator
has its own connection with its identity pinned, and each secret is owned by
that identity alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from iscsi_ipsec.base.model import IkeId, IpsecChoice, PerIdKey, Portal, PortalPolicy, Problem, Role, Start
from iscsi_ipsec.core.connection import (
    connection_name,
    esp_mode,
    esp_proposals,
    host_selector,
    ike_proposals,
    tuning_of,
)
from iscsi_ipsec.core.desired import Connection, PortalView, Refused
from iscsi_ipsec.core.initiator import clear_view, uncovered_view
from iscsi_ipsec.core.keychoice import only, pick_choice
from iscsi_ipsec.core.world import Lookup, Seat, World, portals_of


def target_views(lookup: Lookup) -> Iterable[PortalView]:
    """One view for each pair of served portal and initiator."""
    world = lookup.world
    seen: set[Portal] = set()
    for policy in sorted(world.policies, key=lambda p: p.name):
        if policy.role is not Role.TARGET:
            continue
        for pattern in policy.patterns:
            for portal in portals_of(world, pattern):
                if portal not in seen:
                    seen.add(portal)
                    yield from _portal_views(lookup, portal, policy)
    for portal, role in sorted(world.held, key=lambda h: h[0].sort_key):
        if role is Role.TARGET and portal not in seen:
            view = PortalView(
                seat=Seat(portal),
                role=Role.TARGET,
                managed=False,
                closed=False,
                reasons=(),
                origins=("managed before",),
            )
            yield uncovered_view(world, view, True, [])


def _portal_views(lookup: Lookup, portal: Portal, policy: PortalPolicy) -> Iterable[PortalView]:
    """One view for each peer that may come in; one without a connection where none may."""
    base = PortalView(
        seat=Seat(portal), role=Role.TARGET, managed=True, closed=True, reasons=(f"policy {policy.path} applies",),
        origins=(f"policy {policy.path}",), policy=policy.path,
    )  # fmt: skip
    peers: dict[tuple[object, str], list[PerIdKey]] = {}
    for key in lookup.world.keys:
        if isinstance(key, PerIdKey) and lookup.applies(key, portal) and policy.psk in (None, key.name):
            peers.setdefault(key.id.match_key, []).append(key)
    if not peers:
        problem = Problem(
            code="no-key", message=f"{portal} serves no one: no per-ID key applies to it",
            hint="add the initiators' per-ID keys to psk.d (a group key alone cannot tell them apart)",
            file=policy.path, portal=str(portal),
        )  # fmt: skip
        yield dataclasses.replace(base, problem=problem)
    for keys in peers.values():
        reasons: list[str] = list(base.reasons)
        try:
            only(keys, f"for the identity {keys[0].id}", portal)
            peer_key = keys[0]
            choice = pick_choice(lookup, policy, peer_key, reasons)
            view = dataclasses.replace(
                base, key=peer_key.name, key_path=peer_key.path, choice=choice, identity=peer_key.id
            )
            if not choice.required:
                yield clear_view(lookup.world, dataclasses.replace(view, closed=False), reasons)
                continue
            connection = _answer(lookup.world, portal, policy, peer_key, choice)
        except Refused as refusal:
            yield dataclasses.replace(base, problem=refusal.problem(portal), reasons=tuple(reasons))
            continue
        yield dataclasses.replace(view, connection=connection, reasons=tuple(reasons))


def _answer(
    world: World, portal: Portal, policy: PortalPolicy, key: PerIdKey, choice: IpsecChoice
) -> Connection:
    esp = esp_mode(world, policy, choice, portal)
    tuning = tuning_of(world, policy)
    local = policy.tunnel_outer_local or portal.address
    return Connection(
        name=connection_name(portal, peer=key.id.text.lower()),
        seat=Seat(portal),
        role=Role.TARGET,
        local_address=local,
        remote_address=None,
        local_id=policy.target_id or IkeId.address(local),
        remote_id=key.id,
        ike=choice.ike,
        esp=esp,
        pfs=choice.pfs,
        ike_proposals=ike_proposals(world, choice, tuning),
        esp_proposals=esp_proposals(world, policy, choice, tuning),
        local_ts=f"dynamic[6/{portal.port}]"
        if local == portal.address
        else f"{host_selector(portal.address)}[6/{portal.port}]",
        remote_ts="dynamic[6]",
        start=Start.TRAP,
        user_space_esp=world.user_space_esp,
        tuning=tuning,
        key=key,
    )
