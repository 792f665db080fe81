"""Detects SAs that the far end may have lost: our sent bytes grow, and nothing comes back.

Law: pure. The only memory is :class:`Traffic`, which the caller keeps, and time comes in as a number. A far end
that crashed, failed over or was paused says nothing; charon would believe in its SA for 165 s, longer than
open-iscsi waits. Suspicion ends no SA: a new one is negotiated beside it (``core.ike.sa_lifecycle``), and a
far end that is merely slow answers in the old one meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.core.ike.sa_lifecycle import carrying

SILENT_FOR = 7.0
"""Seconds without an answer before the first suspicion: more than a stall of 5 s, and, with the negotiation, less than the
12.6 s after which TCP sends again what it sent 6.4 s before."""

GROWN = 2
"""Looks at which our sent bytes had grown since the one before: the first may have been the acknowledgement of the last answer."""

SILENT_AT_MOST = 300.0
"""Each new SA that stays unanswered as well doubles the time, up to this."""

IDLE_AFTER = 30.0
"""Seconds without a packet after which an SA is checked in regular passes only; open-iscsi sends a NOP-Out each 5 s."""

LOOK, CLOSER_LOOK = 2.0, 1.0
"""Seconds between two checks of SAs that are in use, and of those with an unanswered packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The traffic of a connection's SAs at the last look.

    ``answered``: when what came in had grown last (monotonic seconds); ``grown``: in how many looks since then what
    went out had grown; ``fruitless``: how many SAs in a row were suspected; ``active``: when either had grown last.
    """

    ikes: frozenset[int]
    children: frozenset[int]
    bytes_in: int
    bytes_out: int
    answered: float
    active: float
    grown: int = 0
    fruitless: int = 0

    def in_use(self, now: float) -> bool:
        """Whether anything has passed lately."""
        return now - self.active < IDLE_AFTER

    def suspected(self, now: float) -> bool:
        """Whether the far end may have lost the SAs."""
        patience = min(SILENT_FOR * 2**self.fruitless, SILENT_AT_MOST)
        return self.grown >= GROWN and now - self.answered >= patience


def watch_traffic(
    before: Mapping[str, Traffic], sas: Iterable[IkeSa], names: Iterable[str], now: float
) -> dict[str, Traffic]:
    """The traffic of the connections ``names``, those that this host initiates."""
    by_conn: dict[str, list[IkeSa]] = {name: [] for name in names}
    for ike in sas:
        if ike.conn in by_conn and carrying(ike):
            by_conn[ike.conn].append(ike)
    return {name: _seen(before.get(name), ikes, now) for name, ikes in by_conn.items() if ikes}


def suspects(
    traffic: Mapping[str, Traffic], sas: Iterable[IkeSa], unanswered: frozenset[int], now: float
) -> frozenset[int]:
    """The IKE SAs that the far end may have lost; ``unanswered``: those in which charon has sent its requests again and again."""
    return frozenset(
        ike.unique_id
        for ike in sas
        if (seen := traffic.get(ike.conn))
        and carrying(ike)
        and (seen.suspected(now) or (ike.unique_id in unanswered and seen.in_use(now)))
    )


def next_look(traffic: Mapping[str, Traffic], now: float) -> float | None:
    """Seconds until the next look; None where nothing is in use."""
    if any(seen.grown for seen in traffic.values()):
        return CLOSER_LOOK
    return LOOK if any(seen.in_use(now) for seen in traffic.values()) else None


def _seen(before: Traffic | None, ikes: list[IkeSa], now: float) -> Traffic:
    children = [child for ike in ikes for child in carrying(ike)]
    fresh = Traffic(
        ikes=frozenset(ike.unique_id for ike in ikes),
        children=frozenset(child.unique_id for child in children),
        bytes_in=sum(child.bytes_in for child in children),
        bytes_out=sum(child.bytes_out for child in children),
        answered=now,
        active=now,
    )
    if before is None:
        return fresh
    if fresh.children != before.children or fresh.ikes != before.ikes:
        lost = before.ikes - fresh.ikes and before.suspected(now)
        return replace(fresh, fruitless=before.fruitless + 1 if lost else before.fruitless)
    if fresh.bytes_in > before.bytes_in:
        return fresh
    grew = fresh.bytes_out > before.bytes_out
    return replace(
        before, bytes_out=fresh.bytes_out, grown=before.grown + grew, active=now if grew else before.active
    )
