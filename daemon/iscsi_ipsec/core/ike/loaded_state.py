"""Pairs desired connections with what charon holds: which are loaded, and which SAs to keep up.

Law: pure functions of immutable values, so that a pass in which nothing changed need not call them again.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.policy import Role, Start
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.core.decide.connection_settings import connection_name
from iscsi_ipsec.core.decide.desired import Connection, Desired
from iscsi_ipsec.core.ike.sa_lifecycle import SaTarget, carrying
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection, EncodedRotation, EncodedSecret

_NONE: frozenset[str] = frozenset()


def children_by_name(connections: tuple[EncodedConnection, ...]) -> Mapping[str, str]:
    """The names of the wanted children."""
    return {c.name: c.child for c in connections}


def rotations_by_name(connections: tuple[EncodedConnection, ...]) -> Mapping[str, EncodedRotation]:
    """The meaning of the children's names for connections with two valid keys."""
    return {c.name: c.rotation for c in connections if c.rotation}


def loaded_connections(
    desired: Desired,
    secrets: tuple[EncodedSecret, ...],
    connections: tuple[EncodedConnection, ...],
    state: CharonState,
) -> frozenset[str]:
    """Connections that charon holds in the wanted version, with their secret."""
    loaded = frozenset(c.name for c in connections if state.conns.get(c.name) == frozenset({c.child}))
    if missing := {s.id for s in secrets} - (state.secrets or frozenset()):
        pairs = {s.entry.owners for s in secrets if s.id in missing}
        loaded -= {c.name for c in desired.connections if {c.pair, (c.remote_id,)} & pairs}
    return loaded


def earlier_reqids(
    desired: Desired, sas: Iterable[IkeSa], held: Container[str] | None = _NONE
) -> frozenset[tuple[Portal, int]]:
    """Portals with the reqids that SAs of their connections have and the connections have not.

    Such an SA was negotiated before its connection was loaded with a reqid of its own, by an
    earlier version of this program, and lives until its successor is up. Or its connection is one
    of ``held``, which stay although nothing asks for them: what is kept must also pass the guard.
    None: it is not known yet which are held, so each that has a closed portal may be.
    """
    found = [(ike.conn, child.reqid) for ike in sas for child in carrying(ike)]
    strange = {(name, reqid) for name, reqid in found if desired.reqids.get(name, reqid) != reqid}
    kept = {
        (name, reqid)
        for name, reqid in found
        if name not in desired.reqids and (held is None or name in held)
    }
    if not (strange or kept):
        return frozenset()
    portals = {connection.name: connection.binding.portal for connection in desired.connections}
    closed = {
        connection_name(view.binding.portal, view.binding.oif): view.binding.portal
        for view in desired.portals
        if kept and view.closed
    }
    return frozenset((portals[name], reqid) for name, reqid in strange) | frozenset(
        (portal, reqid)
        for name, reqid in kept
        for known, portal in closed.items()
        if name == known or name.startswith(f"{known}-")
    )


def sa_targets(
    connections: tuple[Connection, ...],
    encoded: tuple[EncodedConnection, ...],
    conns: Mapping[str, frozenset[str]],
    with_session: frozenset[Portal],
    waiting: frozenset[Address],
    orphaned: frozenset[str],
) -> tuple[SaTarget, ...]:
    """The connections as ``sa_lifecycle`` sees them.

    ``waiting``: addresses towards which packets wait for an SA. ``orphaned``: connections whose packets go
    through an SA that charon does not know.
    """
    return tuple(
        SaTarget(
            name=named.name,
            child=named.child,
            key_part=named.key_part,
            valid=named.rotation.parts if named.rotation else _NONE,
            initiator=connection.role is Role.INITIATOR,
            wanted_now=connection.start is Start.START
            or connection.user_space_esp
            or connection.binding.portal in with_session
            or connection.remote_address in waiting
            or connection.name in orphaned,
            loaded=named.name in conns,
        )
        for connection, named in zip(connections, encoded, strict=True)
    )
