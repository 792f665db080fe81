"""Portals that were managed once, and so stay closed until an admin releases them.

Law: the store is asked once and then followed; a portal is remembered before
its connection exists, and forgotten only on request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

from iscsi_ipsec.adapters.store import ManagedRecord, Store
from iscsi_ipsec.base.errors import StateUnavailable
from iscsi_ipsec.base.model import Portal, Problem, Role
from iscsi_ipsec.core import nft
from iscsi_ipsec.core.desired import PortalView
from iscsi_ipsec.shell.paths import Paths
from iscsi_ipsec.shell.telling import fields, state_problem

_log = logging.getLogger(__name__)


class ManagedPortals:
    """The memory of managed portals, and the requests to forget one."""

    def __init__(self, paths: Paths, store: Store) -> None:
        self._paths, self._store = paths, store
        self._held: dict[Portal, ManagedRecord] | None = None

    def held(self, problems: list[Problem]) -> frozenset[tuple[Portal, Role]]:
        """The portals that are held, with this host's role."""
        return frozenset((record.portal, record.role) for record in self._records(problems).values())

    def _records(self, problems: list[Problem]) -> dict[Portal, ManagedRecord]:
        if self._held is None:
            try:
                self._held = dict(self._store.managed())
                if self._store.problems:  # it was damaged: what the guard held was managed
                    self._held |= self._from_guard_file()
            except StateUnavailable as err:
                problems.append(state_problem(err))
                return {}
        return self._held

    def _from_guard_file(self) -> dict[Portal, ManagedRecord]:
        guarded, served = nft.parse_elements(read_text(self._paths.guard_file))
        records = [
            ManagedRecord(portal=portal, role=role, since=int(time.time()), why="the guard held it")
            for portals, role in ((guarded, Role.INITIATOR), (served, Role.TARGET))
            for portal in portals
        ]
        self._store.set_managed(records)
        return {record.portal: record for record in records}

    def remember(self, views: tuple[PortalView, ...], problems: list[Problem]) -> None:
        """Store newly managed portals before their connections exist: from now on they never open by themselves."""
        held = self._records(problems)
        news = []
        for view in views:
            if view.managed and view.closed and view.seat.portal not in held:
                why = view.policy or view.key_path
                news.append(
                    ManagedRecord(portal=view.seat.portal, role=view.role, since=int(time.time()), why=why)
                )
        if not news:
            return
        try:
            self._store.set_managed(news)
            held.update({record.portal: record for record in news})
        except StateUnavailable as err:
            problems.append(state_problem(err))

    def grant_releases(self, problems: list[Problem]) -> None:
        """Do what ``iscsi-ipsec release`` asked for: each request is a file that holds one portal."""
        try:
            names = sorted(os.listdir(self._paths.requests_dir))
        except OSError:
            return
        held = self._records(problems)
        for name in names:
            path = os.path.join(self._paths.requests_dir, name)
            text = read_text(path).strip()
            for portal in [p for p in held if str(p) == text]:
                try:
                    self._store.drop_managed([portal])
                    del held[portal]
                    _log.warning("portal %s released on request", portal, extra=fields(portal=str(portal)))
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
