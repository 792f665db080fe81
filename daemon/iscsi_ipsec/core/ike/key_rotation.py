"""Which of two valid keys goes first while a key is rotated.

Law: pure. The only memory is :class:`Front`, which the caller keeps, and time
comes in as a number. charon proves itself with one key, whatever it accepts:
of two that match, with the one that was loaded last. An IKEv2 peer's proof it
compares with both, in IKEv1 the key goes into all other keys, so that both
ends must have chosen the same.

- An initiator shows the new key. Refused, it shows the previous one, and does so
  while that has an SA up, but for a try of the new one now and then. When that
  SA is lost, the new key is tried first: the far end may have ended it for it.
- A target shows the previous key until peers turn away from it, and back if
  they turn away from the new one. In IKEv1 it takes two, since an initiator
  that has both keys as well changes its mind at each: never both at once.

An SA is never ended here. Doubts are what charon's log says of negotiations that
came to nothing over a key (:mod:`causes`); losing one costs a try.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.core.decide.desired import Contest, Rotation
from iscsi_ipsec.core.ike.sa_lifecycle import RETRY_DELAYS, carrying
from iscsi_ipsec.core.ike.vici_messages import SpelledConnection

TRY_AGAIN = 300.0
"""Seconds after which an initiator with an SA of the previous key tries the new one again."""

UNNAMED = ""
"""Where doubts are counted of a negotiation that no connection has been found for yet: main mode's responder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Which key goes first between two ends, since when (monotonic seconds), and how many doubts there were then.

    ``settled``: the previous key has an SA up. ``rounds``: how often both were refused.
    """

    lagging: bool
    since: float
    doubts: int
    settled: bool = False
    rounds: int = 0


def turn(
    rotations: Iterable[tuple[Rotation, tuple[SpelledConnection, ...]]],
    fronts: Mapping[Contest, Front],
    sas: Iterable[IkeSa],
    doubts: Mapping[str, int],
    now: float,
) -> tuple[dict[Contest, Front], float | None]:
    """Return the fronts from now on, and when to look again if nothing happens."""
    by_conn: dict[str, list[IkeSa]] = {}
    for ike in sas:
        by_conn.setdefault(ike.conn, []).append(ike)
    turned: dict[Contest, Front] = {}
    dues: list[float] = []
    for rotation, spelled in rotations:
        doubted = _doubts(rotation, doubts)
        front = fronts.get(rotation.contest)
        if front is None:
            front = Front(lagging=rotation.lagging, since=now, doubts=doubted)
        if rotation.connections[0].role is Role.TARGET:
            turned[rotation.contest] = _targets(rotation, front, doubted, now)
            continue
        turned[rotation.contest], due = _initiators(front, _in_use(spelled, by_conn), doubted, now)
        if due is not None:
            dues.append(due)
    return turned, min(dues, default=None)


def _doubts(rotation: Rotation, doubts: Mapping[str, int]) -> int:
    count = sum(doubts.get(connection.name, 0) for connection in rotation.connections)
    main = any(c.role is Role.TARGET and c.ike is IkeMode.MAIN for c in rotation.connections)
    return count + doubts.get(UNNAMED, 0) if main else count


def _in_use(
    connections: Iterable[SpelledConnection], by_conn: Mapping[str, list[IkeSa]]
) -> tuple[bool, bool]:
    """Whether an SA carries packets under the new key, and whether one does under the previous one."""
    carried = [
        (spelled.rotation, child.child_name)
        for spelled in connections
        if spelled.rotation
        for ike in by_conn.get(spelled.name, ())
        for child in carrying(ike)
    ]
    new = any(name.startswith((parts.staged, parts.current)) for parts, name in carried)
    return new, any(name.startswith(parts.previous) for parts, name in carried)


def _initiators(
    front: Front, in_use: tuple[bool, bool], doubts: int, now: float
) -> tuple[Front, float | None]:
    new, old = in_use
    if new:
        return Front(lagging=False, since=front.since, doubts=doubts), None
    if not front.lagging:
        if doubts > front.doubts:
            return Front(lagging=True, since=now, doubts=doubts, settled=old, rounds=front.rounds), now
        return front, None
    if old:
        due = front.since + TRY_AGAIN
        if now >= due:
            return Front(lagging=False, since=now, doubts=doubts), now
        return replace(front, settled=True), due
    if front.settled:
        return Front(lagging=False, since=now, doubts=doubts), now
    if doubts > front.doubts:
        due = front.since + RETRY_DELAYS[min(front.rounds, len(RETRY_DELAYS) - 1)]
        if now >= due:
            return Front(lagging=False, since=now, doubts=doubts, rounds=front.rounds + 1), now
        return front, due
    return front, None


def _targets(rotation: Rotation, front: Front, doubts: int, now: float) -> Front:
    enough = 1 if all(c.ike is IkeMode.V2 for c in rotation.connections) else 2
    if doubts - front.doubts < enough:
        return front
    return Front(lagging=not front.lagging, since=now, doubts=doubts)
