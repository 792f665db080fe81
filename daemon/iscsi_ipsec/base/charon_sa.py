"""Secrets, connections and SAs of charon, as frozen values.

Law: values only. ``adapters.charon`` fills them from VICI; the field names
follow strongSwan's ``list_ike`` and ``list_child`` (vici_query.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CharonState:
    """The contents of charon: our secrets' ids, our connections with their children, and how many are not ours.

    VICI never gives a secret's data back, hence ids that change with the data. ``secrets``
    None: charon holds more (others' counted in) than one answer of its can list. ``algorithms`` are those
    that its plugins have, by charon's names; empty: it did not say.
    """

    version: str
    plugins: frozenset[str]
    secrets: frozenset[str] | None
    conns: Mapping[str, frozenset[str]]
    foreign_conns: int
    algorithms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSa:
    """A CHILD_SA. ``encr`` and the like are charon's names, empty if not there (dh_group: no PFS yet).

    Times are seconds; ``rekey_in`` and ``life_in`` are None when charon set
    none and negative when overdue. SPIs are 8 hex digits, empty unless the
    SA is or was installed. ``mode`` is what was negotiated, which may differ
    from what was configured (``TRANSPORT``, ``TUNNEL``).
    """

    conn: str
    child_name: str
    unique_id: int
    state: str
    mode: str
    reqid: int
    spi_in: str
    spi_out: str
    encr: str
    encr_keysize: int
    integ: str
    dh_group: str
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    age: int
    rekey_in: int | None
    life_in: int | None
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSa:
    """An IKE_SA of one of our connections; ``age`` is 0 until it is ESTABLISHED."""

    conn: str
    unique_id: int
    version: int
    state: str
    initiator: bool
    local_host: str
    remote_host: str
    local_id: str
    remote_id: str
    encr: str
    encr_keysize: int
    integ: str
    prf: str
    dh_group: str
    age: int
    rekey_in: int | None
    children: tuple[ChildSa, ...]
    initiator_spi: str = ""
