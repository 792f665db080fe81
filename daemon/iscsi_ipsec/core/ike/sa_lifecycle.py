"""Decides which SAs to start, replace and end.

Law: pure. The only memory is :class:`RetryState`, which the caller keeps, and
time comes in as a number. A child's name identifies the settings and key under which it was negotiated (``core.ike.vici_messages``), so an outdated SA is one whose
name is not the wanted one.

Replacing is make-before-break: the new SA is negotiated beside the old one,
and the old one ends when the new one carries traffic. SAs of a removed key
end at once; those of a changed key end after :data:`RETRY_DELAYS` have passed
in vain, so that both ends can be given the new key one after the other. While
two keys are valid side by side, SAs of neither end for their key.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from iscsi_ipsec.base.charon_sa import ChildSa, IkeSa

CARRYING = frozenset({"INSTALLED", "UPDATING", "REKEYING"})
"""CHILD_SA states in which packets pass (child_sa.h)."""

RETRY_DELAYS = (4.0, 6.0, 10.0, 15.0, 20.0)
"""Seconds to wait for an attempt before the next; the last repeats. All stay far below
open-iscsi's replacement_timeout of 120 s, and the first leaves a slow peer time to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaTarget:
    """A connection as this module sees it.

    ``wanted_now``: traffic waits for it, or it shall be up always. ``valid``:
    what the names of children begin with whose key is valid too. Not ``loaded``:
    charon does not hold it, so that its SAs can only be left alone.
    """

    name: str
    child: str
    key_part: str
    initiator: bool
    wanted_now: bool
    valid: frozenset[str] = frozenset()
    loaded: bool = True


@dataclass(frozen=True, slots=True)
class Initiate:
    """Negotiate the connection's child; ``beside``: in an IKE SA of its own, whatever IKE SAs there are."""

    conn: str
    child: str
    beside: bool = False


@dataclass(frozen=True, slots=True)
class TerminateIke:
    """End an IKE_SA with its children; ``force``: without waiting for the peer."""

    conn: str
    ike_id: int
    force: bool
    why: str


@dataclass(frozen=True, slots=True)
class TerminateChild:
    """End one CHILD_SA."""

    conn: str
    child_id: int
    why: str


SaOperation = Initiate | TerminateIke | TerminateChild


@dataclass(frozen=True, slots=True)
class RetryState:
    """How often a child was initiated without coming up, and when (monotonic seconds) to try again.

    ``instead_of``: the IKE SAs that end when it is up, since the far end may have lost them.
    """

    child: str
    count: int
    due: float
    instead_of: frozenset[int] = frozenset()


def carrying(ike: IkeSa) -> tuple[ChildSa, ...]:
    """The children of an IKE_SA that pass packets."""
    return tuple(child for child in ike.children if child.state in CARRYING)


def plan_sas(
    targets: Iterable[SaTarget],
    sas: Iterable[IkeSa],
    attempts: Mapping[str, RetryState],
    now: float,
    revoked: frozenset[str] = frozenset(),
    held: Container[str] = (),
    suspects: frozenset[int] = frozenset(),
) -> tuple[tuple[SaOperation, ...], dict[str, RetryState]]:
    """Return the operations and the attempts to remember until the next call.

    ``revoked`` holds ``key_part`` prefixes whose key was removed: SAs negotiated under them end now. ``held`` are connections whose SAs stay although nothing asks for them.
    ``suspects`` are IKE SAs that the far end may have lost: each ends when another one is up beside it.
    """
    by_conn: dict[str, list[IkeSa]] = {}
    for ike in sas:
        by_conn.setdefault(ike.conn, []).append(ike)
    operations: list[SaOperation] = []
    memory: dict[str, RetryState] = {}
    for wanted in targets:
        mine = by_conn.pop(wanted.name, [])
        if not mine and not wanted.wanted_now:
            continue  # as nearly all of thousands
        known = attempts.get(wanted.name)
        gone = {ike.unique_id for ike in mine if _under(ike, revoked) or _has_waited(ike, wanted, known, now)}
        operations += [
            TerminateIke(i.conn, i.unique_id, True, "its key is no longer valid")
            for i in mine
            if i.unique_id in gone
        ]
        mine = [ike for ike in mine if ike.unique_id not in gone]
        if not wanted.loaded:
            continue
        current = [ike for ike in mine if any(child.child_name == wanted.child for child in carrying(ike))]
        if current and not wanted.initiator:
            # many peers may share a served connection: a new SA of one says nothing about the others
            came = {ike.remote_id.lower() for ike in current}  # a name is the same in any case
            operations += _end_outdated(wanted, [ike for ike in mine if ike.remote_id.lower() in came])
            mine = [ike for ike in mine if ike.remote_id.lower() not in came]
        elif current:
            more, attempt = _beside(wanted, mine, current, suspects, known, now)
            operations += more
            if attempt:
                memory[wanted.name] = attempt
            continue
        outdated = any(carrying(ike) for ike in mine)
        if wanted.initiator and (wanted.wanted_now or outdated or gone):
            more, memory[wanted.name] = _attempt(wanted, mine, known, now)
            operations += more
        elif any(carrying(ike) and not _under(ike, wanted.valid) for ike in mine):
            memory[wanted.name] = _count_grace(wanted, known, now)
    for leftover in by_conn.values():
        operations += [
            TerminateIke(i.conn, i.unique_id, False, "nothing asks for it any more")
            for i in leftover
            if i.state != "DELETING" and i.conn not in held
        ]
    return tuple(operations), memory


