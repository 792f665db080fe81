"""Builds the rows of ``status.json``: one per portal, with its SA and its last problem.

Law: pure. A portal is ``protected`` only if charon carries it in the mode
that was asked for; a silent downgrade is a problem, not a green row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iscsi_ipsec.base.charon_sa import ChildSa, IkeSa
from iscsi_ipsec.base.identity import IkeId, Peer
from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config import proposals
from iscsi_ipsec.core.decide.desired import Connection, PortalView
from iscsi_ipsec.core.ike.ike_failures import PEER_LOST, Cause, in_mode
from iscsi_ipsec.core.ike.sa_lifecycle import carrying
from iscsi_ipsec.core.ike.vici_messages import EncodedRotation
from iscsi_ipsec.core.report.schema import problem_row, session_row

FIRST_CHILD_WITHIN = 5
"""Seconds after its IKE SA in which the first child is installed, however slow the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observed state at the end of a pass.

    ``loaded`` are connections that charon holds with their secret;
    ``failed_repeatedly`` those whose first attempt to come up is over without success;
    ``rotations`` says of those with two valid keys what their children's names mean.
    """

    sas: tuple[IkeSa, ...] = ()
    sessions: tuple[IscsiSession, ...] = ()
    loaded: frozenset[str] = frozenset()
    failed_repeatedly: frozenset[str] = frozenset()
    guarded: frozenset[Portal] = frozenset()
    guard_wanted: bool = True
    children: Mapping[str, str] | None = None
    rotations: Mapping[str, EncodedRotation] = field(default_factory=dict)
    reqids: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, Cause] | None = None
    charon_reachable: bool = False


class PortalRows:
    """Builds one JSON row per view, in its order, in each pass; returns the same objects for rows, and for the whole list, that did not change."""

    def __init__(self) -> None:
        self._all = Memo(self._make)
        self._made_of: list[tuple[object, ...]] = []
        self._rows: list[dict[str, Any]] = []

    def rows(self, views: tuple[PortalView, ...], observed: Observed) -> list[dict[str, Any]]:
        """The rows; the caller must not change them."""
        return self._all(views, observed)

    def _make(self, views: tuple[PortalView, ...], observed: Observed) -> list[dict[str, Any]]:
        by_conn: dict[str, list[IkeSa]] = {}
        for ike in observed.sas:
            by_conn.setdefault(ike.conn, []).append(ike)
        by_remote: dict[Portal, list[IscsiSession]] = {}
        for session in observed.sessions:
            by_remote.setdefault(session.remote, []).append(session)
        before, rows = self._made_of, []
        self._made_of = []
        for place, view in enumerate(views):
            name = view.connection.name if view.connection else ""
            sas = by_conn.get(name, [])
            sessions = by_remote.get(view.binding.portal, []) if by_remote else []
            made_of = (view, sas, sessions, *_said_of(name, view.binding.portal, observed))
            same = place < len(before) and before[place] == made_of
            rows.append(self._rows[place] if same else _row(view, observed, sas, sessions))
            self._made_of.append(made_of)
        self._rows = rows
        return rows


def _said_of(name: str, portal: Portal, observed: Observed) -> tuple[object, ...]:
    """The parts of an observation about one portal besides its SAs and sessions."""
    return (
        observed.charon_reachable,
        observed.guard_wanted,
        portal in observed.guarded,
        name in observed.loaded,
        name in observed.failed_repeatedly,
        (observed.children or {}).get(name),
        observed.rotations.get(name),
        observed.reqids.get(name),
        (observed.causes or {}).get(name),
    )


def _row(
    view: PortalView, observed: Observed, sas: list[IkeSa], sessions: list[IscsiSession]
) -> dict[str, Any]:
    connection = view.connection
    ike, child = _best(sas, observed, connection) if connection else (None, None)
    rotation = observed.rotations.get(connection.name) if connection else None
    offloaded = [session for session in sessions if session.is_offloaded]
    problem = (
        _offloaded(view, offloaded)
        or view.problem
        or _live_problem(view, connection, ike, child, sessions, observed)
    )
    choice = view.choice
    esp = connection.esp if connection else choice.esp if choice else None
    guarded = not view.closed or not observed.guard_wanted or view.binding.portal in observed.guarded
    return {
        "portal": str(view.binding.portal),
        "interface": view.binding.oif,
        "role": view.role.value,
        "managed": view.managed,
        "covered": view.covered,
        "closed": view.closed,
        "own_address": view.own_address,
        "protected": bool(child and connection and not offloaded and not _downgrade(connection, child)),
        "ready": _is_ready(view, observed) and guarded,
        "identity": str(view.identity) if view.identity else None,
        "identity_type": _id_type(view.identity),
        "peer_identity": str(connection.remote_id) if connection and view.role is Role.INITIATOR else None,
        "key": view.key or None,
        "key_file": view.key_path or None,
        "previous_until": rotation.until if rotation else None,
        "policy": view.policy or None,
        "ike": choice.ike.value if choice and choice.required else None,
        "mode": esp.value if esp and choice and choice.required else None,
        "pfs": choice.pfs if choice and choice.required else None,
        "connection": connection.name if connection else None,
        "reqid": observed.reqids.get(connection.name) if connection else None,
        "child": (observed.children or {}).get(connection.name) if connection else None,
        "local_address": str(connection.local_address) if connection else None,
        "remote_address": str(connection.remote_address)
        if connection and connection.remote_address
        else None,
        "ike_proposals": connection.ike_proposals if connection else (),
        "esp_proposals": connection.esp_proposals if connection else (),
        "user_space_esp": connection.user_space_esp if connection else False,
        "reasons": view.reasons,
        "origins": view.origins,
        "sessions": [session_row(session) for session in sessions],
        "sa": _sa(ike, child, _key_of(child, connection, observed)) if connection and ike and child else None,
        "problem": problem_row(problem) if problem else None,
    }


def _id_type(peer: Peer | None) -> str | None:
    if peer is None:
        return None
    return peer.type.name if isinstance(peer, IkeId) else f"addresses of IPv{peer.version}"


def _is_ready(view: PortalView, observed: Observed) -> bool:
    if view.connection:
        return view.connection.name in observed.loaded
    return not view.closed or view.own_address


def _best(
    sas: list[IkeSa], observed: Observed, connection: Connection
) -> tuple[IkeSa | None, ChildSa | None]:
    """The child that carries packets now: one with the wanted settings before an outdated one, the youngest first."""
    wanted = (observed.children or {}).get(connection.name)
    live = [(ike, child) for ike in sas for child in carrying(ike)]
    if not live:
        return None, None
    return min(live, key=lambda pair: (pair[1].child_name != wanted, pair[1].age))


def _live_problem(
    view: PortalView, connection: Connection | None, ike: IkeSa | None, child: ChildSa | None,
    sessions: list[IscsiSession], observed: Observed,
) -> Problem | None:  # fmt: skip
    if connection is None:
        return None
    portal = str(view.binding.portal)
    if not observed.charon_reachable:
        return Problem(
            code="charon-unreachable", message="charon cannot be reached, so no SA can be negotiated", portal=portal,
            hint="systemctl status strongswan",
        )  # fmt: skip
    cause = (observed.causes or {}).get(connection.name)
    cause = in_mode(cause, connection.ike) if cause else None
    rotation = observed.rotations.get(connection.name)
    if child and rotation and child.child_name.startswith(rotation.previous):
        return _previous_in_use(view, portal, rotation)
    if child and child.child_name != (observed.children or {}).get(connection.name):
        # its key or settings are outdated, so it differs from the wanted ones; that is expected while its successor is negotiated
        return _outdated(portal, cause) if cause or connection.name in observed.failed_repeatedly else None
    if child:
        downgrade = _downgrade(connection, child)
        if downgrade:
            return Problem(code=downgrade[0], message=downgrade[1], hint=downgrade[2], portal=portal)
        return _failing_rekey(portal, cause) if cause else _without_pfs(portal, connection, ike, child)
    if cause:
        return Problem(
            code=cause.code, message=cause.message, hint=cause.hint, portal=portal, severity=_severity(cause)
        )
    if sessions and connection.name in observed.failed_repeatedly:
        return Problem(
            code="no-sa", message="an iSCSI session exists but no SA does: the guard holds its packets back", portal=portal,
            hint="the daemon is negotiating; if this stays, see charon's log",
        )  # fmt: skip
    return None


def _offloaded(view: PortalView, offloaded: list[IscsiSession]) -> Problem | None:
    """Neither an SA nor the guard covers these sessions, whatever else is right."""
    if not offloaded or not (view.managed or view.closed):
        return None
    transports = ", ".join(sorted({session.transport for session in offloaded}))
    return Problem(
        code="offloaded-session",
        message=f"sessions run over {transports}, which bypasses this host's IP stack: IPsec does not protect them",
        hint="log out, set iface.transport_name = tcp in the node record, and log in again",
        portal=str(view.binding.portal),
    )


def _previous_in_use(view: PortalView, portal: str, rotation: EncodedRotation) -> Problem:
    far = "initiator" if view.role is Role.TARGET else "target"
    return Problem(
        code="previous-key-in-use",
        message=f"the SA was authenticated by the previous key, which stops being valid at {rotation.until}",
        hint=f"give the {far} the new key before that",
        file=view.key_path,
        portal=portal,
        severity=Severity.WARNING,
    )


def _key_of(child: ChildSa, connection: Connection, observed: Observed) -> str:
    """The key by which an SA was authenticated, from its child's name."""
    rotation = observed.rotations.get(connection.name)
    wanted = (observed.children or {}).get(connection.name, "")
    if rotation and child.child_name.startswith(rotation.previous):
        return "previous"
    if rotation and child.child_name.startswith(rotation.staged):
        return "current" if connection.role is Role.INITIATOR else "either"
    same = child.child_name.split("-")[:3] == wanted.split("-")[:3]
    return "current" if same or (rotation and child.child_name.startswith(rotation.current)) else "earlier"


