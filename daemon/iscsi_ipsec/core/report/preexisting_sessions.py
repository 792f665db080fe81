"""Finds TCP connections that are older than their portal's protection.

The guard closes a portal from the moment that it is loaded. A TCP connection that was there
before has logged in, and may have moved data, unencrypted, although it is inside ESP now.

Law: pure. The caller keeps :class:`Preexisting` from pass to pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.problem import Problem, Severity


@dataclass(frozen=True, slots=True)
class Ends:
    """One TCP connection of a session. A session that reconnects gets another local port."""

    sid: int
    local_port: int
    remote: str


@dataclass(frozen=True, slots=True)
class Preexisting:
    """``closed``: portals that are closed, as text. ``connections``: those that were there before."""

    closed: frozenset[str] = frozenset()
    connections: frozenset[Ends] = frozenset()


def next_preexisting(
    before: Preexisting, now: frozenset[str], sessions: Iterable[IscsiSession]
) -> Preexisting:
    """Update with a new observation: a connection to a portal that was not closed the last time is older than the protection.

    ``now``: the portals that are closed now.

    A connection that is down has no local port; it comes back as a new one, inside ESP.
    """
    return Preexisting(
        closed=now,
        connections=frozenset(
            ends
            for session in sessions
            if (ends := _ends(session)).local_port
            and ends.remote in now
            and (ends in before.connections or ends.remote not in before.closed)
        ),
    )


def preexisting_problems(earlier: Preexisting, sessions: Iterable[IscsiSession]) -> tuple[Problem, ...]:
    """The problems to report while such connections last."""
    return tuple(
        Problem(
            code="earlier-session",
            message=f"iSCSI session {session.sid} with {session.target} was connected before this portal was closed:"
            " its login, and the data that it moved until then, may have been unencrypted",
            hint="log out and in again, and change its CHAP secret if it has one",
            portal=str(session.remote),
            severity=Severity.WARNING,
        )
        for session in sessions
        if _ends(session) in earlier.connections
    )


def _ends(session: IscsiSession) -> Ends:
    return Ends(session.sid, session.local_port, str(session.remote))
