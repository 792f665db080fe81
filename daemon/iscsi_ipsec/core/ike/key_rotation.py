"""Chooses which of two valid keys is presented while a key is rotated.

Law: pure. The only memory is :class:`PresentedKey`, which the caller keeps, and time
comes in as a number. charon proves itself with one key, whatever it accepts:
of two that match, with the one that was loaded last. An IKEv2 peer's proof it
compares with both, in IKEv1 the key goes into all other keys, so that both
ends must have chosen the same.

- An initiator presents the new key. If refused, it presents the previous key and, while that key's SA is up,
  retries the new one every five minutes. When that SA is lost, it tries the new key first: the far end may
  have ended the SA because of the new key.
- A target presents the previous key until peers refuse it, and goes back to it if they refuse the new one. In
  IKEv1 it changes only after two refusals: an initiator that also has both keys changes after each, so both
  ends never change at once.

This module never ends an SA. Doubts are the negotiations that, by charon's log, may have failed because of the
key (``core.ike.ike_failures``); a lost doubt costs one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.core.decide.desired import Rotation, RotationId
from iscsi_ipsec.core.ike.sa_lifecycle import RETRY_DELAYS, carrying
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection

TRY_AGAIN = 300.0
"""Seconds after which an initiator with an SA of the previous key tries the new one again."""

UNNAMED = ""
"""The name under which doubts are counted while charon has found no connection for a negotiation yet: main mode's responder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedKey:
    """The key that is presented between two ends, since when (monotonic seconds), and how many doubts there were then.

    ``settled``: the previous key has an SA up. ``rounds``: how often both were refused.
    """

    previous_key_first: bool
    since: float
    doubts: int
    settled: bool = False
    rounds: int = 0


def choose_presented_key(
    rotations: Iterable[tuple[Rotation, tuple[EncodedConnection, ...]]],
    presented_keys: Mapping[RotationId, PresentedKey],
    sas: Iterable[IkeSa],
    doubts: Mapping[str, int],
    now: float,
) -> tuple[dict[RotationId, PresentedKey], float | None]:
    """Return the keys to present from now on, and when to decide again if nothing happens."""
    by_conn: dict[str, list[IkeSa]] = {}
    for ike in sas:
        by_conn.setdefault(ike.conn, []).append(ike)
    turned: dict[RotationId, PresentedKey] = {}
    dues: list[float] = []
    for rotation, encoded in rotations:
        doubted = _doubts(rotation, doubts)
        presented = presented_keys.get(rotation.rotation_id)
        if presented is None:
            presented = PresentedKey(
                previous_key_first=rotation.previous_key_first, since=now, doubts=doubted
            )
        if rotation.connections[0].role is Role.TARGET:
            turned[rotation.rotation_id] = _targets(rotation, presented, doubted, now)
            continue
        turned[rotation.rotation_id], due = _initiators(presented, _in_use(encoded, by_conn), doubted, now)
        if due is not None:
            dues.append(due)
    return turned, min(dues, default=None)


def _doubts(rotation: Rotation, doubts: Mapping[str, int]) -> int:
    count = sum(doubts.get(connection.name, 0) for connection in rotation.connections)
    main = any(c.role is Role.TARGET and c.ike is IkeMode.MAIN for c in rotation.connections)
    return count + doubts.get(UNNAMED, 0) if main else count


def _in_use(
    connections: Iterable[EncodedConnection], by_conn: Mapping[str, list[IkeSa]]
) -> tuple[bool, bool]:
    """Whether an SA carries packets under the new key, and whether one does under the previous one."""
    carried = [
        (encoded.rotation, child.child_name)
        for encoded in connections
        if encoded.rotation
        for ike in by_conn.get(encoded.name, ())
        for child in carrying(ike)
    ]
    new = any(name.startswith((parts.staged, parts.current)) for parts, name in carried)
    return new, any(name.startswith(parts.previous) for parts, name in carried)


def _initiators(
    presented: PresentedKey, in_use: tuple[bool, bool], doubts: int, now: float
) -> tuple[PresentedKey, float | None]:
    new, old = in_use
    if new:
        return PresentedKey(previous_key_first=False, since=presented.since, doubts=doubts), None
    if not presented.previous_key_first:
        if doubts > presented.doubts:
            return PresentedKey(
                previous_key_first=True, since=now, doubts=doubts, settled=old, rounds=presented.rounds
            ), now
        return presented, None
    if old:
        due = presented.since + TRY_AGAIN
        if now >= due:
            return PresentedKey(previous_key_first=False, since=now, doubts=doubts), now
        return replace(presented, settled=True), due
    if presented.settled:
        return PresentedKey(previous_key_first=False, since=now, doubts=doubts), now
    if doubts > presented.doubts:
        due = presented.since + RETRY_DELAYS[min(presented.rounds, len(RETRY_DELAYS) - 1)]
        if now >= due:
            return PresentedKey(
                previous_key_first=False, since=now, doubts=doubts, rounds=presented.rounds + 1
            ), now
        return presented, due
    return presented, None


def _targets(rotation: Rotation, presented: PresentedKey, doubts: int, now: float) -> PresentedKey:
    enough = 1 if all(c.ike is IkeMode.V2 for c in rotation.connections) else 2
    if doubts - presented.doubts < enough:
        return presented
    return PresentedKey(previous_key_first=not presented.previous_key_first, since=now, doubts=doubts)
