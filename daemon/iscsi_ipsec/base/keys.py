"""Keys, as frozen types that cannot be built wrong: a per-ID key has an identity, a group key has none.

Law: values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from iscsi_ipsec.base.identity import IkeId
from iscsi_ipsec.base.policy import IpsecChoice
from iscsi_ipsec.base.portal import PortalPattern
from iscsi_ipsec.base.secret import Secret

MAX_KEY_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousKey:
    """The previous key, which is valid beside the new one until ``until`` (a time with its zone)."""

    secret: Secret
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PerIdKey:
    """A key that belongs to one identity (Windows' SetPresharedKeyForId).

    ``name`` is the file name without ``.toml``; ``portals`` empty means
    everywhere; ``choice`` None means that the flags were not specified;
    ``previous`` is there while the key is being rotated.
    """

    name: str
    path: str
    id: IkeId
    secret: Secret
    choice: IpsecChoice | None
    portals: tuple[PortalPattern, ...] = ()
    previous: PreviousKey | None = None
    id_as_written: str = field(init=False, repr=False)
    """The id as written: keys whose ids differ only in case are different keys, since ids are compared as IKE compares them but sent as written."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id_as_written", self.id.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """The default key of identities without one (SetGroupPresharedKey)."""

    name: str
    path: str
    secret: Secret
    choice: IpsecChoice | None
    portals: tuple[PortalPattern, ...] = ()
    previous: PreviousKey | None = None


Key = PerIdKey | GroupKey
