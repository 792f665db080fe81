"""Decides for each portal that this host reaches: closed or not, and by which connection."""

from __future__ import annotations

import dataclasses
import shlex

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.policy import IpsecChoice, PortalPolicy, Role, Start
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.decide.connection_settings import (
    address_identity,
    connection_name,
    esp_mode,
    host_selector,
)
from iscsi_ipsec.core.decide.desired import Connection, PortalView, Refused
from iscsi_ipsec.core.decide.key_choice import pick_key, route_hint
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.name_limits import limited
from iscsi_ipsec.core.decide.policy_choice import NOWHERE
from iscsi_ipsec.core.decide.setting_precedence import (
    esp_proposals,
    ike_proposals,
    pick_choice,
    proposal_reasons,
    tuning_of,
)
from iscsi_ipsec.core.decide.world import PortalBinding, World

REQUIRED = "require_ipsec is set: a known portal that a key applies to is managed"
"""The reason where no file covers the portal."""


def initiator_view(lookup: Lookup, binding: PortalBinding, origins: tuple[str, ...]) -> PortalView:
    """Decide about one portal as seen from one interface."""
    view = _view(lookup, binding, origins)
    if binding.portal in lookup.portals_by_name:
        view = limited(view, _view(lookup.without_names(), binding, origins))
    if binding.portal.address in lookup.world.local_addresses:
        return _own_address(view)
    return view


def _own_address(view: PortalView) -> PortalView:
    """The view of a portal at an own address: no connection, since packets to oneself never leave the host; but a closed portal stays closed for when the address moves away."""
    reasons = (*view.reasons, "the address is this host's own at present: no connection is needed")
    return dataclasses.replace(
        view, connection=None, identity=None, problem=None, own_address=True, reasons=reasons
    )


def _view(lookup: Lookup, binding: PortalBinding, origins: tuple[str, ...]) -> PortalView:
    world, portal = lookup.world, binding.portal
    reasons: list[str] = []
    policy = lookup.policies.policy_for(portal, Role.INITIATOR)
    covered = policy is not None or lookup.keys.cover(portal)
    inherited = not covered and portal in world.inherited
    previously_managed = (portal, Role.INITIATOR) in world.previously_managed
    by_keys = lookup.keys.best_rank(portal) if world.broken and not policy else NOWHERE
    broken = lookup.policies.deciding_broken(portal, Role.INITIATOR, policy, by_keys)
    mistaken = next((f for f in lookup.policies.broken_for(portal, Role.INITIATOR) if f.is_policy), None)
    if policy:
        reasons.append(f"policy {policy.path} applies")
    if mistaken:
        too = " too" if policy else ""
        reasons.append(f"policy {mistaken.path} names it{too}, but has a mistake: nothing of it is in force")
    elif not policy:
        reasons.append("no policy names this portal")
    view = PortalView(
        binding=binding, role=Role.INITIATOR, managed=False, closed=False, reasons=(), origins=origins,
        policy=policy.path if policy else "", covered=covered,
    )  # fmt: skip
    if not (covered or inherited or world.settings.require_ipsec):
        return _not_covered(world, view, broken, previously_managed, reasons)
    source = world.sources.get((portal.address, binding.oif))
    try:
        picked = pick_key(lookup.keys, portal, policy, source, reasons)
        if picked is None and not covered:
            return _not_covered(world, view, broken, previously_managed, reasons)
        choice = pick_choice(world.settings, policy, picked, reasons)
        key_name, key_path = (picked.name, picked.path) if picked else ("", "")
        view = dataclasses.replace(
            view, managed=True, closed=choice.required, key=key_name, key_path=key_path, choice=choice,
            unrestricted=inherited and picked is not None,
        )  # fmt: skip
        if not choice.required:
            if broken:
                return broken_view(
                    dataclasses.replace(view, managed=False), broken, previously_managed, reasons
                )
            return clear_view(world, view, reasons)
        if picked is None:
            raise Refused(
                "no-key", f"no key applies to {portal}",
                "add a per-ID key or a group key to psk.d, or name one with psk in the policy",
                view.policy,
            )  # fmt: skip
        if view.unrestricted:
            reasons.append(f"managed since an earlier version, which let {picked.path} manage every portal")
        elif not covered:
            reasons.append(REQUIRED)
        connection = _connect(world, binding, policy, picked, choice, source, reasons)
    except Refused as refusal:
        reasons.append(f"{refusal.message}: the portal stays closed")
        return dataclasses.replace(
            view, managed=True, closed=True, problem=refusal.problem(portal), reasons=tuple(reasons)
        )
    return dataclasses.replace(
        view, identity=connection.local_id, connection=connection, reasons=tuple(reasons)
    )


def _not_covered(
    world: World, view: PortalView, broken: BrokenFile | None, previously_managed: bool, reasons: list[str]
) -> PortalView:
    if broken:
        return broken_view(view, broken, previously_managed, reasons)
    return uncovered_view(world, view, previously_managed, reasons)


