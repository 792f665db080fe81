"""Derives everything that must be in charon and nftables from one world.

Law: :func:`derive` is a function of :class:`World` alone. Which key a portal
uses is decided in ``core.decide.key_choice`` and nowhere else; charon is never left
to choose: a secret reaches it only as "this local id towards that remote
id", because charon's own ranking (get_shared in credential_manager.c) puts
the match on the other id before one's own.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import is_not

from iscsi_ipsec.base.identity import Peer
from iscsi_ipsec.base.iscsi import NodeRecord
from iscsi_ipsec.base.keys import GroupKey, Key
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import IkeMode, PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal, sorted_portals
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.closed_networks import clear_exceptions, closed_networks
from iscsi_ipsec.core.decide.desired import Connection, Desired, PortalView, RotationId
from iscsi_ipsec.core.decide.initiator import initiator_view
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.reqids import assign_reqids
from iscsi_ipsec.core.decide.secret_owners import (
    Owned,
    Secrets,
    accepted_secrets,
    rotations_of,
    valid_keys,
    with_owners,
)
from iscsi_ipsec.core.decide.target import target_views
from iscsi_ipsec.core.decide.world import PortalBinding


def derive(lookup: Lookup) -> Desired:
    """Decide everything about every portal. Pure; the same world gives the same outcome."""
    return Deriver().derive(lookup)


class Deriver:
    """Derives in each pass, and returns the same objects for parts that did not change.

    A view of a portal as an initiator is made anew when anything that :func:`initiator_view` looks
    at differs (:meth:`_view_inputs`); all keys count where any may be chosen, one where the policy names it.
    """

    def __init__(self) -> None:
        self._common: tuple[object, ...] = ()
        self._choosable: tuple[object, ...] = ()
        self._views: dict[PortalBinding, tuple[tuple[object, ...], PortalView]] = {}
        self._decided = Memo(_decide)
        self._secrets = Secrets()

    def derive(self, lookup: Lookup) -> Desired:
        """As :func:`derive`."""
        world, ours = lookup.world, self._initiator_views(lookup)
        local_portals = target_views(lookup, tuple(v.connection for v in ours if v.connection))
        decided, owned = self._decided(
            (*ours, *local_portals),
            world.settings,
            world.policies,
            world.broken,
            tuple(key for key in world.keys if key.portals),
            world.records,
            world.previous_key_first,
            world.reqids,
            world.foreign_reqids,
        )
        return dataclasses.replace(
            decided, secrets=self._secrets.entries(world.keys, owned, decided.rotations)
        )

    def _initiator_views(self, lookup: Lookup) -> list[PortalView]:
        world = lookup.world
        common = (
            world.settings, world.broken, world.names, world.local_addresses,
            world.user_space_esp, world.algorithms, world.fast_aes, lookup.keys.unresolved,
        )  # fmt: skip
        choosable = (lookup.keys.named, lookup.keys.groups, lookup.keys.by_address)
        # compared once here; for each portal it is then enough that they are the same objects
        if common != self._common:
            self._common, self._views = common, {}
        self._choosable = self._choosable if choosable == self._choosable else choosable
        before, self._views = self._views, {}
        for binding, origins in lookup.candidates.items():
            asked = self._view_inputs(lookup, binding, origins)
            known = before.get(binding)
            if known is None or any(map(is_not, known[0], asked)):
                view = initiator_view(lookup, binding, origins)
                known = asked, known[1] if known and known[1] == view else view
            self._views[known[1].binding] = known
        return [view for _, view in self._views.values()]

    def _view_inputs(
        self, lookup: Lookup, binding: PortalBinding, origins: tuple[str, ...]
    ) -> tuple[object, ...]:
        world, portal = lookup.world, binding.portal
        policy = lookup.policies.policy_for(portal, Role.INITIATOR)
        outer = policy.tunnel_outer_remote if policy else None
        return (
            origins,
            policy,
            lookup.keys.by_name.get(policy.psk) if policy and policy.psk is not None else self._choosable,
            world.sources.get((portal.address, binding.oif)),
            world.sources.get((outer, binding.oif)) if outer else None,
            (portal, Role.INITIATOR) in world.previously_managed,
            portal in world.inherited,
            lookup.keys.cover(portal),
            *self._literal_inputs(lookup, binding),
        )

    def _literal_inputs(self, lookup: Lookup, binding: PortalBinding) -> tuple[object, object, object]:
        """Further inputs of a portal that a file names by a host name: such a portal is decided without names too."""
        if binding.portal not in lookup.portals_by_name:
            return None, None, None
        policy = lookup.without_names().policies.policy_for(binding.portal, Role.INITIATOR)
        outer = policy.tunnel_outer_remote if policy else None
        return policy, self._choosable, lookup.world.sources.get((outer, binding.oif)) if outer else None


def _decide(
    views: tuple[PortalView, ...],
    settings: Settings,
    policies: tuple[PortalPolicy, ...],
    broken: tuple[BrokenFile, ...],
    keys: tuple[Key, ...],
    records: tuple[NodeRecord, ...],
    previous_key_first: Mapping[RotationId, bool],
    reqids: Mapping[str, int],
    foreign_reqids: frozenset[int],
) -> tuple[Desired, Owned]:
    """The outcome without the secrets, and the material for the secrets."""
    views = tuple(_share_connections(_refuse_crossed(_refuse_shared_pairs(views))))
    connections = tuple({v.connection.name: v.connection for v in views if v.connection}.values())
    owned = tuple(with_owners(connections))
    problems = [v.problem for v in views if v.problem]
    problems.extend(_warnings(views))
    problems.extend(_link_local_problems(records))
    desired = Desired(
        portals=views,
        connections=connections,
        reqids=assign_reqids((c.name for c in connections), reqids, foreign_reqids),
        secrets=(),
        rotations=rotations_of(previous_key_first, owned),
        guarded=sorted_portals({v.binding.portal for v in views if v.closed and v.role is Role.INITIATOR}),
        local_portals=sorted_portals({v.binding.portal for v in views if v.closed and v.role is Role.TARGET}),
        networks=closed_networks(settings, policies, broken, keys),
        clear_exceptions=clear_exceptions(settings, policies, broken, views),
        problems=tuple(dict.fromkeys(problems)),
    )
    return desired, owned


def _refuse_shared_pairs(views: tuple[PortalView, ...]) -> list[PortalView]:
    """Close portals whose connections have the same two ids but different keys.

    IKE knows no ports and no portals: towards one pair of ids charon would
    take either key. The two keys of a rotation are intended, and count as one key.
    """
    keys: dict[tuple[Peer, ...], dict[Secret, str]] = {}
    for view in views:
        if view.connection:
            key = view.connection.key
            keys.setdefault(view.connection.pair, {}).setdefault(key.secret, key.path)

    def why(connection: Connection) -> tuple[str, str] | None:
        paths = sorted(keys[connection.pair].values())
        if len(paths) == 1:
            return None
        pair = f"{connection.local_id} and {connection.remote_id}"
        message = f"different keys apply between {pair}: {', '.join(paths)}"
        return message, "let one key serve all portals of that target, or give them different target_id"

    return _refuse(views, why)


def _refuse_crossed(views: list[PortalView]) -> list[PortalView]:
    """Close portals whose key would let their target pose as another one.

    A secret must name the local id where other identities of this host have
    another key for the target. If that local id has other keys for other targets,
    an IKEv2 peer could prove itself to be one of them with this one (:func:`~iscsi_ipsec.core.decide.secret_owners.with_owners`).
    """
    connections = [v.connection for v in views if v.connection and v.role is Role.INITIATOR]
    of_remote = valid_keys(connections, "remote_id")
    v2 = valid_keys((c for c in connections if c.ike is IkeMode.V2), "local_id")

    def why(connection: Connection) -> tuple[str, str] | None:
        crossed = (
            connection.role is Role.INITIATOR
            and len(of_remote[connection.remote_id]) > 1
            and v2.get(connection.local_id, set()) - {accepted_secrets(connection.key)}
        )
        if not crossed:
            return None
        message = (
            f"{connection.local_id} has other keys for other targets, and {connection.remote_id} another"
            " key for another identity of this host: that target could pose as the others"
        )
        return message, "give the target one key for all identities of this host, or this host one identity"

    return _refuse(views, why)


def _refuse(
    views: Iterable[PortalView], why: Callable[[Connection], tuple[str, str] | None]
) -> list[PortalView]:
    """The views without the connections in ``reasons``, which has for each the message and the hint."""
    return [
        _without_connection(view, *refusal) if view.connection and (refusal := why(view.connection)) else view
        for view in views
    ]


def _without_connection(view: PortalView, message: str, hint: str) -> PortalView:
    problem = Problem(code="ambiguous-key", message=message, hint=hint, portal=str(view.binding.portal))
    reasons = (*view.reasons, f"{message}: the portal stays closed")
    return dataclasses.replace(view, connection=None, problem=problem, reasons=reasons)


def _share_connections(views: list[PortalView]) -> list[PortalView]:
    """Merge bindings of a portal that differ only in the interface's name into one connection.

    The traps of two would have the same selectors, and charon can only hold one.
    """
    count = Counter(view.binding.portal for view in views if view.role is Role.INITIATOR)
    first: dict[Connection, Connection] = {}
    shared = []
    for view in views:
        connection = view.connection
        if connection is None or view.role is not Role.INITIATOR or count[view.binding.portal] == 1:
            shared.append(view)
            continue
        unnamed = dataclasses.replace(connection, name="", binding=PortalBinding(view.binding.portal))
        shared.append(dataclasses.replace(view, connection=first.setdefault(unnamed, connection)))
    return shared


def _unrestricted_keys(views: Iterable[PortalView]) -> Iterable[Problem]:
    by_key: dict[str, dict[Portal, None]] = {}
    for view in views:
        if view.unrestricted:
            by_key.setdefault(view.key_path, {})[view.binding.portal] = None
    for path, portals in sorted(by_key.items()):
        listed = ", ".join(f'"{portal}"' for portal in portals)
        yield Problem(
            code="unrestricted-key",
            message=f"managed under this key only because an earlier version let a key without portals manage every portal: {', '.join(map(str, portals))}",
            hint=f"put this line into a file in portal.d: portals = [{listed}]",
            file=path,
            severity=Severity.WARNING,
        )


def _link_local_problems(records: Iterable[NodeRecord]) -> Iterable[Problem]:
    for record in records:
        if "%" in record.host:
            yield Problem(
                code="link-local",
                message=f"the link-local portal {record.host} cannot be protected",
                hint="give the target a global or unique local address",
                file=record.path,
            )


def _warnings(views: tuple[PortalView, ...]) -> Iterable[Problem]:
    """Warnings about keys as such: aggressive mode, group keys in use, keys that manage portals by an earlier version's rule."""
    yield from _unrestricted_keys(views)
    used = {v.key_path: v for v in views if v.connection}
    for path, view in sorted(used.items()):
        key = view.connection.key if view.connection else None
        if isinstance(key, GroupKey):
            yield Problem(
                code="group-key-in-use",
                message="a group key is in use: whoever has it can pose as the target (RFC 3723, 5.8.3)",
                hint="give each initiator a key of its own",
                file=path,
                severity=Severity.WARNING,
            )
    for view in views:
        if view.connection and view.connection.ike is IkeMode.AGGRESSIVE:
            yield Problem(
                code="aggressive-mode",
                message="aggressive mode with a pre-shared key lets a listener guess the key offline",
                hint="use IKEv2 (leave out both mode flags) where the target can",
                file=view.policy or view.key_path,
                severity=Severity.WARNING,
            )
