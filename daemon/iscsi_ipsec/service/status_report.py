"""Reports a pass: ``status.json``, one log line per change, systemd's status line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters.atomic_write import write_private
from iscsi_ipsec.adapters.charon import default_socket
from iscsi_ipsec.adapters.files import FileStat
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.base.printable import plural
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.key_file import moment_text
from iscsi_ipsec.core.report import portal_status
from iscsi_ipsec.core.report.schema import SCHEMA, problem_row, sentence
from iscsi_ipsec.service.config_entries import FileRow
from iscsi_ipsec.service.metrics import Metrics
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.ports import Clock, Xfrm
from iscsi_ipsec.service.problems import message_id
from iscsi_ipsec.service.reconciler import Outcome

_log = logging.getLogger(__name__)

BYPASS_LAN = "bypass-lan"
"""A strongSwan plugin that installs PASS policies, which take precedence over traps (bypass_lan_listener.c)."""


def document(
    outcome: Outcome,
    *,
    portals: list[dict[str, Any]],
    keys: list[dict[str, Any]],
    file_rows: list[dict[str, str]],
    guarded: list[str],
    generation: int,
    socket_path: str,
) -> dict[str, Any]:
    """The status document of docs/status.md, with these rows; it never holds a key."""
    snapshot, charon, guard = outcome.snapshot, outcome.charon, outcome.guard
    problems = [problem_row(p) for p in (*outcome.problems, *_plugin_problems(outcome))]
    status = {(row["portal"], row["code"]) for row in problems}
    problems += [
        row["problem"]
        for row in portals
        if row["problem"] and (row["portal"], row["problem"]["code"]) not in status
    ]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "pid": os.getpid(),
        "generation": generation,
        "time": int(time.time()),
        "charon": {
            "socket": socket_path,
            "reachable": charon is not None,
            "settled": outcome.settled,
            "version": charon.version if charon else None,
            "foreign_connections": charon.foreign_conns if charon else None,
        },
        "guard": {
            "wanted": snapshot.config.settings.guard,
            "devices": list(snapshot.config.settings.guard_devices),
            "installed": guard is not None,
            "portals": guarded,
            "networks": _sorted_texts(snapshot.desired.networks),
            "opened": _sorted_texts(snapshot.desired.clear_exceptions),
            "dropped": sum(guard.dropped.values()) if guard else None,
        },
        "portals": portals,
        "keys": keys,
        "files": file_rows,
        "problems": problems,
    }


def _key_rows(keys: Iterable[Key], in_use: frozenset[str]) -> list[dict[str, Any]]:
    return [_key_row(key, key.name in in_use) for key in keys]


def _key_row(key: Key, in_use: bool) -> dict[str, Any]:
    identity = key.id if isinstance(key, PerIdKey) else None
    return {
        "name": key.name,
        "id": identity.text if identity else None,
        "id_type": identity.type.name if identity else None,
        "group": identity is None,
        "in_use": in_use,
        "previous_until": moment_text(key.previous.until) if key.previous else None,
    }


def _file_rows(rows: Iterable[FileRow]) -> list[dict[str, str]]:
    return [{"path": r.path, "kind": r.kind, "state": r.state, "signature": r.signature} for r in rows]


def _sorted_texts(portals: Iterable[Portal | PortalRange]) -> list[str]:
    return sorted(map(str, portals))


def _in_use(rows: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["key"] for row in rows if row["connection"])


def _plugin_problems(outcome: Outcome) -> Iterable[Problem]:
    if outcome.charon and BYPASS_LAN in outcome.charon.plugins:
        yield Problem(
            code="bypass-lan",
            message="strongSwan's plugin bypass-lan is loaded: it exempts local networks from IPsec, so the guard will drop them",
            hint="set charon.plugins.bypass-lan.load = no in strongswan.d",
            severity=Severity.WARNING,
        )


_OF_EACH_PASS = frozenset({"generation", "time"})


class StatusReporter:
    """Writes the status file and logs each problem once when it appears and once when it is solved."""

    def __init__(self, paths: Paths, xfrm: Xfrm, clock: Clock) -> None:
        self._paths = paths
        self._generation = 0
        self._told: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._metrics = Metrics(paths.metrics_file, xfrm, clock)
        self._rows, self._guarded = portal_status.PortalRows(), Memo(_sorted_texts)
        self._in_use, self._key_rows, self._file_rows = Memo(_in_use), Memo(_key_rows), Memo(_file_rows)
        self._content: Mapping[str, Any] | None = None
        self._stat: FileStat | None = None

    def write(self, outcome: Outcome, more: tuple[Problem, ...] = ()) -> dict[str, Any]:
        """Write and log, with ``more`` problems that no pass sees; return the document."""
        self._generation += 1
        config = outcome.snapshot.config
        portals = self._rows.rows(outcome.snapshot.desired.portals, outcome.observed)
        status = document(
            outcome,
            portals=portals,
            keys=self._key_rows(config.keys, self._in_use(portals)),
            file_rows=self._file_rows(config.rows),
            guarded=self._guarded(outcome.observed.guarded),
            generation=self._generation,
            socket_path=self._paths.vici_socket or default_socket(),
        )
        status["problems"] += [problem_row(problem) for problem in more]
        self._log_changes(status["problems"])
        self.write_file(status)
        self._metrics.write(status, outcome.counters)
        return status

    def write_file(self, status: dict[str, Any]) -> None:
        """Replace the status file if more than its time and generation differs, or if somebody else changed it.

        With 10,000 keys and 1,000 portals it is 4 MB, and takes 40 ms. A failure is logged and the daemon goes on.
        """
        path = self._paths.status_file
        content = {name: value for name, value in status.items() if name not in _OF_EACH_PASS}
        if content == self._content and self._stat is not None and FileStat.at(path) == self._stat:
            return
        self._content = None
        try:
            write_private(path, json.dumps(status).encode() + b"\n")
        except (NotPermitted, StateUnavailable) as err:
            _log.error("%s", err)
        else:
            self._content, self._stat = content, FileStat.at(path)

    def _log_changes(self, problems: list[dict[str, Any]]) -> None:
        now = {(p["code"], p["file"], p["line"], p["portal"], p["message"]): p for p in problems}
        for at, problem in now.items():
            # a warning that became an error is logged too
            if at not in self._told or self._told[at]["severity"] != problem["severity"]:
                level = logging.ERROR if problem["severity"] == Severity.ERROR.value else logging.WARNING
                _log.log(level, "%s", sentence(problem), extra={"fields": _journal_fields(problem)})
        for at, problem in self._told.items():
            if at not in now:
                about = _journal_fields(problem) | {"MESSAGE_ID": message_id("solved")}
                _log.info("solved: %s", sentence(problem), extra={"fields": about})
        self._told = now


def summary(status: Mapping[str, Any]) -> str:
    """One line for systemctl status."""
    rows = [row for row in status["portals"] if row["managed"]]
    protected = sum(1 for row in rows if row["protected"])
    errors = sum(1 for p in status["problems"] if p["severity"] == Severity.ERROR.value)
    keys = plural(len(status["keys"]), "key")
    text = f"{plural(len(rows), 'portal')} managed, {protected} with an SA up, {keys}"
    if not status["charon"]["reachable"]:
        text += ", charon unreachable"
    return text + (f", {plural(errors, 'problem')}" if errors else "")


def _journal_fields(problem: dict[str, Any]) -> dict[str, str]:
    fields = {
        "MESSAGE_ID": message_id(problem["code"]),
        "ISCSI_IPSEC_PROBLEM": problem["code"],
        "ISCSI_PORTAL": problem["portal"],
        "CONFIG_FILE": problem["file"],
    }
    return {name: value for name, value in fields.items() if value}
