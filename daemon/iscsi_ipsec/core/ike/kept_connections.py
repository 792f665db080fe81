"""Selects connections that stay in charon although nothing asks for them: a session uses their SA, and no admin ended them.

Law: pure. A connection ends because a file, a record or a command says so. An input that fails or changes by
itself (a route, an address, a name) never ends an SA that is in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.connection_settings import connection_name
from iscsi_ipsec.core.decide.desired import Desired, PortalView
from iscsi_ipsec.core.decide.known_portals import addresses_of
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.core.ike.sa_lifecycle import carrying

ENVIRONMENT = frozenset({"no-route"})
"""Codes of problems that no file makes."""

CONTRADICTIONS = frozenset(
    {
        "esn-without-window", "group-without-pfs", "mixed-versions", "no-algorithm", "no-transport-mode",
        "outer-without-tunnel", "pfs-without-group",
    }
)  # fmt: skip
"""Codes of settings with which no connection can be made. As with settings that charon refuses, the last good ones stay in force."""

_Record: TypeAlias = tuple[str, str, int]
"""A record's path, and the host and port that it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBy:
    """The files and records that asked for a connection: as long as all of them are there, nobody has asked for its end."""

    portal: Portal
    role: Role
    key: Key
    policy: PortalPolicy | None
    settings: Settings
    records: frozenset[_Record]


def asked_by(desired: Desired, world: World) -> dict[str, AskedBy]:
    """The files and records that ask for each connection."""
    policies = {policy.path: policy for policy in world.policies}
    return {
        view.connection.name: AskedBy(
            portal=view.binding.portal,
            role=view.role,
            key=view.connection.key,
            policy=policies.get(view.policy),
            settings=world.settings,
            records=_records_of(view.binding.portal, world),
        )
        for view in desired.portals
        if view.connection
    }


def held_back(
    going: Iterable[str],
    desired: Desired,
    world: World,
    sas: Iterable[IkeSa],
    before: Mapping[str, AskedBy],
) -> frozenset[str]:
    """The connections of ``going``, which nothing asks for any more, that stay nevertheless.

    ``before`` says what asked for them when they were last wanted; after a start that is unknown, and only
    connections that the environment took away are kept.
    """
    in_use = _in_use(sas, world)
    views = {connection_name(v.binding.portal, v.binding.oif): v for v in desired.portals}
    held = set()
    for name in going:
        if name not in in_use:
            continue
        asked, view = before.get(name), views.get(name)
        by_environment = view is not None and view.problem is not None and view.problem.code in ENVIRONMENT
        if by_environment or (
            asked is not None and (_contradicted(asked, desired, world) or _still_asked(asked, view, world))
        ):
            held.add(name)
    return frozenset(held)


def _in_use(sas: Iterable[IkeSa], world: World) -> frozenset[str]:
    """Connections with an SA that carries packets of a session; of a served portal, any SA that does."""
    remotes = {connection_name(session.remote) for session in world.sessions}
    return frozenset(
        ike.conn
        for ike in sas
        if carrying(ike)
        and (
            not ike.initiator or any(ike.conn == name or ike.conn.startswith(f"{name}-") for name in remotes)
        )
    )


def _contradicted(asked: AskedBy, desired: Desired, world: World) -> bool:
    """Whether the settings alone keep a connection with the same key from being made.

    Views are compared by portal and key: a served portal has one for each peer, which names no connection then.
    """
    return asked.key in world.keys and any(
        (view.binding.portal, view.role, view.key_path) == (asked.portal, asked.role, asked.key.path)
        and view.problem is not None
        and view.problem.code in CONTRADICTIONS
        for view in desired.portals
    )


def _still_asked(asked: AskedBy, view: PortalView | None, world: World) -> bool:
    if view is not None and view.problem is not None and view.problem.code not in ENVIRONMENT | {"orphaned"}:
        return False  # a file is the reason
    if view is not None and not view.closed and asked.portal.address not in world.local_addresses:
        return False  # a file opened it
    return (
        asked.key in world.keys
        and (asked.policy is None or asked.policy in world.policies)
        and asked.settings == world.settings
        and asked.records <= {(record.path, record.host, record.port) for record in world.records}
        and (asked.portal, asked.role) in world.previously_managed
    )


def _records_of(portal: Portal, world: World) -> frozenset[_Record]:
    """The records that name the portal, names resolved."""
    return frozenset(
        (record.path, record.host, record.port)
        for record in world.records
        if record.port == portal.port and portal.address in addresses_of(world, record.host)
    )
