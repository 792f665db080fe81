"""Loads the wanted secrets and connections into charon, and unloads the others, except those that sessions use.

Law: ``core.ike.charon_diff`` decides what differs, ``core.ike.kept_connections`` what stays all the same; this
module reads, executes and remembers. No SA is begun or ended here.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import is_

from iscsi_ipsec.base.charon_sa import CharonState
from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.desired import Desired
from iscsi_ipsec.core.ike.charon_diff import (
    PROBE,
    Operation,
    plan,
    probes,
    superfluous_connections,
    without_connections,
    without_ends,
)
from iscsi_ipsec.core.ike.ike_failures import REFUSED_HINT
from iscsi_ipsec.core.ike.kept_connections import AskedBy, asked_by, held_back
from iscsi_ipsec.core.ike.vici_messages import EncodedConnection, Message
from iscsi_ipsec.service.accepted_connections import AcceptedConnections, Refusal
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.observe import Snapshot
from iscsi_ipsec.service.pass_schedule import RELOAD
from iscsi_ipsec.service.ports import Charon, CharonLog, Clock, ServiceManager
from iscsi_ipsec.service.problems import fields, held_back_problems, unlisted_problem

_log = logging.getLogger(__name__)

UNSETTLED_AT_MOST = 20.0
"""Seconds after which secrets and connections are loaded although the unit is still starting; if it drops them, they are loaded again."""

STARTING = frozenset({"activating", "reloading"})
"""systemd's ActiveState of a unit whose ``swanctl --load-all`` may be still to come."""

BULK = 100
"""From so many operations on, they are logged in one line, and charon's own lines about them are ignored:
journald takes 10,000 lines in 30 s from a service and drops what follows (RateLimitBurst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The contents of charon at the end of a pass. ``in_force``: the snapshot that it shall hold now;
    ``held``: connections that stay although nothing asks for them.
    """

    state: CharonState
    in_force: Snapshot
    operations: tuple[Operation, ...]
    held: frozenset[str]
    settled: bool

    @property
    def changed_connections(self) -> bool:
        """Whether a trap may have been loaded."""
        return self.settled and any(op.command.endswith("-conn") for op in self.operations)