def next_due(attempts: Mapping[str, RetryState]) -> float | None:
    """When the earliest attempt is due again (monotonic seconds), None where none waits."""
    return min((a.due for a in attempts.values()), default=None)


def _under(ike: IkeSa, key_parts: frozenset[str]) -> bool:
    return any(child.child_name.startswith(part) for child in ike.children for part in key_parts)


def _has_waited(ike: IkeSa, wanted: SaTarget, known: RetryState | None, now: float) -> bool:
    """Whether the grace period of an SA with an earlier key is over: an attempt for each delay was made, and none is under way."""
    if known is None or known.child != wanted.child:
        return False
    if known.count < len(RETRY_DELAYS) or now < known.due:
        return False
    return bool(ike.children) and not _under(ike, wanted.valid | {wanted.key_part})


def _count_grace(wanted: SaTarget, known: RetryState | None, now: float) -> RetryState:
    """A responder cannot initiate; it only counts the delays in which the peer may come with the new key."""
    if known is None or known.child != wanted.child:
        return RetryState(wanted.child, 1, now + RETRY_DELAYS[0])
    if now < known.due:
        return known
    return RetryState(
        wanted.child, known.count + 1, now + RETRY_DELAYS[min(known.count, len(RETRY_DELAYS) - 1)]
    )


def _end_outdated(wanted: SaTarget, mine: list[IkeSa]) -> list[SaOperation]:
    operations: list[SaOperation] = []
    for ike in mine:
        if ike.state == "DELETING":
            continue
        live = carrying(ike)
        outdated = [child for child in live if child.child_name != wanted.child]
        if not wanted.initiator and _under(ike, wanted.valid):
            continue  # it may be another peer's, and its initiator ends it when it has a new one
        if outdated and len(outdated) == len(live):
            operations.append(
                TerminateIke(wanted.name, ike.unique_id, False, "replaced by one with the new settings")
            )
        else:
            operations += [
                TerminateChild(wanted.name, child.unique_id, "replaced by one with the new settings")
                for child in outdated
            ]
    return operations


def _beside(
    wanted: SaTarget,
    mine: list[IkeSa],
    current: list[IkeSa],
    suspects: frozenset[int],
    known: RetryState | None,
    now: float,
) -> tuple[list[SaOperation], RetryState | None]:
    """The operations where an SA has the wanted settings: end outdated SAs, and replace one that the far end may have lost."""
    begun = known if known and known.child == wanted.child and known.instead_of else None
    suspected = frozenset(ike.unique_id for ike in mine if ike.unique_id in suspects)
    dead = suspected | (begun.instead_of if begun else frozenset())
    if any(ike.unique_id not in dead for ike in current):
        lost: list[SaOperation] = [
            TerminateIke(wanted.name, ike.unique_id, True, "its peer did not answer, and a new one is up")
            for ike in mine
            if ike.unique_id in dead
        ]
        return [*lost, *_end_outdated(wanted, [i for i in mine if i.unique_id not in dead])], None
    if not suspected:  # the far end answers again: what is under way may still come up, nothing new is begun
        underway = any(not carrying(ike) for ike in mine)
        return [], begun if underway else None
    if begun is None:
        begun = RetryState(wanted.child, 0, now, dead)
    operations, attempt = _attempt(wanted, mine, replace(begun, instead_of=dead), now)
    return operations, attempt


def _attempt(
    wanted: SaTarget, mine: list[IkeSa], last: RetryState | None, now: float
) -> tuple[list[SaOperation], RetryState]:
    """Initiate when the next attempt is due.

    An IKE_SA without children may be an attempt under way or one that
    wedged (IKEv1 stays REKEYING and ignores acquires): the IKE_SA gets one delay, then it is dropped, because
    ``initiate`` would queue behind it for ever.
    """
    if last is None or last.child != wanted.child:
        last = RetryState(wanted.child, 0, now)
        underway = any(ike.state == "CONNECTING" for ike in mine)
        if underway:  # the trap was faster; give it the time of a first attempt
            last = replace(last, count=1, due=now + RETRY_DELAYS[0])
    if now < last.due:
        return [], last
    operations: list[SaOperation] = [
        TerminateIke(wanted.name, ike.unique_id, True, "it failed")
        for ike in mine
        if not carrying(ike) and (ike.state != "ESTABLISHED" or last.count)
    ]
    operations.append(Initiate(wanted.name, wanted.child, bool(last.instead_of)))
    delay = RETRY_DELAYS[min(last.count, len(RETRY_DELAYS) - 1)]
    return operations, RetryState(wanted.child, last.count + 1, now + delay, last.instead_of)
