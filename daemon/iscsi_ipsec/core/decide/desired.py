"""Types of the desired state of charon and nftables, with the reasons for people.

Law: types only. ``core.decide.derive`` fills them, ``core.ike.vici_messages`` encodes them for charon,
``core.guard.ruleset`` for nftables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iscsi_ipsec.base.addresses import Address, Network
from iscsi_ipsec.base.identity import IkeId, Peer
from iscsi_ipsec.base.keys import Key, PreviousKey
from iscsi_ipsec.base.policy import EspMode, IkeMode, IpsecChoice, Role, Start, Tuning
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.decide.world import PortalBinding


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection that charon shall have, in our terms (``core.ike.vici_messages`` encodes it for charon).

    Identities compare without regard to case, but are sent as written: where only that
    differs, it is another connection.
    """

    name: str
    binding: PortalBinding
    role: Role
    local_address: Address
    remote_address: Address | Network | None
    local_id: IkeId
    remote_id: Peer
    ike: IkeMode
    esp: EspMode
    pfs: bool
    ike_proposals: tuple[str, ...]
    esp_proposals: tuple[str, ...]
    local_ts: str
    remote_ts: str
    start: Start
    user_space_esp: bool
    tuning: Tuning
    key: Key
    ids_as_written: tuple[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids_as_written", (str(self.local_id), str(self.remote_id)))

    @property
    def pair(self) -> tuple[Peer, ...]:
        """The owners that this connection's secret must have.

        A responder names only the peer: an IKEv2 responder tries every key
        that matches either id, so its own id would let each peer in with
        every other peer's key.
        """
        return (self.remote_id,) if self.role is Role.TARGET else (self.local_id, self.remote_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretEntry:
    """One secret that charon shall have: the key's bytes and exactly whose they are.

    ``over``: another secret of the same owners, over which this one takes precedence.
    """

    owners: tuple[Peer, ...]
    secret: Secret
    keys: tuple[str, ...]
    over: Secret | None = None


RotationId = tuple[tuple[Peer, ...], Secret, Secret]
"""Identifies a rotation from pass to pass: the owners, their new key and their previous one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Two keys that are valid side by side for these owners; ``previous_key_first``: the previous key takes precedence."""

    owners: tuple[Peer, ...]
    secret: Secret
    previous: PreviousKey
    keys: tuple[str, ...]
    previous_key_first: bool
    connections: tuple[Connection, ...]

    @property
    def rotation_id(self) -> RotationId:
        """The rotation's identity."""
        return (self.owners, self.secret, self.previous.secret)

    @property
    def in_order(self) -> tuple[Secret, Secret]:
        """The key that takes precedence, and the other one."""
        both = (self.secret, self.previous.secret)
        return both[::-1] if self.previous_key_first else both


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalView:
    """The decision about a portal and its reasons: a row of ``status`` and the text of ``explain``.

    ``closed``: packets pass only inside IPsec. ``connection`` None with
    ``closed`` true means that nothing passes at all. ``own_address``: the portal is at an address of
    this host at present, so no packet leaves for it; it stays closed if it was.
    ``covered``: by a policy or a key's own ``portals``; ``unrestricted``: managed only because an earlier version let a key without ``portals`` manage it.
    """

    binding: PortalBinding
    role: Role
    managed: bool
    closed: bool
    reasons: tuple[str, ...]
    origins: tuple[str, ...]
    policy: str = ""
    key: str = ""
    key_path: str = ""
    identity: Peer | None = None
    choice: IpsecChoice | None = None
    connection: Connection | None = None
    problem: Problem | None = None
    own_address: bool = False
    covered: bool = False
    unrestricted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The outcome: what must be in charon and in nftables, and what to report.

    ``reqids`` are the connections' by name (:mod:`core.decide.reqids`).
    ``networks``: where a portal that nothing has named yet must not be reached unencrypted;
    ``clear_exceptions``: the parts of them that may.
    """

    portals: tuple[PortalView, ...]
    connections: tuple[Connection, ...]
    reqids: Mapping[str, int]
    secrets: tuple[SecretEntry, ...]
    rotations: tuple[Rotation, ...]
    guarded: tuple[Portal, ...]
    local_portals: tuple[Portal, ...]
    networks: tuple[PortalRange, ...]
    clear_exceptions: tuple[PortalRange, ...]
    problems: tuple[Problem, ...]

    @property
    def own_sas(self) -> frozenset[tuple[Portal, int]]:
        """Each portal that has a connection, with the reqid of its SAs."""
        return frozenset((c.binding.portal, self.reqids[c.name]) for c in self.connections)


class Refused(Exception):
    """A portal cannot be connected as asked. Raised and caught inside ``core`` only."""

    def __init__(self, code: str, message: str, hint: str, file: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.file = code, message, hint, file

    def problem(self, portal: Portal) -> Problem:
        """The refusal as a problem for the admin."""
        return Problem(
            code=self.code, message=self.message, hint=self.hint, file=self.file, portal=str(portal)
        )