def _failing_rekey(portal: str, cause: Cause) -> Problem:
    """The warning that the SA carries packets, but a later negotiation failed, so it may not be renewed."""
    return Problem(
        code=cause.code,
        message=cause.message
        if cause is PEER_LOST
        else f"the SA is up, but renewing it fails: {cause.message}",
        hint=cause.hint,
        portal=portal,
        severity=_severity(cause),
    )


def _without_pfs(portal: str, connection: Connection, ike: IkeSa | None, child: ChildSa) -> Problem | None:
    """A rekeyed child whose keys rest on the IKE SA's alone, where that was left to the peer.

    IKEv2's first child never has an exchange of its own (RFC 7296, 1.2): only one that is younger than its IKE SA shows it.
    """
    rekeyed = ike is not None and ike.version == 2 and ike.age - child.age > FIRST_CHILD_WITHIN
    if not (connection.pfs and rekeyed and not child.dh_group):
        return None
    return Problem(
        code="no-pfs",
        message="the SA was renewed without PFS, since the target has no group for it",
        hint="enable PFS on the target, or unset PFS_ENABLED here",
        portal=portal,
        severity=Severity.WARNING,
    )


def _severity(cause: Cause) -> Severity:
    return Severity.WARNING if cause.passing else Severity.ERROR