def uncovered_view(
    world: World, view: PortalView, previously_managed: bool, reasons: list[str]
) -> PortalView:
    """The view of a portal that no file covers: held closed, blocked, or left alone."""
    portal = str(view.binding.portal)
    if previously_managed:
        reasons.append("it was managed before and no file covers it any more: it stays closed until released")
        problem = Problem(
            code="orphaned",
            message=f"no file covers {portal} any more, so it stays closed",
            hint=f"restore its files, or open it with: iscsi-ipsec release {shlex.quote(portal)}",
            portal=portal,
        )
        return dataclasses.replace(view, managed=True, closed=True, problem=problem, reasons=tuple(reasons))
    if world.settings.require_ipsec:
        reasons.append("require_ipsec is set: a portal without key or policy is blocked")
        problem = Problem(
            code="ipsec-required",
            message=f"{portal} has neither key nor policy and require_ipsec is set, so it is blocked",
            hint="add a key to psk.d, or a policy to portal.d",
            portal=portal,
        )
        return dataclasses.replace(view, closed=True, problem=problem, reasons=tuple(reasons))
    reasons.append("no policy and no key's portals name it: left alone, unencrypted")
    problem = Problem(
        code="not-protected",
        message=f"{portal} is not managed: its iSCSI traffic is unencrypted",
        hint=f'to protect it, put this line into a file in portal.d: portals = ["{portal}"]',
        portal=portal,
        severity=Severity.WARNING,
    )
    return dataclasses.replace(view, problem=problem, reasons=tuple(reasons))


def broken_view(
    view: PortalView, broken: BrokenFile, previously_managed: bool, reasons: list[str]
) -> PortalView:
    """The view of a portal that a file with a mistake closes. Closed, but not remembered when the file goes."""
    portal = str(view.binding.portal)
    reasons.append(f"{broken.path} names it, but has a mistake: closed until the file is fixed")
    problem = Problem(
        code="broken-file",
        message=f"{broken.path} names {portal}, but has a mistake, so {portal} stays closed",
        hint=f"fix the file: iscsi-ipsec check {broken.path}",
        file=broken.path,
        portal=portal,
    )
    return dataclasses.replace(
        view, managed=previously_managed, closed=True, problem=problem, reasons=tuple(reasons)
    )


def clear_view(world: World, view: PortalView, reasons: list[str]) -> PortalView:
    """The view of a portal whose flags don't ask for IPsec."""
    portal = str(view.binding.portal)
    if world.settings.require_ipsec:
        reasons.append("IKE_IPSEC_ENABLED is unset but require_ipsec is set: blocked")
        problem = Problem(
            code="ipsec-required",
            message=f"the flags of {portal} allow unencrypted traffic but require_ipsec is set, so it is blocked",
            hint="set IKE_IPSEC_ENABLED for it",
            file=view.policy or view.key_path,
            portal=portal,
        )
        return dataclasses.replace(view, closed=True, problem=problem, reasons=tuple(reasons))
    reasons.append("IKE_IPSEC_ENABLED is unset: unencrypted traffic is allowed")
    problem = Problem(
        code="clear-allowed",
        message=f"the flags of {portal} don't ask for IPsec: its traffic is unencrypted",
        hint="set IKE_IPSEC_ENABLED to protect it",
        file=view.policy or view.key_path,
        portal=portal,
        severity=Severity.WARNING,
    )
    return dataclasses.replace(view, problem=problem, reasons=tuple(reasons))


def _connect(
    world: World, binding: PortalBinding, policy: PortalPolicy | None, key: Key, choice: IpsecChoice,
    source: Address | None, reasons: list[str],
) -> Connection:  # fmt: skip
    portal = binding.portal
    if source is None:
        raise Refused(
            "no-route", f"the kernel has no route to {portal}" + (f" through {binding.oif}" if binding.oif else ""),
            route_hint(portal, policy),
        )  # fmt: skip
    esp = esp_mode(world, policy, choice, portal)
    outer_remote = policy.tunnel_outer_remote if policy and policy.tunnel_outer_remote else portal.address
    outer_local = policy.tunnel_outer_local if policy else None
    if outer_local is None:
        outer_local = world.sources.get((outer_remote, binding.oif))
    if outer_local is None:
        raise Refused(
            "no-route", f"the kernel has no route to the tunnel's outer address {outer_remote}",
            f"check with: ip route get {outer_remote}", policy.path if policy else "",
        )  # fmt: skip
    if outer_local.version != outer_remote.version:
        raise Refused(
            "mixed-versions", f"the tunnel's outer addresses {outer_local} and {outer_remote} differ in IP version",
            "set both tunnel_outer_local and tunnel_outer_remote", policy.path if policy else "",
        )  # fmt: skip
    local_id = key.id if isinstance(key, PerIdKey) else address_identity(source, portal)
    remote_id = policy.target_id if policy and policy.target_id else address_identity(outer_remote, portal)
    reasons.append(
        f"identity {local_id.text} ({local_id.type.name}) towards {remote_id.text} ({remote_id.type.name})"
    )
    tuning = tuning_of(world, policy)
    reasons.extend(proposal_reasons(world, policy))
    return Connection(
        name=connection_name(portal, binding.oif),
        binding=binding,
        role=Role.INITIATOR,
        local_address=outer_local,
        remote_address=outer_remote,
        local_id=local_id,
        remote_id=remote_id,
        ike=choice.ike,
        esp=esp,
        pfs=choice.pfs,
        ike_proposals=ike_proposals(world, policy, choice, tuning),
        esp_proposals=esp_proposals(world, policy, choice, tuning),
        local_ts="dynamic[6]" if outer_local == source else f"{host_selector(source)}[6]",
        remote_ts=f"dynamic[6/{portal.port}]"
        if outer_remote == portal.address
        else f"{host_selector(portal.address)}[6/{portal.port}]",
        start=tuning.start or Start.TRAP,
        user_space_esp=world.user_space_esp,
        tuning=tuning,
        key=key,
    )
