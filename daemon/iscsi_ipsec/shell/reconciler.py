"""One pass: look at everything, decide, make charon and the kernel agree, tell.

Law: level-triggered. Nothing is done because something happened; a pass
compares what is wanted with what is, and whatever was missed, wiped or
meddled with is put right. The few things remembered between passes are
caches, or listed in :class:`Reconciler`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from operator import is_

from iscsi_ipsec.adapters import kernel
from iscsi_ipsec.adapters.charon import Charon
from iscsi_ipsec.adapters.guard import GuardState
from iscsi_ipsec.adapters.netlink import GuardMonitor, PolicyMonitor
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable, KernelUnavailable
from iscsi_ipsec.base.model import Address, IkeMode, Portal, Problem, Role
from iscsi_ipsec.base.sa import CharonState, IkeSa
from iscsi_ipsec.base.same import Same
from iscsi_ipsec.base.xfrm import KernelPolicy, KernelState
from iscsi_ipsec.core.causes import AGGRESSIVE_OFF, Cause
from iscsi_ipsec.core.compared import (
    children_by_name,
    loaded_connections,
    rotations_by_name,
    upheld_connections,
)
from iscsi_ipsec.core.desired import Contest
from iscsi_ipsec.core.nft import held_portals
from iscsi_ipsec.core.plan import Operation, plan
from iscsi_ipsec.core.rotation import Front, turn
from iscsi_ipsec.core.status import Observed
from iscsi_ipsec.core.traps import lost_traps, missing_sas, orphaned_sas, stranded_sas
from iscsi_ipsec.core.upkeep import (
    Attempts,
    Initiate,
    SaOperation,
    TerminateChild,
    TerminateIke,
    Upheld,
    carrying,
    next_due,
    plan_sas,
)
from iscsi_ipsec.shell.earlier import EarlierSessions
from iscsi_ipsec.shell.evidence import Evidence
from iscsi_ipsec.shell.guardkeeper import GuardKeeper
from iscsi_ipsec.shell.inventory import FileReader
from iscsi_ipsec.shell.look import Look, Looker
from iscsi_ipsec.shell.managed import ManagedPortals
from iscsi_ipsec.shell.telling import fields, unlisted_problem
from iscsi_ipsec.shell.turns import CHARON, POLICIES, RELOAD, Turns

_log = logging.getLogger(__name__)

LARVAL_GRACE = 2
"""Seconds that charon is left alone with an acquire before we initiate ourselves."""

UNSETTLED_LOOK = 0.2
"""Seconds until charon's unit is asked again whether it has finished starting."""

UNSETTLED_AT_MOST = 20.0
"""Seconds after which a unit that still starts is loaded all the same; what it wipes is loaded again."""

NAMES_AGAIN = 6.0
"""Seconds until names without an address are asked for again: what they may mean stays closed meanwhile."""

FORGETTING = frozenset({"charon-down", Evidence.wiped, RELOAD})
"""Wakeups after which charon may hold less than it confirmed."""

AFTERLOOK = 2.0
"""Seconds after which a change is looked at once more: a late swanctl --load-all makes no event."""


CONNECTION_REASONS = frozenset({"charon-up", "charon-down", Evidence.wiped, CHARON})
"""Wakeups after which charon is asked for its connections with all their settings, and not only their names."""

POLICY_REASONS = frozenset({PolicyMonitor.reason, Evidence.duplicate, POLICIES})
"""Wakeups after which the kernel is asked whether it still has what charon installed."""

BULK = 100
"""So many operations at once are told in one line, and charon's own lines about them are not listened to:
journald takes 10,000 lines in 30 s from a service and drops what follows (RateLimitBurst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass left behind. ``look_again`` is in seconds."""

    look: Look
    observed: Observed
    charon: CharonState | None
    guard: GuardState | None
    problems: tuple[Problem, ...]
    operations: tuple[Operation, ...]
    settled: bool
    look_again: float
    counters: _Counters


@dataclass(slots=True)
class _Counters:
    """What was done since the start, for tests, benchmarks and metrics."""

    passes: int = 0
    vici_writes: int = 0
    guard_loads: int = 0
    initiations: int = 0
    files_opened: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    failures: Mapping[str, int] = field(default_factory=dict)


