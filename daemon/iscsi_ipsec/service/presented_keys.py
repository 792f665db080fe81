"""Which of two valid keys goes first while a key is rotated: what is remembered of it, and what follows.

Law: ``core.ike.key_rotation`` decides; a decision becomes messages to charon in the pass after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.desired import Contest, Rotation
from iscsi_ipsec.core.ike.key_rotation import Front, turn
from iscsi_ipsec.core.ike.sa_lifecycle import SaOperation, TerminateIke, carrying
from iscsi_ipsec.service.ike_failure_log import Evidence
from iscsi_ipsec.service.observe import Look
from iscsi_ipsec.service.problems import fields

_log = logging.getLogger(__name__)


class Fronts:
    """Remembers which key of each rotation goes first. ``learnt``: that was asked of charon once."""

    def __init__(
        self,
        evidence: Evidence,
        do: Callable[[SaOperation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evidence, self._do, self._clock = evidence, do, clock
        self._fronts: dict[Contest, Front] = {}
        self._due: float | None = None
        self.learnt = False

    def learn(self, lagging: dict[Contest, bool]) -> None:
        """Take over what charon holds, so that after a start nothing is loaded anew for our sake."""
        self.learnt, now = True, self._clock()
        self._fronts = {c: Front(lagging=lags, since=now, doubts=0) for c, lags in lagging.items()}

    def lagging(self) -> dict[Contest, bool]:
        """For each rotation whether its previous key goes first."""
        return {contest: front.lagging for contest, front in self._fronts.items()}

    def try_new_keys(self) -> None:
        """Let initiators try the new key as if its time had come."""
        self._fronts = {c: replace(front, since=float("-inf")) for c, front in self._fronts.items()}

    def due(self) -> float | None:
        """Seconds until another key may have to go first."""
        return None if self._due is None else self._due - self._clock()

    def turn(self, look: Look, sas: tuple[IkeSa, ...]) -> bool:
        """Decide which keys go first from now on; whether that differs from what is loaded."""
        rotations = look.rotations()
        self._evidence.nameless = any(r.connections[0].role is Role.TARGET for r, _ in rotations)
        self._fronts, self._due = turn(rotations, self._fronts, sas, self._evidence.doubts(), self._clock())
        turned = [r for r, _ in rotations if self._fronts[r.contest].lagging is not r.lagging]
        for rotation in turned:
            self._follow(rotation, sas)
        if turned:
            self._due = self._clock()
        return bool(turned)

    def _follow(self, rotation: Rotation, sas: tuple[IkeSa, ...]) -> None:
        """Tell of the turn, and end what was begun with the other key."""
        names = {c.name for c in rotation.connections}
        which = "new" if rotation.lagging else "previous"
        for name in sorted(names):
            _log.info("%s shows the %s key from now on", name, which, extra=fields(item=name))
            if not self._fronts[rotation.contest].rounds:
                self._evidence.forget(name)
        if rotation.connections[0].role is Role.INITIATOR:
            for ike in sas:
                if ike.conn in names and not carrying(ike):
                    self._do(TerminateIke(ike.conn, ike.unique_id, True, "it was begun with the other key"))
