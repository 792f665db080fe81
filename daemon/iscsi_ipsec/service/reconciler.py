"""One pass: observe, decide, make charon and the kernel agree, report.

Law: level-triggered. A pass never acts on an event as such; it compares the wanted state with the actual one,
and repairs whatever was missed, wiped or changed by others. The few things remembered between passes are
caches, or listed in :class:`Reconciler`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from iscsi_ipsec.adapters.netlink import GuardMonitor, PolicyMonitor
from iscsi_ipsec.adapters.nft import GuardState
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonUnavailable
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.policy import IkeMode, Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.world import ManagedBefore
from iscsi_ipsec.core.guard.ruleset import held_portals
from iscsi_ipsec.core.ike.charon_diff import (
    Operation,
)
from iscsi_ipsec.core.ike.ike_failures import (
    AGGRESSIVE_OFF,
    PEER_LOST,
    Cause,
    negotiation_failed,
    refused_by_charon,
)
from iscsi_ipsec.core.ike.loaded_state import (
    children_by_name,
    earlier_reqids,
    loaded_connections,
    rotations_by_name,
)
from iscsi_ipsec.core.ike.sa_lifecycle import carrying
from iscsi_ipsec.core.report.portal_status import Observed
from iscsi_ipsec.service.bridged_guests import BridgedGuests
from iscsi_ipsec.service.charon_contents import Agreement, CharonReconciler
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.managed_portals import ManagedPortals
from iscsi_ipsec.service.observe import ROUTE_REASONS, Observer, Snapshot
from iscsi_ipsec.service.pass_schedule import (
    CHARON,
    POLICIES,
    RELOAD,
    ResyncSchedule,
    seconds_until_next_pass,
)
from iscsi_ipsec.service.ports import Charon, CharonLog, Clock, Files, ServiceManager, Xfrm
from iscsi_ipsec.service.preexisting_sessions import PreexistingSessions
from iscsi_ipsec.service.presented_keys import PresentedKeys
from iscsi_ipsec.service.problems import kernel_problem
from iscsi_ipsec.service.sas import SaReconciler

_log = logging.getLogger(__name__)

FORGETTING = frozenset({"charon-down", IkeFailureLog.wiped, RELOAD})
"""Wakeups after which charon may hold less than it confirmed."""


TRYING_AGAIN = frozenset({"charon-up", "charon-down", RELOAD})
"""Wakeups after which charon may accept versions that it refused before."""

CONNECTION_REASONS = frozenset({"charon-up", "charon-down", IkeFailureLog.wiped, CHARON})
"""Wakeups after which charon is asked for its connections with all their settings, and not only their names."""

POLICY_REASONS = frozenset({PolicyMonitor.reason, IkeFailureLog.duplicate, POLICIES})
"""Wakeups after which the kernel is asked whether it still has what charon installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a pass. ``recheck_in`` is in seconds."""

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
    """Counters since the start, for tests, benchmarks and metrics."""

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

    Remembered between passes: the reqids of SAs that an earlier version negotiated. The classes of its parts
    document what they remember.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        reader: Files,
        managed: ManagedPortals,
        guard: GuardReconciler,
        earlier: PreexistingSessions,
        bridged: BridgedGuests,
        charon: Charon,
        failure_log: IkeFailureLog,
        charon_log: CharonLog,
        service_manager: ServiceManager,
        xfrm: Xfrm,
        clock: Clock,
    ) -> None:
        self._observer, self._reader, self._managed = observer, reader, managed
        self._bridged = bridged
        self._guard, self._earlier, self._charon, self._failure_log = guard, earlier, charon, failure_log
        self._charon_log, self._service_manager, self._clock = charon_log, service_manager, clock
        self._sas = SaReconciler(charon, xfrm, failure_log, clock)
        self._presented = PresentedKeys(failure_log, self._sas.execute, clock)
        self._contents = CharonReconciler(charon, charon_log, failure_log, service_manager, clock)
        self._new_traps = False
        self._admitted: frozenset[tuple[Portal, int]] | None = None
        self._loaded, self._guarded = Memo(loaded_connections), Memo(held_portals)
        self._children, self._rotations = Memo(children_by_name), Memo(rotations_by_name)
        self._turns = ResyncSchedule()
        self._size = 0
        self.counters = _Counters()

    def run(self, reasons: frozenset[str]) -> Outcome:
        """Run one whole pass. An exception from it is a bug."""
        begun = self._clock.monotonic()
        outcome = self._pass(self._turns.inputs_due(reasons, self._size))
        self._size = len(outcome.snapshot.config.rows) + len(outcome.snapshot.desired.portals)
        self.counters.passes += 1
        self.counters.vici_writes = self._contents.writes
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
        guard_state = self._guard.reconcile(
            snapshot.desired,
            snapshot.config.settings,
            reasons,
            problems,
            self._reqids_of_earlier_sas(snapshot),
        )
        self.counters.guard_loads = self._guard.loads
        self._managed.remember(snapshot.desired.portals, problems)
        self._observer.save_reqids(snapshot.desired, problems)
        problems.extend(self._earlier.follow(snapshot.desired.guarded, snapshot.world.sessions))
        if snapshot.config.settings.guard and snapshot.config.settings.guard_forward:
            network_changed = bool(reasons & ROUTE_REASONS)
            problems.extend(self._bridged.problems(snapshot.desired.guarded, network_changed=network_changed))
        state: CharonState | None = None
        sas: tuple[IkeSa, ...] = ()
        operations: tuple[Operation, ...] = ()
        settled, guard_lags = True, False
        try:
            if "charon-down" in reasons:
                self._failure_log.forget_all()
            if reasons & FORGETTING:
                self._contents.forget_confirmed()
            if reasons & TRYING_AGAIN:
                self._contents.try_refused_again()
            state = self._contents.observe(problems, thorough=bool(reasons & CONNECTION_REASONS))
            has = (state.plugins, state.algorithms or self._observer.algorithms)
            if has != (self._observer.plugins, self._observer.algorithms):
                self._observer.plugins, self._observer.algorithms = has
                snapshot = self._observer.observe(
                    frozenset(), previously_managed, self._presented.previous_key_first()
                )
            if not self._presented.learnt:
                snapshot = self._learn_presented(snapshot, state, previously_managed)
            # a trap that was just loaded may have found an SA of a charon that was killed
            if reasons & POLICY_REASONS or self._new_traps:
                state = self._sas.without_lost_traps(self._contents.in_force(snapshot, state), state)
            self._new_traps = False
            agreement = self._contents.reconcile(snapshot, state, reasons, problems)
            state, operations, settled = agreement.state, agreement.operations, agreement.settled
            self._new_traps = agreement.changed_connections
            if settled:
                sas = self._keep_sas(snapshot, agreement)
                admitted = self._admitted
                self._admitted = earlier_reqids(snapshot.desired, sas, agreement.held)
                guard_lags = admitted != self._admitted
        except CharonUnavailable as err:
            state, settled = None, True
            self._contents.forget_confirmed()
            self._sas.forget_attempts()
            self._failure_log.forget_all()
            problems.append(
                Problem(
                    code="charon-unreachable",
                    message=f"charon cannot be reached at {err.socket_path}: {err.reason}",
                    hint="systemctl status strongswan; guarded portals stay closed meanwhile",
                )
            )
        if self._sas.unanswered and any(not c.user_space_esp for c in snapshot.desired.connections):
            problems.append(kernel_problem(self._sas.unanswered))
        self._sas.unanswered = None
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
            recheck_in=0.0 if guard_lags else self._recheck_in(snapshot, bool(operations), settled, state),
            counters=self.counters,
        )

    def _reqids_of_earlier_sas(self, snapshot: Snapshot) -> frozenset[tuple[Portal, int]]:
        """The reqids that the guard admits besides; read before the first table is loaded, so that an upgrade cuts no SA."""
        if self._admitted is None:
            with contextlib.suppress(CharonUnavailable):
                self._admitted = earlier_reqids(snapshot.desired, self._charon.sas(), held=None)
        return self._admitted or frozenset()

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
                self._contents.due(),
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
            reqids=snapshot.desired.reqids,
            causes=self._causes(snapshot, sas),
            charon_reachable=state is not None,
        )

    def _causes(self, snapshot: Snapshot, sas: tuple[IkeSa, ...]) -> Mapping[str, Cause]:
        causes = dict(self._failure_log.causes())
        if self._failure_log.aggressive_off():
            for connection in snapshot.desired.connections:
                if connection.role is Role.TARGET and connection.ike is IkeMode.AGGRESSIVE:
                    causes[connection.name] = AGGRESSIVE_OFF
        failed = self._sas.failed_repeatedly() - causes.keys() - {ike.conn for ike in sas if carrying(ike)}
        for connection in snapshot.desired.connections if failed else ():
            if connection.name in failed and connection.role is Role.INITIATOR:
                last = self._failure_log.last_line(connection.name)
                causes[connection.name] = negotiation_failed(last)
        causes.update(dict.fromkeys(self._sas.suspected(), PEER_LOST))
        for name, refusal in self._contents.refused().items():
            causes[name] = refused_by_charon(refusal.reason)
        return causes

    def _keep_sas(self, snapshot: Snapshot, agreement: Agreement) -> tuple[IkeSa, ...]:
        sas = self._charon.sas()
        if self._presented.choose(snapshot, sas):
            return sas  # the next pass follows at once, and loads what has changed
        return self._sas.reconcile(agreement.in_force, agreement.state, sas, agreement.held)

    def _learn_presented(
        self, snapshot: Snapshot, state: CharonState, previously_managed: ManagedBefore
    ) -> Snapshot:
        known = self._observer.presented_in(snapshot, state.secrets or frozenset())
        self._presented.learn(known)
        return self._observer.observe(frozenset(), previously_managed, known) if known else snapshot