class CharonReconciler:
    """Remembers the secrets that charon confirmed (for when it cannot list them all), accepted and refused
    versions, the files that asked for its connections, and since when its unit has been starting. ``writes`` counts for tests and metrics.
    """

    def __init__(
        self,
        charon: Charon,
        charon_log: CharonLog,
        failure_log: IkeFailureLog,
        service_manager: ServiceManager,
        clock: Clock,
    ) -> None:
        self._charon, self._charon_log, self._failure_log = charon, charon_log, failure_log
        self._service_manager, self._clock = service_manager, clock
        self._accepted = AcceptedConnections(clock)
        self._confirmed: frozenset[str] = frozenset()
        self._unsettled_since: float | None = None
        self._units: Mapping[str, str] | None = None
        self._agreed: tuple[object, ...] = ()
        self._held: frozenset[str] = frozenset()
        self._asked_by: dict[str, AskedBy] = {}
        self._asked_of: Desired | None = None
        self.writes = 0

    def forget_confirmed(self) -> None:
        """Forget the confirmations: charon may have lost something."""
        self._confirmed = frozenset()

    def try_refused_again(self) -> None:
        """Forget the refusals: charon may accept now."""
        self._accepted.try_again()

    def refused(self) -> Mapping[str, Refusal]:
        """The present refusals of charon, by connection."""
        return self._accepted.refused()

    def due(self) -> float | None:
        """Seconds until something that charon refused is tried again."""
        return self._accepted.due()

    def in_force(self, snapshot: Snapshot, state: CharonState) -> Snapshot:
        """The snapshot that charon shall hold now (:meth:`AcceptedConnections.in_force`)."""
        return self._accepted.in_force(snapshot, state)

    def reconcile(
        self, snapshot: Snapshot, state: CharonState, reasons: frozenset[str], problems: list[Problem]
    ) -> Agreement:
        """Load and unload the differences, unless charon's unit is still starting."""
        in_force = self.in_force(snapshot, state)
        operations = self._hold_back(self._plan(in_force, state), snapshot, reasons)
        settled = not operations or self._has_settled()
        if operations and settled:
            refused = self._apply(operations, in_force, state, problems)
            state = self.observe(
                problems, thorough=refused or any(op.command.endswith("-conn") for op in operations)
            )
            if refused:
                in_force = self.in_force(snapshot, state)
                if again := self._hold_back(self._plan(in_force, state), snapshot, reasons):
                    self._apply(again, in_force, state, problems)
                    state = self.observe(problems, thorough=True)
        if settled:
            self._accepted.note_accepted(in_force, state, self._held)
        problems.extend(self._refused_problems(snapshot))
        problems.extend(self._second_charon())
        problems.extend(held_back_problems(self._held))
        return Agreement(
            state=state, in_force=in_force, operations=operations, held=self._held, settled=settled
        )

    def _plan(self, snapshot: Snapshot, state: CharonState) -> tuple[Operation, ...]:
        """The operations for charon; none while the same inputs that agreed last are compared again."""
        loadable = self._accepted.loadable(snapshot)
        compared = (loadable.secrets, loadable.connections, state)
        if len(self._agreed) == len(compared) and all(map(is_, compared, self._agreed)):
            return ()
        operations = plan(*compared)
        self._agreed = () if operations else compared
        return operations

    def observe(self, problems: list[Problem], *, thorough: bool) -> CharonState:
        """The contents of charon; where it cannot list its secrets, those that it confirmed to have loaded."""
        state = self._charon.observe(thorough=thorough)
        if state.secrets is not None:
            self._confirmed = frozenset()
            return state
        if unlisted_problem() not in problems:
            problems.append(unlisted_problem())
        return replace(state, secrets=self._confirmed)

    def _has_settled(self) -> bool:
        """Whether charon's unit has finished starting or reloading, or takes longer than we wait.

        charon answers before ``ExecStartPost=swanctl --load-all`` has run, which throws away what was loaded
        before it; the unit is ``activating`` or ``reloading`` meanwhile.
        """
        self._units = self._service_manager.charon_units()
        if not STARTING & set(self._units.values()):
            self._unsettled_since = None
            return True
        now = self._clock.monotonic()
        if self._unsettled_since is None:
            self._unsettled_since = now
        return now - self._unsettled_since > UNSETTLED_AT_MOST

    def _second_charon(self) -> Iterator[Problem]:
        """The problem that two units of strongSwan run, each with a charon: they take UDP 500 from each other."""
        if self._units is None:
            self._units = self._service_manager.charon_units()
        running = sorted(unit for unit, state in self._units.items() if state == "active")
        if len(running) > 1:
            yield Problem(
                code="two-charons",
                message=f"{' and '.join(running)} both run, each with a charon: which of them answers a peer is a"
                " matter of chance",
                hint=f"keep one, as: systemctl disable --now {running[0]}, if your own connections are not in it",
            )

    def _hold_back(
        self, operations: tuple[Operation, ...], snapshot: Snapshot, reasons: frozenset[str]
    ) -> tuple[Operation, ...]:
        """The operations without those that unload connections which stay although nothing asks for them."""
        going = superfluous_connections(operations)
        if RELOAD in reasons or not (going or self._held):
            self._held = frozenset()
        elif snapshot.unknown or (snapshot.unanswered and not self._asked_by):
            self._held = going
        else:
            sas = self._charon.sas() if going else ()
            self._held = held_back(going, snapshot.desired, snapshot.world, sas, self._asked_by)
        if snapshot.desired != self._asked_of:
            self._asked_of = snapshot.desired
            held = {name: self._asked_by[name] for name in self._held & self._asked_by.keys()}
            self._asked_by = held | asked_by(snapshot.desired, snapshot.world)
        return without_ends(operations, self._held, self._accepted.secrets_of(self._held))

    def _apply(
        self,
        operations: tuple[Operation, ...],
        snapshot: Snapshot,
        state: CharonState,
        problems: list[Problem],
    ) -> bool:
        """Execute the operations; return whether charon refused a connection."""
        refusals = self._refused_by_probe(operations)
        operations = without_connections(operations, refusals)
        self.writes += len(operations)
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
        tried = [
            (name, probe)
            for name, probe in probes(operations)
            if not (
                isinstance(probe.wanted, EncodedConnection)
                and self._accepted.accepts(name, probe.wanted.child)
            )
        ]
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