def _outdated(portal: str, cause: Cause | None) -> Problem:
    """The SA that carries packets is of an earlier key or setting, and no new one has come up yet."""
    message = "packets still use the SA with the earlier key or settings, since the new SA has not come up"
    return Problem(
        code="outdated-sa",
        message=f"{message}: {cause.message}" if cause else message,
        hint=cause.hint if cause else "the daemon is negotiating; a changed key must be changed on both ends",
        portal=portal,
    )


def _downgrade(connection: Connection, child: ChildSa) -> tuple[str, str, str] | None:
    """Compare the negotiated SA with the wanted settings: (code, message, hint), or None."""
    if child.mode.lower() != connection.esp.value:
        return (
            "mode-differs",
            f"{connection.esp.value} mode was asked for, but {child.mode.lower()} mode was negotiated",
            "the target allows only the other mode: change the flags here or its configuration",
        )
    if child.encr in proposals.UNENCRYPTED:
        return (
            "no-encryption", f"the SA uses {cipher(child)}: packets are not encrypted",
            "end the SA, and take null and gmac out of esp_proposals on both ends",
        )  # fmt: skip
    if child.encr and not proposals.is_offered(child.encr, child.encr_keysize, connection.esp_proposals):
        return (
            "cipher-differs", f"the SA uses {cipher(child)}, which was not offered", "end the SA: it was not made by us",
        )  # fmt: skip
    if connection.pfs and connection.ike is not IkeMode.V2 and not child.dh_group:
        # IKEv2's first child has no exchange of its own (RFC 7296, 1.2), so only IKEv1 shows it
        return ("no-pfs", "PFS was asked for, but the SA was negotiated without", "enable PFS on the target")
    return None


def cipher(child: ChildSa) -> str:
    """The SA's algorithms as people read them: ``AES_GCM_16-256``, ``AES_CBC-128/HMAC_SHA2_256_128``."""
    text = f"{child.encr}-{child.encr_keysize}" if child.encr_keysize else child.encr
    return f"{text}/{child.integ}" if child.integ else text


def _sa(ike: IkeSa, child: ChildSa, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "ike_id": ike.unique_id,
        "ike_version": ike.version,
        "child_id": child.unique_id,
        "child": child.child_name,
        "state": child.state,
        "mode": child.mode.lower(),
        "cipher": cipher(child),
        "dh_group": child.dh_group or None,
        "age": child.age,
        "bytes_in": child.bytes_in,
        "bytes_out": child.bytes_out,
        "reqid": child.reqid,
        "spi_in": child.spi_in,
        "spi_out": child.spi_out,
    }