class Reconciler:
    """Runs passes. Main thread only.

    Remembered between passes: attempts to bring SAs up (their backoff), the
    keys that connections had (so that a removed key's SAs end at once), which of two
    valid keys goes first, and what charon confirmed to have loaded, for when it has
    more than it can list; what its parts remember, they say themselves.
    """

    def __init__(
        self,
        *,
        looker: Looker,
        reader: FileReader,
        managed: ManagedPortals,
        guard: GuardKeeper,
        earlier: EarlierSessions,
        charon: Charon,
        evidence: Evidence,
        without_log: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        charon_settled: Callable[[], bool],
        policies: Callable[[], tuple[KernelPolicy, ...]] = kernel.policies,
        progress: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looker, self._reader, self._managed = looker, reader, managed
        self._guard, self._earlier, self._charon, self._evidence = guard, earlier, charon, evidence
        self._without_log, self._charon_settled = without_log, charon_settled
        self._policies, self._progress, self._clock = policies, progress, clock
        self._confirmed: frozenset[str] = frozenset()
        self._unsettled_since: float | None = None
        self._acquire_pending = False
        self._attempts: dict[str, Attempts] = {}
        self._orphaned: frozenset[str] = frozenset()
        self._new_traps = False
        self._keys_used: dict[str, tuple[str, str]] = {}
        self._previous_used: frozenset[str] = frozenset()
        self._revoked: frozenset[str] = frozenset()
        self._fronts: dict[Contest, Front] | None = None
        self._turn_due: float | None = None
        self._agreed: tuple[object, ...] = ()
        self._revoking: tuple[object, ...] = ()
        self._loaded, self._guarded = Same(loaded_connections), Same(held_portals)
        self._upholding, self._lost = Same(upheld_connections), Same(lost_traps)
        self._children, self._rotations = Same(children_by_name), Same(rotations_by_name)
        self._turns = Turns()
        self._size = 0
        self.counters = _Counters()

    def run(self, reasons: frozenset[str]) -> Outcome:
        """One whole pass. Raises only what is a bug."""
        begun = self._clock()
        outcome = self._pass(self._turns.asked(reasons, self._size))
        self._size = len(outcome.look.inventory.rows) + len(outcome.look.desired.portals)
        self.counters.passes += 1
        self.counters.last_seconds = self._clock() - begun
        self.counters.seconds += self.counters.last_seconds
        self.counters.failures = self._evidence.failures()
        return outcome

    def _pass(self, reasons: frozenset[str]) -> Outcome:
        self._evidence.expect_gone(())
        problems: list[Problem] = []
        if reasons & GuardMonitor.reasons:
            self._guard.restore(gone=GuardMonitor.gone in reasons)
        self._managed.grant_releases(problems)
        held = self._managed.held(problems)
        if RELOAD in reasons:
            self._reader.forget()
            self._try_new_keys()
        look = self._looker.look(reasons, held, self._lagging())
        self.counters.files_opened = self._reader.opened
        guard_state = self._guard.keep(look.desired, look.inventory.settings, reasons, problems)
        self.counters.guard_loads = self._guard.loads
        self._managed.remember(look.desired.portals, problems)
        problems.extend(self._earlier.follow(look.desired.guarded, look.world.sessions))
        state: CharonState | None = None
        sas: tuple[IkeSa, ...] = ()
        operations: tuple[Operation, ...] = ()
        settled = True
        try:
            if reasons & FORGETTING:
                self._confirmed = frozenset()
            state = self._observe(problems, thorough=bool(reasons & CONNECTION_REASONS))
            if state.plugins != self._looker.plugins:
                self._looker.plugins = state.plugins
                look = self._looker.look(frozenset(), held, self._lagging())
            if self._fronts is None:
                look = self._learn_fronts(look, state, held)
            # a trap that was just loaded may have found an SA of a charon that was killed
            if reasons & POLICY_REASONS or self._new_traps:
                state = self._without_lost_traps(look, state)
            self._new_traps = False
            operations = self._plan(look, state)
            if operations:
                settled = self._has_settled()
                if settled:
                    self._apply(operations, look, state, problems)
                    self._new_traps = any(_of_connection(op) for op in operations)
                    state = self._observe(problems, thorough=self._new_traps)
            if settled:
                sas = self._keep_sas(look, state)
        except CharonUnavailable as err:
            state, settled = None, True
            self._confirmed = frozenset()
            self._attempts.clear()
            problems.append(
                Problem(
                    code="charon-unreachable",
                    message=f"charon cannot be reached at {err.socket_path}: {err.reason}",
                    hint="systemctl status strongswan; guarded portals stay closed meanwhile",
                )
            )
        if saved := self._reader.save():
            problems.append(saved)
        self._looker.save(look, problems)
        observed = self._observed(look, state, sas, guard_state)
        return Outcome(
            look=look,
            observed=observed,
            charon=state,
            guard=guard_state,
            problems=tuple(dict.fromkeys((*look.problems, *problems))),
            operations=operations,
            settled=settled,
            look_again=self._look_again(look, bool(operations), settled, state),
            counters=self.counters,
        )

    def _plan(self, look: Look, state: CharonState) -> tuple[Operation, ...]:
        """What must be done to charon; nothing as long as what agreed last is compared again."""
        compared = (look.secrets, look.connections, state)
        if len(self._agreed) == len(compared) and all(map(is_, compared, self._agreed)):
            return ()
        operations = plan(*compared)
        self._agreed = () if operations else compared
        return operations

    def _without_lost_traps(self, look: Look, state: CharonState) -> CharonState:
        """What charon holds, less the children whose policies the kernel does not have any more.

        Their SAs end as well: as long as one lives, charon takes its policy for installed. So do
        those of served portals, for the initiator to negotiate anew.
        """
        # in this order: an SA that comes up in between has its policies, and is not judged
        sas = self._charon.sas()
        try:
            policies = self._policies()
        except KernelUnavailable:  # a kernel without XFRM has no traps either
            return state
        states = _states()
        self._orphaned = orphaned_sas(look.desired.connections, sas, policies, states)
        self._end_missing(look, missing_sas(look.desired.connections, sas, states))
        lost = self._lost.of(look.desired.connections, policies) & state.conns.keys()
        stranded = stranded_sas(look.desired.connections, sas, policies)
        for ike in (*(ike for ike in sas if ike.conn in lost), *stranded):
            self._do(TerminateIke(ike.conn, ike.unique_id, True, "its policies are gone from the kernel"))
        if not lost:
            return state
        for name in sorted(lost):
            about = fields(item=name, note="policies-gone")
            _log.warning("the kernel's policies of %s are gone", name, extra=about)
        return replace(state, conns={**state.conns, **dict.fromkeys(lost, frozenset())})

    def _end_missing(self, look: Look, missing: tuple[IkeSa, ...]) -> None:
        """End the SAs that charon alone believes in; one that just went by itself is not missing any more."""
        if missing:
            first = {ike.unique_id for ike in missing}
            for ike in missing_sas(look.desired.connections, self._charon.sas(), _states()):
                if ike.unique_id in first:
                    self._do(TerminateIke(ike.conn, ike.unique_id, True, "its SAs are gone from the kernel"))

    def _observe(self, problems: list[Problem], *, thorough: bool) -> CharonState:
        """What charon holds; where it cannot list its secrets, those that it confirmed to have loaded."""
        state = self._charon.observe(thorough=thorough)
        if state.secrets is not None:
            self._confirmed = frozenset()
            return state
        if unlisted_problem() not in problems:
            problems.append(unlisted_problem())
        return replace(state, secrets=self._confirmed)

    def _has_settled(self) -> bool:
        """Whether charon's unit is done with starting or reloading, or takes longer than we wait."""
        if self._charon_settled():
            self._unsettled_since = None
            return True
        now = self._clock()
        if self._unsettled_since is None:
            self._unsettled_since = now
        return now - self._unsettled_since > UNSETTLED_AT_MOST

    def _look_again(self, look: Look, changed: bool, settled: bool, state: CharonState | None) -> float:
        if not settled:
            return UNSETTLED_LOOK
        again = look.inventory.settings.resync_interval
        if state is None:
            again = min(again, 1.0)
        if changed:
            again = min(again, AFTERLOOK)
        ripens = self._evidence.ripens()
        if ripens is not None:
            again = min(again, ripens + 0.05)
        if self._acquire_pending:
            again = min(again, LARVAL_GRACE)
        if any(problem.code == "name-not-resolved" for problem in look.problems):
            again = min(again, NAMES_AGAIN)
        for due in (next_due(self._attempts), self._turn_due):
            if due is not None:
                again = min(again, max(0.05, due - self._clock()))
        if look.inventory.expires_in is not None:
            again = min(again, look.inventory.expires_in)
        return again

    def _observed(
        self, look: Look, state: CharonState | None, sas: tuple[IkeSa, ...], guard: GuardState | None
    ) -> Observed:
        children = self._children.of(look.connections)
        loaded = (
            self._loaded.of(look.desired, look.secrets, look.connections, state) if state else frozenset()
        )
        guarded = self._guarded.of(guard.sets) if guard else frozenset()
        for ike in sas:
            for child in ike.children:
                if child.state == "INSTALLED" and child.child_name == children.get(ike.conn):
                    self._evidence.settle(ike.conn, child.age)
        return Observed(
            sas=sas,
            sessions=look.world.sessions,
            loaded=loaded,
            struggling=frozenset(name for name, attempt in self._attempts.items() if attempt.count > 1),
            guarded=guarded,
            guard_wanted=look.inventory.settings.guard,
            children=children,
            rotations=self._rotations.of(look.connections),
            causes=self._causes(look),
            charon_reachable=state is not None,
        )

    def _causes(self, look: Look) -> Mapping[str, Cause]:
        causes = dict(self._evidence.causes())
        if self._evidence.aggressive_off():
            for connection in look.desired.connections:
                if connection.role is Role.TARGET and connection.ike is IkeMode.AGGRESSIVE:
                    causes[connection.name] = AGGRESSIVE_OFF
        return causes

    def _apply(
        self, operations: tuple[Operation, ...], look: Look, state: CharonState, problems: list[Problem]
    ) -> None:
        self.counters.vici_writes += len(operations)
        bulk = len(operations) > BULK
        going = {op.item for op in operations if op.command.startswith("unload-")}
        self._evidence.expect_gone(going.union(*(state.conns.get(item, ()) for item in going)))
        with self._without_log() if bulk else contextlib.nullcontext():
            results = self._charon.apply(((op.command, op.message) for op in operations), self._progress)
        done = Counter[str]()
        confirmed = set(self._confirmed)
        level = logging.DEBUG if bulk else logging.INFO
        for operation, refused in zip(operations, results, strict=True):
            if refused is None:
                done[operation.command] += 1
                if operation.command == "load-shared":
                    confirmed.add(operation.item)
                elif operation.command == "unload-shared":
                    confirmed.discard(operation.item)
                if _log.isEnabledFor(level):
                    _log.log(level, "%s", _past(operation), extra=fields(item=operation.item))
            else:
                problems.append(_refused_problem(operation, refused, look))
        self._confirmed = frozenset(confirmed)
        if bulk:
            _log.info("charon took %s", ", ".join(f"{count} {command}" for command, count in done.items()))

    def _keep_sas(self, look: Look, state: CharonState) -> tuple[IkeSa, ...]:
        sas = self._charon.sas()
        if self._turned(look, sas):
            return sas  # the next pass follows at once, and loads what has changed
        upheld = self._upheld(look, state)
        self._note_revoked(look, sas)
        operations, self._attempts = plan_sas(upheld, sas, self._attempts, self._clock(), self._revoked)
        for operation in operations:
            self._do(operation)
        return self._charon.sas() if operations else sas

    # -- which of two valid keys goes first

    def _lagging(self) -> dict[Contest, bool]:
        return {contest: front.lagging for contest, front in (self._fronts or {}).items()}

    def _learn_fronts(self, look: Look, state: CharonState, held: frozenset[tuple[Portal, Role]]) -> Look:
        """After a start: what charon holds is kept, so that nothing is loaded anew for our sake."""
        known = self._looker.fronts_in(look, state.secrets or frozenset())
        doubts, now = 0, self._clock()
        self._fronts = {c: Front(lagging=lagging, since=now, doubts=doubts) for c, lagging in known.items()}
        return self._looker.look(frozenset(), held, self._lagging()) if known else look

    def _try_new_keys(self) -> None:
        """Let initiators try the new key as if its time had come."""
        if self._fronts is not None:
            self._fronts = {c: replace(front, since=float("-inf")) for c, front in self._fronts.items()}

    def _turned(self, look: Look, sas: tuple[IkeSa, ...]) -> bool:
        """Decide which keys go first from now on; whether that differs from what is loaded."""
        rotations = look.rotations()
        self._evidence.nameless = any(r.connections[0].role is Role.TARGET for r, _ in rotations)
        self._fronts, self._turn_due = turn(
            rotations, self._fronts or {}, sas, self._evidence.doubts(), self._clock()
        )
        turned = [r for r, _ in rotations if self._fronts[r.contest].lagging is not r.lagging]
        for rotation in turned:
            names = {c.name for c in rotation.connections}
            which = "new" if rotation.lagging else "previous"
            for name in sorted(names):
                _log.info("%s shows the %s key from now on", name, which, extra=fields(item=name))
                if not self._fronts[rotation.contest].rounds:
                    self._evidence.forget(name)
            if rotation.connections[0].role is Role.INITIATOR:
                for ike in sas:
                    if ike.conn in names and not carrying(ike):
                        self._do(
                            TerminateIke(ike.conn, ike.unique_id, True, "it was begun with the other key")
                        )
        if turned:
            self._turn_due = self._clock()
        return bool(turned)

    def _upheld(self, look: Look, state: CharonState) -> tuple[Upheld, ...]:
        asked = _asked_for()
        waiting = {address for address, age in asked.items() if age >= LARVAL_GRACE}
        # a failure may come before the grace is over, and no event comes after it
        young = asked.keys() - waiting
        self._acquire_pending = any(c.remote_address in young for c in look.desired.connections if young)
        with_session = frozenset(session.remote for session in look.world.sessions)
        return self._upholding.of(
            look.desired.connections,
            look.connections,
            state.conns,
            with_session,
            frozenset(waiting),
            self._orphaned,
        )

    def _note_revoked(self, look: Look, sas: tuple[IkeSa, ...]) -> None:
        noted = (look.world.keys, look.desired.connections, look.connections)
        if noted == self._revoking and not (self._revoked or self._previous_used):
            return
        self._revoking = noted
        paths = {key.path for key in look.world.keys}
        now_used = {
            c.name: (c.key.path, s.key_part)
            for c, s in zip(look.desired.connections, look.connections, strict=True)
        }
        rotations = [s.rotation for s in look.connections if s.rotation]
        in_use = {part for _, part in now_used.values()}.union(*(r.parts for r in rotations))
        revoked = {part for path, part in self._keys_used.values() if path not in paths} | self._revoked
        # what only the previous key made ends with its time, or with its line
        revoked |= self._previous_used
        self._previous_used = frozenset(r.previous for r in rotations)
        alive = {child.child_name for ike in sas for child in ike.children}
        self._revoked = frozenset(
            part for part in revoked - in_use if any(name.startswith(part) for name in alive)
        )
        self._keys_used = now_used

    def _do(self, operation: SaOperation) -> None:
        try:
            match operation:
                case Initiate(conn=conn, child=child):
                    self.counters.initiations += 1
                    self._charon.initiate(conn, child)
                    _log.info("negotiation of %s begun", conn, extra=fields(item=conn))
                case TerminateIke(conn=conn, ike_id=ike_id, force=force, why=why):
                    self._charon.terminate(ike_id=ike_id, force=force)
                    about = fields(item=conn, note="sa-ended")
                    _log.info("IKE SA %s of %s ended: %s", ike_id, conn, why, extra=about)
                case TerminateChild(conn=conn, child_id=child_id, why=why):
                    self._charon.terminate(child_id=child_id)
                    _log.info("CHILD SA %s of %s ended: %s", child_id, conn, why, extra=fields(item=conn))
        except CharonRefused as refused:
            _log.warning("charon refused: %s", refused.reason, extra=fields(item=refused.item))


def _asked_for() -> dict[Address, int]:
    """Outer addresses for which the kernel has asked for an SA and got none so far, with the seconds since."""
    return {state.dst: state.age for state in _states() if state.larval}


def _states() -> tuple[KernelState, ...]:
    try:
        return kernel.states()
    except KernelUnavailable:  # a kernel without XFRM: user-space ESP does without it
        return ()


def _of_connection(operation: Operation) -> bool:
    return operation.command.endswith("-conn")


def _past(operation: Operation) -> str:
    """The operation's text as a fact: "loaded secret ..."."""
    verb, _, rest = operation.text.partition(" ")
    return f"{verb}ed {rest}"


def _refused_problem(operation: Operation, refused: CharonRefused, look: Look) -> Problem:
    connection = next((c for c in look.desired.connections if c.name == operation.item), None)
    return Problem(
        code="charon-refused",
        message=f"charon refused {operation.command} of {operation.item}: {refused.reason}",
        hint="compare the proposals and addresses in the policy with what this charon supports",
        portal=str(connection.seat.portal) if connection else "",
    )
