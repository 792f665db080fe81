"""Everything that a decision may depend on, as one value.

Law: values only. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.identity import Peer
from iscsi_ipsec.base.iscsi import IscsiSession, NodeRecord
from iscsi_ipsec.base.keys import Key
from iscsi_ipsec.base.policy import PortalPolicy, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.secret import Secret
from iscsi_ipsec.core.config.invalid_files import BrokenFile
from iscsi_ipsec.core.config.settings import Settings


@dataclass(frozen=True, slots=True)
class PortalBinding:
    """A portal as reached through one binding: ``oif`` is the bound interface, empty for none."""

    portal: Portal
    oif: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedBefore:
    """Portals that were managed before and have not been released.

    ``portals`` with this host's role; ``inherited`` those portals that were managed by a version in which
    a key without ``portals`` managed every portal, and that no file has covered since.
    """

    portals: frozenset[tuple[Portal, Role]] = frozenset()
    inherited: frozenset[Portal] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that :func:`derive` may depend on.

    ``names`` maps host names to their addresses (absent: not resolved yet);
    ``sources`` maps ``(destination, oif)`` to the source address that the
    kernel would use (None: unreachable); ``previously_managed`` are the portals that were
    managed before and have not been released, ``inherited`` as in :class:`ManagedBefore`;
    ``previous_key_first`` says between whom
    the previous key of a rotation is presented first (absent: as the role has it); ``reqids`` are
    those that connections were given before, ``foreign_reqids`` those of our range that others use;
    ``algorithms`` are charon's, by its names (empty: not known).
    """

    settings: Settings = field(default_factory=Settings)
    keys: tuple[Key, ...] = ()
    policies: tuple[PortalPolicy, ...] = ()
    broken: tuple[BrokenFile, ...] = ()
    records: tuple[NodeRecord, ...] = ()
    sessions: tuple[IscsiSession, ...] = ()
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    sources: Mapping[tuple[Address, str], Address | None] = field(default_factory=dict)
    local_addresses: frozenset[Address] = frozenset()
    previously_managed: frozenset[tuple[Portal, Role]] = frozenset()
    inherited: frozenset[Portal] = frozenset()
    user_space_esp: bool = False
    algorithms: frozenset[str] = frozenset()
    fast_aes: bool = True
    previous_key_first: Mapping[tuple[tuple[Peer, ...], Secret, Secret], bool] = field(default_factory=dict)
    reqids: Mapping[str, int] = field(default_factory=dict)
    foreign_reqids: frozenset[int] = frozenset()
