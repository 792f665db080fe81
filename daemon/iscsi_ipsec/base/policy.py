"""Portal policies, and the choices that flags and settings make.

Law: values only. No default here decides anything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.identity import IkeId, Peer
from iscsi_ipsec.base.portal import PortalPattern


class IkeMode(enum.StrEnum):
    """The kind of phase 1; ``status`` shows these values."""

    V2 = "IKEv2"
    MAIN = "IKEv1 main"
    AGGRESSIVE = "IKEv1 aggressive"


class EspMode(enum.StrEnum):
    """ESP encapsulation; the values are strongSwan's."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class Role(enum.StrEnum):
    """The end of the iSCSI connection that this host is."""

    INITIATOR = "initiator"
    TARGET = "target"


class Start(enum.StrEnum):
    """When an SA is negotiated: at the first packet, or at once and kept."""

    TRAP = "trap"
    START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class IpsecChoice:
    """The meaning of a set of ISCSI_SECURITY_FLAGS (``core.config.security_flags`` makes these)."""

    required: bool
    ike: IkeMode
    esp: EspMode | None
    pfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """strongSwan settings that a policy, a preset or the defaults may set; None: not set here.

    Times are in seconds.
    """

    ike_proposals: tuple[str, ...] | None = None
    esp_proposals: tuple[str, ...] | None = None
    ike_rekey_time: int | None = None
    esp_rekey_time: int | None = None
    dpd_delay: int | None = None
    dpd_timeout: int | None = None
    replay_window: int | None = None
    start: Start | None = None

    def with_fallback(self, below: Tuning) -> Tuning:
        """These settings, with ``below`` for each that is not set here."""
        if self == _SILENT:
            return below
        if below == _SILENT:
            return self
        return Tuning(
            **{
                name: mine if (mine := getattr(self, name)) is not None else getattr(below, name)
                for name in Tuning.__dataclass_fields__
            }
        )


_SILENT = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalPolicy:
    """The content of one file of ``portal.d/`` about the portals that it names.

    ``initiators``: the identities that may use the group key (target role only).
    """

    name: str
    path: str
    patterns: tuple[PortalPattern, ...]
    role: Role = Role.INITIATOR
    choice: IpsecChoice | None = None
    psk: str | None = None
    target_id: IkeId | None = None
    initiators: tuple[Peer, ...] = ()
    tunnel_outer_remote: Address | None = None
    tunnel_outer_local: Address | None = None
    preset: str | None = None
    tuning: Tuning = Tuning()
    ids_as_written: tuple[str, ...] = field(init=False, repr=False)
    """The identities as written: policies whose identities differ only in case are different policies, as for keys."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids_as_written", tuple(map(str, (self.target_id, *self.initiators))))
