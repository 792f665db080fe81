"""Remembers the version of each connection that charon accepted last; it stays in force when charon refuses a new one.

Law: memory only. After a start only the names that charon lists are known: a
connection that charon holds and would refuse in its new version is left as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection, EncodedSecret, key_part_of
from iscsi_ipsec.service.observe import Snapshot
from iscsi_ipsec.service.ports import Clock

FIRST_DELAY, LAST_DELAY = 10.0, 600.0
"""Seconds until a refused version is offered to charon again: the first, doubling up to the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A version of a connection that charon did not take, and when (monotonic seconds) to try it again."""

    child: str
    reason: str
    count: int
    due: float


@dataclass(frozen=True, slots=True)
class _Accepted:
    connection: EncodedConnection
    secrets: tuple[EncodedSecret, ...]


class AcceptedConnections:
    """Remembers which wanted versions charon holds, and which it refused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accepted: dict[str, _Accepted] = {}
        self._refusals: dict[str, Refusal] = {}
        self._noted: tuple[object, ...] = ()

    def in_force(self, snapshot: Snapshot, state: CharonState) -> Snapshot:
        """The snapshot that charon shall hold now: with the last accepted version of each connection whose new version it refused.

        The same object where charon refused nothing.
        """
        wanted = {connection.name: connection for connection in snapshot.connections}
        self._refusals = {
            name: refusal
            for name, refusal in self._refusals.items()
            if name in wanted and wanted[name].child == refusal.child
        }
        refused = {name for name, refusal in self._refusals.items() if self._clock.monotonic() < refusal.due}
        if not refused:
            return snapshot
        connections: list[EncodedConnection] = []
        extra: list[EncodedSecret] = []
        for connection in snapshot.connections:
            kept = self._kept(connection, snapshot, state) if connection.name in refused else None
            connections.append(kept.connection if kept else connection)
            extra += kept.secrets if kept else ()
        return _with(snapshot, connections, extra)

    def loadable(self, in_force: Snapshot) -> Snapshot:
        """The snapshot without refused connections of which charon holds no other version: these wait until their next attempt."""
        now = self._clock.monotonic()
        waiting = {
            c.name
            for c in in_force.connections
            if (refusal := self._refusals.get(c.name)) and refusal.child == c.child and now < refusal.due
        }
        if not waiting:
            return in_force
        return _with(in_force, [c for c in in_force.connections if c.name not in waiting], ())

    def _kept(
        self, connection: EncodedConnection, snapshot: Snapshot, state: CharonState
    ) -> _Accepted | None:
        accepted = self._accepted.get(connection.name)
        if accepted:
            key = accepted.connection.connection.key
            valid = any(key.path == known.path for known in snapshot.world.keys)
            return accepted if valid else None
        loaded = state.conns.get(connection.name, frozenset())
        if len(loaded) != 1:
            return None
        (child,) = loaded
        # only the names are known; what charon holds is compared by them alone
        named = dataclasses.replace(connection, child=child, key_part=key_part_of(child), rotation=None)
        return _Accepted(named, ())

    def note_refused(self, connection: EncodedConnection, reason: str) -> None:
        """Note that charon refused this version."""
        before = self._refusals.get(connection.name)
        count = before.count + 1 if before and before.child == connection.child else 1
        delay = min(FIRST_DELAY * 2 ** (count - 1), LAST_DELAY)
        self._refusals[connection.name] = Refusal(
            child=connection.child, reason=reason, count=count, due=self._clock.monotonic() + delay
        )

    def note_accepted(self, snapshot: Snapshot, state: CharonState, held: frozenset[str]) -> None:
        """Remember the wanted versions that charon holds, and keep those of ``held`` connections."""
        noted = (snapshot.secrets, snapshot.connections, state.conns, held)
        if len(self._noted) == len(noted) and all(a is b for a, b in zip(noted, self._noted, strict=True)):
            return
        self._noted = noted
        by_owners: dict[object, tuple[EncodedSecret, ...]] = {}
        for secret in snapshot.secrets:
            by_owners[secret.entry.owners] = (*by_owners.get(secret.entry.owners, ()), secret)
        accepted = {
            c.name: _Accepted(c, by_owners.get(c.connection.pair, ()))
            for c in snapshot.connections
            if state.conns.get(c.name) == frozenset({c.child})
        }
        names = {c.name for c in snapshot.connections} | held
        self._accepted = {n: a for n, a in self._accepted.items() if n in names} | accepted
        for name in accepted.keys() & self._refusals.keys():
            if accepted[name].connection.child == self._refusals[name].child:
                del self._refusals[name]

    def accepts(self, name: str, child: str) -> bool:
        """Whether this version of the connection is the one that charon took last."""
        accepted = self._accepted.get(name)
        return accepted is not None and accepted.connection.child == child

    def secrets_of(self, names: frozenset[str]) -> frozenset[str] | None:
        """The secrets of these connections as charon accepted them; None where it did so before the daemon started."""
        if not names <= self._accepted.keys():
            return None
        return frozenset(secret.id for name in names for secret in self._accepted[name].secrets)

    def refused(self) -> Mapping[str, Refusal]:
        """The present refusals of charon, by connection."""
        return self._refusals

    def try_again(self) -> None:
        """Forget the refusals, since charon may accept now: it was restarted, or somebody asked to read everything again."""
        self._refusals.clear()

    def due(self) -> float | None:
        """Seconds until the first refused version is tried again."""
        if not self._refusals:
            return None
        return min(refusal.due for refusal in self._refusals.values()) - self._clock.monotonic()


def _with(
    snapshot: Snapshot, connections: Iterable[EncodedConnection], extra: Iterable[EncodedSecret]
) -> Snapshot:
    """The snapshot with these connections, and with these secrets where it has none of the same owners."""
    encoded = tuple(connections)
    owned = {secret.entry.owners for secret in snapshot.secrets}
    added = {s.id: s for s in extra if s.entry.owners not in owned}
    desired = dataclasses.replace(
        snapshot.desired,
        connections=tuple(c.connection for c in encoded),
        secrets=(*snapshot.desired.secrets, *(s.entry for s in added.values())),
    )
    return dataclasses.replace(
        snapshot, desired=desired, connections=encoded, secrets=(*snapshot.secrets, *added.values())
    )
