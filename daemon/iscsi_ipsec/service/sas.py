"""Keeps the SAs: brings up missing ones, replaces outdated ones, ends those that nothing asks for.

Law: ``core.ike.sa_lifecycle`` and ``core.ike.kernel_drift`` decide; this module observes and executes. A
refusal by charon is reported and waits for the next pass.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from iscsi_ipsec.base.addresses import Address
from iscsi_ipsec.base.charon_sa import CharonState, IkeSa
from iscsi_ipsec.base.errors import CharonRefused, KernelUnavailable
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.xfrm import KernelState
from iscsi_ipsec.core.ike.kernel_drift import lost_traps, missing_sas, orphaned_sas, stranded_sas
from iscsi_ipsec.core.ike.loaded_state import sa_targets
from iscsi_ipsec.core.ike.sa_lifecycle import (
    Initiate,
    RetryState,
    SaOperation,
    SaTarget,
    TerminateChild,
    TerminateIke,
    next_due,
    plan_sas,
)
from iscsi_ipsec.core.ike.silent_peers import Traffic, next_look, suspects, watch_traffic
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.observe import Snapshot
from iscsi_ipsec.service.ports import Charon, Clock, Xfrm
from iscsi_ipsec.service.problems import fields

_log = logging.getLogger(__name__)

LARVAL_GRACE = 2
"""Seconds that charon is left alone with an acquire before we initiate ourselves."""


class SaReconciler:
    """Remembers the attempts to bring SAs up (their backoff), and which keys connections had,
    so that a removed key's SAs end at once. ``initiations`` counts for tests and metrics;
    ``unanswered`` is what the kernel refused to say in this pass.
    """

    def __init__(self, charon: Charon, xfrm: Xfrm, failure_log: IkeFailureLog, clock: Clock) -> None:
        self._charon, self._xfrm, self._failure_log, self._clock = charon, xfrm, failure_log, clock
        self._traffic: dict[str, Traffic] = {}
        self._refusals: dict[str, str] = {}
        self._attempts: dict[str, RetryState] = {}
        self._acquire_pending = False
        self._orphaned: frozenset[str] = frozenset()
        self._keys_used: dict[str, tuple[str, str]] = {}
        self._previous_used: frozenset[str] = frozenset()
        self._revoked: frozenset[str] = frozenset()
        self._revoking: tuple[object, ...] = ()
        self._targets, self._lost = Memo(sa_targets), Memo(lost_traps)
        self.initiations = 0
        self.unanswered: KernelUnavailable | None = None

    def reconcile(
        self,
        snapshot: Snapshot,
        state: CharonState,
        sas: tuple[IkeSa, ...],
        held: frozenset[str] = frozenset(),
    ) -> tuple[IkeSa, ...]:
        """Bring these SAs to the wanted state; return the SAs afterwards. Those of ``held`` connections stay."""
        targets = self._sa_targets(snapshot, state)
        self._note_revoked(snapshot, sas)
        now = self._clock.monotonic()
        watched = [target.name for target in targets if target.initiator]
        self._traffic = watch_traffic(self._traffic, sas, watched, now)
        suspected = suspects(self._traffic, sas, self._failure_log.unanswered(), now)
        operations, self._attempts = plan_sas(
            targets, sas, self._attempts, now, self._revoked, held, suspected
        )
        self._refusals = {c: r for c, r in self._refusals.items() if c in self._attempts}
        for operation in operations:
            if isinstance(operation, Initiate) and operation.beside:
                self._load_other_times(operation.conn, snapshot)
            self.execute(operation)
        return self._charon.sas() if operations else sas

    def failed_repeatedly(self) -> frozenset[str]:
        """The connections whose negotiation failed more than once."""
        return frozenset(name for name, attempt in self._attempts.items() if attempt.count > 1)

    def suspected(self) -> frozenset[str]:
        """The connections whose SA the far end may have lost."""
        return frozenset(name for name, attempt in self._attempts.items() if attempt.instead_of)

    def _load_other_times(self, name: str, snapshot: Snapshot) -> None:
        """Load a connection so that charon takes no IKE SA that there is for it."""
        wanted = next(c for c in snapshot.connections if c.name == name)
        other = wanted.with_other_times(int(self._clock.monotonic()))
        self._failure_log.expect_gone((name, wanted.child))
        _log.info(
            "the peer of %s does not answer in its SA: negotiating beside it", name, extra=fields(item=name)
        )
        messages = (("unload-conn", {"name": name}), ("load-conn", other.message))
        for refused in self._charon.apply(messages):
            if refused:
                _log.warning("charon refused: %s", refused.reason, extra=fields(item=name))

    def forget_attempts(self) -> None:
        """Forget failed attempts: the charon in which they failed is gone."""
        self._attempts.clear()
        self._refusals.clear()
        self._traffic.clear()

    def due(self) -> float | None:
        """Seconds until SAs must be checked even if nothing happens."""
        grace = LARVAL_GRACE if self._acquire_pending else None
        attempt = next_due(self._attempts)
        retry = None if attempt is None else attempt - self._clock.monotonic()
        look = next_look(self._traffic, self._clock.monotonic())
        return min((due for due in (grace, retry, look) if due is not None), default=None)

    def without_lost_traps(self, snapshot: Snapshot, state: CharonState) -> CharonState:
        """The SAs that charon holds, without children whose policies the kernel has lost.

        Their SAs end as well: as long as one lives, charon assumes that its policy is installed. SAs of
        served portals end too, so that the initiator negotiates anew.
        """
        # SAs are read before policies: an SA that comes up in between is not in the list
        sas = self._charon.sas()
        try:
            policies = self._xfrm.policies()
            states = self._xfrm.states()
        except KernelUnavailable as err:  # unknown is not lost; and a kernel without XFRM has no traps either
            self.unanswered = err
            return state
        self._orphaned = orphaned_sas(snapshot.desired.connections, sas, policies, states)
        self._end_missing(snapshot, missing_sas(snapshot.desired.connections, sas, states))
        lost = self._lost(snapshot.desired.connections, policies) & state.conns.keys()
        stranded = stranded_sas(snapshot.desired.connections, sas, policies)
        for ike in (*(ike for ike in sas if ike.conn in lost), *stranded):
            self.execute(TerminateIke(ike.conn, ike.unique_id, True, "its policies are gone from the kernel"))
        if not lost:
            return state
        for name in sorted(lost):
            about = fields(item=name, note="policies-gone")
            _log.warning("the kernel's policies of %s are gone", name, extra=about)
        return replace(state, conns={**state.conns, **dict.fromkeys(lost, frozenset())})

    def execute(self, operation: SaOperation) -> None:
        """Have charon begin or end a negotiation or an SA, and log it."""
        try:
            match operation:
                case Initiate(conn=conn, child=child):
                    self.initiations += 1
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
            # each attempt may end so, every 20 s and for ever: one warning for each change
            known = self._refusals.get(operation.conn) == refused.reason
            self._refusals[operation.conn] = refused.reason
            level = logging.DEBUG if known else logging.WARNING
            _log.log(level, "charon refused: %s", refused.reason, extra=fields(item=refused.item))

    def _end_missing(self, snapshot: Snapshot, missing: tuple[IkeSa, ...]) -> None:
        """End the SAs that exist in charon but not in the kernel; an SA that just ended by itself is skipped."""
        if missing:
            first = {ike.unique_id for ike in missing}
            sas, states = self._charon.sas(), self._states()
            if states is None:
                return
            for ike in missing_sas(snapshot.desired.connections, sas, states):
                if ike.unique_id in first:
                    self.execute(
                        TerminateIke(ike.conn, ike.unique_id, True, "its SAs are gone from the kernel")
                    )

    def _sa_targets(self, snapshot: Snapshot, state: CharonState) -> tuple[SaTarget, ...]:
        asked = self._asked_for()
        waiting = {address for address, age in asked.items() if age >= LARVAL_GRACE}
        # a failure may come before the grace is over, and no event comes after it
        young = asked.keys() - waiting
        self._acquire_pending = any(c.remote_address in young for c in snapshot.desired.connections if young)
        with_session = frozenset(s.remote for s in snapshot.world.sessions if not s.is_offloaded)
        return self._targets(
            snapshot.desired.connections,
            snapshot.connections,
            state.conns,
            with_session,
            frozenset(waiting),
            self._orphaned,
        )

    def _note_revoked(self, snapshot: Snapshot, sas: tuple[IkeSa, ...]) -> None:
        noted = (snapshot.world.keys, snapshot.desired.connections, snapshot.connections)
        if noted == self._revoking and not (self._revoked or self._previous_used):
            return
        self._revoking = noted
        paths = {key.path for key in snapshot.world.keys}
        now_used = {
            c.name: (c.key.path, s.key_part)
            for c, s in zip(snapshot.desired.connections, snapshot.connections, strict=True)
        }
        rotations = [s.rotation for s in snapshot.connections if s.rotation]
        in_use = {part for _, part in now_used.values()}.union(*(r.parts for r in rotations))
        revoked = {part for path, part in self._keys_used.values() if path not in paths} | self._revoked
        # SAs of the previous key end when its time is over, or its line is removed
        revoked |= self._previous_used
        self._previous_used = frozenset(r.previous for r in rotations)
        alive = {child.child_name for ike in sas for child in ike.children}
        self._revoked = frozenset(
            part for part in revoked - in_use if any(name.startswith(part) for name in alive)
        )
        self._keys_used = now_used

    def _asked_for(self) -> dict[Address, int]:
        """Outer addresses for which the kernel has asked for an SA and got none so far, with the seconds since."""
        return {state.dst: state.age for state in self._states() or () if state.larval}

    def _states(self) -> tuple[KernelState, ...] | None:
        """The kernel's states; None where it does not answer: a kernel without XFRM, or one that is out of memory."""
        try:
            return self._xfrm.states()
        except KernelUnavailable as err:
            self.unanswered = err
            return None
