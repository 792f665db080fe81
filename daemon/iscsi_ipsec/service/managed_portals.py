"""Remembers portals that were managed once: they stay closed until an admin releases them.

Law: the store is read once and then kept up to date; a portal is remembered before
its connection exists, and forgotten only on request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os

from iscsi_ipsec.adapters.state_db import ManagedRecord
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.policy import Role
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.decide.desired import PortalView
from iscsi_ipsec.core.decide.world import ManagedBefore
from iscsi_ipsec.core.guard import ruleset
from iscsi_ipsec.service.paths import RELOAD_REQUEST, Paths
from iscsi_ipsec.service.ports import Clock, Store
from iscsi_ipsec.service.problems import fields, state_problem

_log = logging.getLogger(__name__)

_Records = dict[tuple[Portal, Role], ManagedRecord]


class ManagedPortals:
    """The memory of managed portals, and the requests to forget one.

    A portal that cannot be stored is remembered all the same, and stored when that works again.
    """

    def __init__(self, paths: Paths, store: Store, clock: Clock) -> None:
        self._paths, self._store, self._clock = paths, store, clock
        self._held: _Records | None = None
        self._unsaved: _Records = {}
        self._previously_managed: ManagedBefore | None = None
        self._seen: tuple[PortalView, ...] | None = None
        self._renewals = store.renewals

    def previously_managed(self, problems: list[Problem]) -> ManagedBefore:
        """The portals that are remembered, with this host's role."""
        previously_managed = self._records()
        try:
            self._store.repair()
        except StateUnavailable as err:
            problems.append(state_problem(err))
        if self._store.renewals != self._renewals:
            self._renewals = self._store.renewals
            self._unsaved = dict(previously_managed)
        if self._previously_managed is None:
            self._previously_managed = ManagedBefore(
                portals=frozenset(previously_managed),
                inherited=frozenset(
                    portal
                    for (portal, role), record in previously_managed.items()
                    if record.inherited and role is Role.INITIATOR
                ),
            )
        return self._previously_managed

    def _records(self) -> _Records:
        if self._held is None:
            stored: _Records | None = None
            with contextlib.suppress(StateUnavailable):  # previously_managed() reports it
                stored = dict(self._store.managed())
            if stored is None or self._store.fresh:  # portals in the guard's file were managed
                self._unsaved = self._from_guard_file()
            self._held = (stored or {}) | self._unsaved
        return self._held

    def _from_guard_file(self) -> _Records:
        guarded, served = ruleset.parse_elements(read_text(self._paths.guard_file))
        records = [
            ManagedRecord(
                portal=portal, role=role, since=self._now(), why="the guard held it", inherited=True
            )
            for portals, role in ((guarded, Role.INITIATOR), (served, Role.TARGET))
            for portal in portals
        ]
        return {(record.portal, record.role): record for record in records}

    def remember(self, views: tuple[PortalView, ...], problems: list[Problem]) -> None:
        """Store newly managed portals before their connections exist: from now on they never open by themselves."""
        previously_managed = self._records()
        for view in () if views == self._seen else views:
            at = (view.binding.portal, view.role)
            known = previously_managed.get(at)
            if known is None and view.managed and view.closed:
                why = view.policy or view.key_path
                new = ManagedRecord(portal=at[0], role=view.role, since=self._now(), why=why)
            elif known and known.inherited and view.covered:
                new = dataclasses.replace(known, inherited=False)
            else:
                continue
            self._previously_managed = None
            previously_managed[at] = self._unsaved[at] = new
        self._seen = views
        if not self._unsaved:
            return
        try:
            self._store.set_managed(self._unsaved.values())
            self._unsaved.clear()
        except StateUnavailable as err:
            problems.append(state_problem(err))

    def _now(self) -> int:
        return self._clock.unix_ns() // 10**9

    def grant_releases(self, problems: list[Problem]) -> None:
        """Carry out the requests of ``iscsi-ipsec release``: each request is a file that holds one portal."""
        try:
            names = sorted(os.listdir(self._paths.requests_dir))
        except OSError:
            return
        previously_managed = self._records()
        for name in (name for name in names if not name.startswith(RELOAD_REQUEST)):
            path = os.path.join(self._paths.requests_dir, name)
            text = read_text(path).strip()
            for portal in {portal for portal, _ in previously_managed if str(portal) == text}:
                try:
                    self._store.drop_managed([portal])
                    self._previously_managed = self._seen = None
                    for role in Role:
                        previously_managed.pop((portal, role), None)
                        self._unsaved.pop((portal, role), None)
                    about = fields(portal=str(portal), note="released")
                    _log.warning("portal %s released on request", portal, extra=about)
                except StateUnavailable as err:
                    problems.append(state_problem(err))
                    return
            with contextlib.suppress(OSError):
                os.unlink(path)


def read_text(path: str) -> str:
    """A small file of our own; empty where it is absent or unreadable."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1 << 20)
    except (OSError, UnicodeDecodeError):
        return ""
