"""The rows of the status document that the command builds and reads without the daemon.

Law: pure, and free of imports that only the daemon needs: a command that only shows the document loads little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from iscsi_ipsec.base.iscsi import IscsiSession
from iscsi_ipsec.base.portal import Portal
from iscsi_ipsec.base.problem import Problem, Severity

SCHEMA = 1


def session_row(session: IscsiSession) -> dict[str, Any]:
    """A live iSCSI session as JSON."""
    return {
        "sid": session.sid,
        "target": session.target,
        "state": session.state,
        "transport": session.transport or None,
        "local": str(Portal(session.local_address, session.local_port)) if session.local_address else None,
        "remote": str(session.remote),
    }


def problem_row(problem: Problem) -> dict[str, Any]:
    """A problem as JSON; in a portal's row it has no file, in the list of all problems it has."""
    return {
        "code": problem.code,
        "severity": problem.severity.value,
        "file": problem.file or None,
        "line": problem.line or None,
        "portal": problem.portal or None,
        "message": problem.message,
        "hint": problem.hint or None,
    }


def has_errors(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of the problem rows is more than a warning."""
    return any(row.get("severity") == Severity.ERROR.value for row in rows)


def sentence(problem: dict[str, Any]) -> str:
    """A problem row as one line: where, what, what to do."""
    where = problem["file"] or problem["portal"] or ""
    if problem["file"] and problem["line"]:
        where = f"{where}:{problem['line']}"
    hint = f" ({problem['hint']})" if problem["hint"] else ""
    return f"{where}: {problem['message']}{hint}" if where else f"{problem['message']}{hint}"
