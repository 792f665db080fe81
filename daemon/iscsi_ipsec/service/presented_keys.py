"""Remembers which of two valid keys is presented during a rotation, and acts on a change of it.

Law: ``core.ike.key_rotation`` decides; the next pass turns a decision into messages to charon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from iscsi_ipsec.base.charon_sa import IkeSa
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.core.decide.desired import Rotation, RotationId
from iscsi_ipsec.core.ike.key_rotation import PresentedKey, choose_presented_key
from iscsi_ipsec.core.ike.sa_lifecycle import SaOperation, TerminateIke, carrying
from iscsi_ipsec.service.ike_failure_log import IkeFailureLog
from iscsi_ipsec.service.observe import Snapshot
from iscsi_ipsec.service.ports import Clock
from iscsi_ipsec.service.problems import fields

_log = logging.getLogger(__name__)


class PresentedKeys:
    """Remembers which key of each rotation takes precedence. ``learnt``: charon was asked for it once."""

    def __init__(
        self,
        failure_log: IkeFailureLog,
        do: Callable[[SaOperation], None],
        clock: Clock,
    ) -> None:
        self._failure_log, self._do, self._clock = failure_log, do, clock
        self._presented: dict[RotationId, PresentedKey] = {}
        self._due: float | None = None
        self.learnt = False

    def learn(self, previous_key_first: dict[RotationId, bool]) -> None:
        """Take over the order that charon has, so that after a start nothing is loaded anew."""
        self.learnt, now = True, self._clock.monotonic()
        self._presented = {
            c: PresentedKey(previous_key_first=previous_first, since=now, doubts=0)
            for c, previous_first in previous_key_first.items()
        }

    def previous_key_first(self) -> dict[RotationId, bool]:
        """For each rotation whether its previous key takes precedence."""
        return {
            rotation_id: presented.previous_key_first for rotation_id, presented in self._presented.items()
        }

    def try_new_keys(self) -> None:
        """Let initiators try the new key as if its time had come."""
        self._presented = {
            c: replace(presented, since=float("-inf")) for c, presented in self._presented.items()
        }

    def due(self) -> float | None:
        """Seconds until another key may have to be presented."""
        return None if self._due is None else self._due - self._clock.monotonic()

    def choose(self, snapshot: Snapshot, sas: tuple[IkeSa, ...]) -> bool:
        """Decide which keys take precedence from now on; return whether that differs from the loaded order."""
        rotations = snapshot.rotations()
        self._failure_log.nameless = any(r.connections[0].role is Role.TARGET for r, _ in rotations)
        self._presented, self._due = choose_presented_key(
            rotations, self._presented, sas, self._failure_log.doubts(), self._clock.monotonic()
        )
        turned = [
            r
            for r, _ in rotations
            if self._presented[r.rotation_id].previous_key_first is not r.previous_key_first
        ]
        for rotation in turned:
            self._follow(rotation, sas)
        if turned:
            self._due = self._clock.monotonic()
        return bool(turned)

    def _follow(self, rotation: Rotation, sas: tuple[IkeSa, ...]) -> None:
        """Log the change of key, and end negotiations that began with the other key."""
        names = {c.name for c in rotation.connections}
        which = "new" if rotation.previous_key_first else "previous"
        for name in sorted(names):
            _log.info("%s presents the %s key from now on", name, which, extra=fields(item=name))
            if not self._presented[rotation.rotation_id].rounds:
                self._failure_log.forget(name)
        if rotation.connections[0].role is Role.INITIATOR:
            for ike in sas:
                if ike.conn in names and not carrying(ike):
                    self._do(TerminateIke(ike.conn, ike.unique_id, True, "it was begun with the other key"))
