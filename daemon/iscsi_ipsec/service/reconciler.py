"""One pass: observe, decide, make charon and the kernel agree, report.

Law: level-triggered. Nothing is done because something happened; a pass
compares what is wanted with what is, and whatever was missed, wiped or
meddled with is put right. The few things remembered between passes are
caches, or listed in :class:`Reconciler`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import is_

from iscsi_ipsec.adapters.netlink import GuardMonitor, PolicyMonitor
from iscsi_ipsec.adapters.nft import GuardState
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonRefused, CharonUnavailable
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.guard.ruleset import held_portals
from iscsi_ipsec.core.ike.charon_diff import PROBE, Operation, plan, probes, without_connections
from iscsi_ipsec.core.ike.ike_failures import AGGRESSIVE_OFF, REFUSED_HINT, Cause, refused_by_charon
from iscsi_ipsec.core.ike.loaded_state import (
    children_by_name,
    loaded_connections,
    rotations_by_name,
)
from iscsi_ipsec.core.ike.vici_messages import Message
from iscsi_ipsec.core.report.portal_status import Observed
from iscsi_ipsec.service.accepted_connections import AcceptedConnections
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import Observer, Snapshot
from iscsi_ipsec.service.ports import Charon, CharonLog, Clock, Files, ServiceManager, Xfrm
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions
from iscsi_ipsec.service.presented_keys import PresentedKeys
from iscsi_ipsec.service.problems import fields, unlisted_problem
from iscsi_ipsec.service.resync_schedule import (
    CHARON,
    POLICIES,
    RELOAD,
    ResyncSchedule,
    seconds_until_next_pass,
)
from iscsi_ipsec.service.sas import SaReconciler

_log = logging.getLogger(__name__)

UNSETTLED_AT_MOST = 20.0
"""Seconds after which a unit that still starts is loaded all the same; what it wipes is loaded again."""

FORGETTING = frozenset({"charon-down", IkeFailureLog.wiped, RELOAD})
"""Wakeups after which charon may hold less than it confirmed."""


TRYING_AGAIN = frozenset({"charon-up", "charon-down", RELOAD})
"""Wakeups after which charon may take what it refused before."""

CONNECTION_REASONS = frozenset({"charon-up", "charon-down", IkeFailureLog.wiped, CHARON})
"""Wakeups after which charon is asked for its connections with all their settings, and not only their names."""

POLICY_REASONS = frozenset({PolicyMonitor.reason, IkeFailureLog.duplicate, POLICIES})
"""Wakeups after which the kernel is asked whether it still has what charon installed."""

BULK = 100
"""So many operations at once are told in one line, and charon's own lines about them are not listened to:
journald takes 10,000 lines in 30 s from a service and drops what follows (RateLimitBurst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pass left behind. ``recheck_in`` is in seconds."""

    snapshot: Snapshot
    observed: Observed
    charon: CharonState | None
    guard: GuardState | None
    problems: tuple[Problem, ...]
    operations: tuple[Operation, ...]
    settled: bool
    recheck_in: float
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

    Remembered between passes: what charon confirmed to have loaded, for when it has
    more than it can list, and since when its unit starts; what its parts remember,
    they say themselves.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        reader: Files,
        managed: ManagedPortals,
        guard: GuardReconciler,
        earlier: PreexistingSessions,
        charon: Charon,
        failure_log: IkeFailureLog,
        charon_log: CharonLog,
        service_manager: ServiceManager,
        xfrm: Xfrm,
        clock: Clock,
    ) -> None:
        self._observer, self._reader, self._managed = observer, reader, managed
        self._guard, self._earlier, self._charon, self._failure_log = guard, earlier, charon, failure_log
        self._charon_log, self._service_manager, self._clock = charon_log, service_manager, clock
        self._sas = SaReconciler(charon, xfrm, clock)
        self._presented = PresentedKeys(failure_log, self._sas.execute, clock)
        self._accepted = AcceptedConnections(clock)
        self._confirmed: frozenset[str] = frozenset()
        self._unsettled_since: float | None = None
        self._new_traps = False
        self._agreed: tuple[object, ...] = ()
        self._loaded, self._guarded = Memo(loaded_connections), Memo(held_portals)
        self._children, self._rotations = Memo(children_by_name), Memo(rotations_by_name)
        self._turns = ResyncSchedule()
        self._size = 0
        self.counters = _Counters()

    def run(self, reasons: frozenset[str]) -> Outcome:
        """One whole pass. Raises only what is a bug."""
        begun = self._clock.monotonic()
        outcome = self._pass(self._turns.inputs_due(reasons, self._size))
        self._size = len(outcome.snapshot.config.rows) + len(outcome.snapshot.desired.portals)
        self.counters.passes += 1
        self.counters.initiations = self._sas.initiations
        self.counters.last_seconds = self._clock.monotonic() - begun
        self.counters.seconds += self.counters.last_seconds
        self.counters.failures = self._failure_log.failures()
        return outcome

    def _pass(self, reasons: frozenset[str]) -> Outcome:
        self._failure_log.expect_gone(())
        problems: list[Problem] = []
        if reasons & GuardMonitor.reasons:
            self._guard.restore(gone=GuardMonitor.gone in reasons)
        self._managed.grant_releases(problems)
        previously_managed = self._managed.previously_managed(problems)
        if RELOAD in reasons:
            self._reader.forget()
            self._presented.try_new_keys()
        snapshot = self._observer.observe(reasons, previously_managed, self._presented.previous_key_first())
        self.counters.files_opened = self._reader.opened
        guard_state = self._guard.reconcile(snapshot.desired, snapshot.config.settings, reasons, problems)
        self.counters.guard_loads = self._guard.loads
        self._managed.remember(snapshot.desired.portals, problems)
        problems.extend(self._earlier.follow(snapshot.desired.guarded, snapshot.world.sessions))
        state: CharonState | None = None
        sas: tuple[IkeSa, ...] = ()
        operations: tuple[Operation, ...] = ()
        settled = True
        try:
            if reasons & FORGETTING:
                self._confirmed = frozenset()
            state = self._observe(problems, thorough=bool(reasons & CONNECTION_REASONS))
            if state.plugins != self._observer.plugins:
                self._observer.plugins = state.plugins
                snapshot = self._observer.observe(
                    frozenset(), previously_managed, self._presented.previous_key_first()
                )
            if not self._presented.learnt:
                snapshot = self._learn_presented(snapshot, state, previously_managed)
            if reasons & TRYING_AGAIN:
                self._accepted.try_again()
            in_force = self._accepted.in_force(snapshot, state)
            # a trap that was just loaded may have found an SA of a charon that was killed
            if reasons & POLICY_REASONS or self._new_traps:
                state = self._sas.without_lost_traps(in_force, state)
            self._new_traps = False
            operations = self._plan(in_force, state)
            if operations:
                settled = self._has_settled()
            if operations and settled:
                refused = self._apply(operations, in_force, state, problems)
                self._new_traps = any(_of_connection(op) for op in operations)
                state = self._observe(problems, thorough=self._new_traps)
                if refused:
                    in_force = self._accepted.in_force(snapshot, state)
                    if again := self._plan(in_force, state):
                        self._apply(again, in_force, state, problems)
                        state = self._observe(problems, thorough=True)
            if settled:
                self._accepted.note_accepted(in_force, state)
                sas = self._keep_sas(snapshot, in_force, state)
            problems.extend(self._refused_problems(snapshot))
        except CharonUnavailable as err:
            state, settled = None, True
            self._confirmed = frozenset()
            self._sas.forget_attempts()
            problems.append(
                Problem(
                    code="charon-unreachable",
                    message=f"charon cannot be reached at {err.socket_path}: {err.reason}",
                    hint="systemctl status strongswan; guarded portals stay closed meanwhile",
                )
            )
        if saved := self._reader.save():
            problems.append(saved)
        self._observer.save(snapshot, problems)
        observed = self._observed(snapshot, state, sas, guard_state)
        return Outcome(
            snapshot=snapshot,
            observed=observed,
            charon=state,
            guard=guard_state,
            problems=tuple(dict.fromkeys((*snapshot.problems, *problems))),
            operations=operations,
            settled=settled,
            recheck_in=self._recheck_in(snapshot, bool(operations), settled, state),
            counters=self.counters,
        )

    def _plan(self, snapshot: Snapshot, state: CharonState) -> tuple[Operation, ...]:
        """What must be done to charon; nothing as long as what agreed last is compared again."""
        loadable = self._accepted.loadable(snapshot)
        compared = (loadable.secrets, loadable.connections, state)
        if len(self._agreed) == len(compared) and all(map(is_, compared, self._agreed)):
            return ()
        operations = plan(*compared)
        self._agreed = () if operations else compared
        return operations

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
        if self._service_manager.charon_settled():
            self._unsettled_since = None
            return True
        now = self._clock.monotonic()
        if self._unsettled_since is None:
            self._unsettled_since = now
        return now - self._unsettled_since > UNSETTLED_AT_MOST

    def _recheck_in(
        self, snapshot: Snapshot, changed: bool, settled: bool, state: CharonState | None
    ) -> float:
        return seconds_until_next_pass(
            snapshot.config.settings.resync_interval,
            charon_settled=settled,
            charon_reachable=state is not None,
            changed=changed,
            unresolved_names=any(problem.code == "name-not-resolved" for problem in snapshot.problems),
            due=(
                self._failure_log.seconds_until_error(),
                self._sas.due(),
                self._presented.due(),
                self._accepted.due(),
                snapshot.config.expires_in,
            ),
        )

    def _observed(
        self, snapshot: Snapshot, state: CharonState | None, sas: tuple[IkeSa, ...], guard: GuardState | None
    ) -> Observed:
        children = self._children(snapshot.connections)
        loaded = (
            self._loaded(snapshot.desired, snapshot.secrets, snapshot.connections, state)
            if state
            else frozenset()
        )
        guarded = self._guarded(guard.sets) if guard else frozenset()
        for ike in sas:
            for child in ike.children:
                if child.state == "INSTALLED" and child.child_name == children.get(ike.conn):
                    self._failure_log.settle(ike.conn, child.age)
        return Observed(
            sas=sas,
            sessions=snapshot.world.sessions,
            loaded=loaded,
            failed_repeatedly=self._sas.failed_repeatedly(),
            guarded=guarded,
            guard_wanted=snapshot.config.settings.guard,
            children=children,
            rotations=self._rotations(snapshot.connections),
            causes=self._causes(snapshot),
            charon_reachable=state is not None,
        )

    def _causes(self, snapshot: Snapshot) -> Mapping[str, Cause]:
        causes = dict(self._failure_log.causes())
        if self._failure_log.aggressive_off():
            for connection in snapshot.desired.connections:
                if connection.role is Role.TARGET and connection.ike is IkeMode.AGGRESSIVE:
                    causes[connection.name] = AGGRESSIVE_OFF
        for name, refusal in self._accepted.refused().items():
            causes[name] = refused_by_charon(refusal.reason)
        return causes

    def _apply(
        self,
        operations: tuple[Operation, ...],
        snapshot: Snapshot,
        state: CharonState,
        problems: list[Problem],
    ) -> bool:
        """Have charon do it; whether it refused a connection."""
        refusals = self._refused_by_probe(operations)
        operations = without_connections(operations, refusals)
        self.counters.vici_writes += len(operations)
        bulk = len(operations) > BULK
        going = {op.item for op in operations if op.command.startswith("unload-")}
        self._failure_log.expect_gone(going.union(*(state.conns.get(item, ()) for item in going)))
        with self._charon_log.without_log() if bulk else contextlib.nullcontext():
            results = self._charon.apply(
                ((op.command, op.message) for op in operations), self._service_manager.watchdog
            )
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
            elif operation.command == "load-conn":
                refusals[operation.item] = refused.reason
            else:
                problems.append(_refused_problem(operation, refused))
        self._confirmed = frozenset(confirmed)
        for connection in snapshot.connections:
            if connection.name in refusals:
                self._accepted.note_refused(connection, refusals[connection.name])
        if bulk:
            _log.info("charon took %s", ", ".join(f"{count} {command}" for command, count in done.items()))
        return bool(refusals)

    def _refused_by_probe(self, operations: tuple[Operation, ...]) -> dict[str, str]:
        """The connections whose new version charon would refuse, with its reasons; the loaded ones stay untouched."""
        tried = probes(operations)
        if not tried:
            return {}
        self._failure_log.expect_gone((PROBE,))
        commands: list[tuple[str, Message]] = []
        for _, probe in tried:
            commands += [(probe.command, probe.message), ("unload-conn", {"name": PROBE})]
        results = self._charon.apply(commands, self._service_manager.watchdog)[::2]
        return {
            name: refused.reason
            for (name, _), refused in zip(tried, results, strict=True)
            if refused is not None
        }

    def _refused_problems(self, snapshot: Snapshot) -> list[Problem]:
        refused = self._accepted.refused()
        return [
            Problem(
                code="charon-refused",
                message=f"charon refused {c.name}: {refused[c.name].reason}",
                hint=REFUSED_HINT,
                portal=str(c.binding.portal),
            )
            for c in (snapshot.desired.connections if refused else ())
            if c.name in refused
        ]

    def _keep_sas(self, snapshot: Snapshot, in_force: Snapshot, state: CharonState) -> tuple[IkeSa, ...]:
        sas = self._charon.sas()
        if self._presented.choose(snapshot, sas):
            return sas  # the next pass follows at once, and loads what has changed
        return self._sas.reconcile(in_force, state, sas)

    def _learn_presented(
        self, snapshot: Snapshot, state: CharonState, previously_managed: frozenset[tuple[Portal, Role]]
    ) -> Snapshot:
        known = self._observer.presented_in(snapshot, state.secrets or frozenset())
        self._presented.learn(known)
        return self._observer.observe(frozenset(), previously_managed, known) if known else snapshot


def _of_connection(operation: Operation) -> bool:
    return operation.command.endswith("-conn")


def _past(operation: Operation) -> str:
    """The operation's text as a fact: "loaded secret ..."."""
    verb, _, rest = operation.text.partition(" ")
    return f"{verb}ed {rest}"


def _refused_problem(operation: Operation, refused: CharonRefused) -> Problem:
    return Problem(
        code="charon-refused",
        message=f"charon refused {operation.command} of {operation.item}: {refused.reason}",
        hint=REFUSED_HINT,
    )
