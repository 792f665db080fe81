"""Remembers, until the next boot, which portals were closed and which sessions are older than that.

Law: the file lies in the runtime folder, since sessions end with the boot that they belong to. A daemon that
finds no file is the first of this boot: all sessions that exist then are older than it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable
from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.report.preexisting_sessions import (
    Ends,
    Preexisting,
    next_preexisting,
    preexisting_problems,
)
from iscsi_ipsec.service.managed_portals import read_text
from iscsi_ipsec.service.problems import state_problem


class PreexistingSessions:
    """Follows closed portals and sessions from pass to pass."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: Preexisting | None = None
        self._written: Preexisting | None = None
        self._closed = Memo(_texts)

    def follow(self, closed: tuple[Portal, ...], sessions: tuple[IscsiSession, ...]) -> tuple[Problem, ...]:
        """Update from a pass's observations; return problems about sessions older than their portal's protection."""
        before = self._known if self._known is not None else _parsed(read_text(self._path))
        now = next_preexisting(before, self._closed(closed), sessions)
        problems = preexisting_problems(now, sessions)
        if now != self._written:
            try:
                write_private(self._path, _text(now).encode())
                self._written = now
            except (NotPermitted, StateUnavailable) as err:
                problems = (*problems, state_problem(err))
        self._known = now
        return problems


def _texts(portals: Iterable[Portal]) -> frozenset[str]:
    return frozenset(map(str, portals))


def _text(earlier: Preexisting) -> str:
    connections = [[ends.sid, ends.local_port, ends.remote] for ends in earlier.connections]
    return json.dumps({"closed": sorted(earlier.closed), "connections": sorted(connections)})


def _parsed(text: str) -> Preexisting:
    """The content that an earlier daemon wrote; empty where it is unreadable."""
    try:
        data = json.loads(text)
        return Preexisting(
            frozenset(map(str, data["closed"])),
            frozenset(Ends(int(sid), int(port), str(remote)) for sid, port, remote in data["connections"]),
        )
    except (ValueError, TypeError, KeyError):
        return Preexisting()
