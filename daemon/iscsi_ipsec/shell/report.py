"""What a pass tells: ``status.json``, one log line per change, systemd's status line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters.charon import default_socket
from iscsi_ipsec.adapters.filewrite import write_private
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable
from iscsi_ipsec.base.model import Key, PerIdKey, Problem, Severity
from iscsi_ipsec.core import status
from iscsi_ipsec.core.keyfile import moment_text
from iscsi_ipsec.core.rows import SCHEMA, problem_row, sentence
from iscsi_ipsec.shell.inventory import FileRow
from iscsi_ipsec.shell.metrics import Metrics
from iscsi_ipsec.shell.paths import Paths
from iscsi_ipsec.shell.reconciler import Outcome
from iscsi_ipsec.shell.telling import message_id

_log = logging.getLogger(__name__)

BYPASS_LAN = "bypass-lan"
"""A strongSwan plugin that installs PASS policies, which outrank traps (bypass_lan_listener.c)."""


def document(outcome: Outcome, generation: int, socket_path: str) -> dict[str, Any]:
    """The status document of docs/status.md; it never holds a key.

    Of keys and files it has the values; :class:`Reporter` makes rows of them.
    """
    look, charon, guard = outcome.look, outcome.charon, outcome.guard
    rows = status.portal_rows(look.desired.portals, outcome.observed)
    problems = [problem_row(p) for p in (*outcome.problems, *_plugin_problems(outcome))]
    told = {(row["portal"], row["code"]) for row in problems}
    problems += [
        row["problem"]
        for row in rows
        if row["problem"] and (row["portal"], row["problem"]["code"]) not in told
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
            "wanted": look.inventory.settings.guard,
            "devices": list(look.inventory.settings.guard_devices),
            "installed": guard is not None,
            "portals": sorted(str(p) for p in outcome.observed.guarded),
            "networks": sorted(map(str, look.desired.networks)),
            "opened": sorted(map(str, look.desired.opened)),
            "dropped": sum(guard.dropped.values()) if guard else None,
        },
        "portals": rows,
        "keys": look.inventory.keys,
        "files": look.inventory.rows,
        "problems": problems,
    }


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


def _file_row(row: FileRow) -> dict[str, str]:
    return {"path": row.path, "kind": row.kind, "state": row.state, "signature": row.signature}


def _json_list(rows: Iterable[object]) -> str:
    # row by row: 10,000 rows as values take more memory than the daemon has otherwise
    return f"[{', '.join(map(json.dumps, rows))}]"


def _plugin_problems(outcome: Outcome) -> Iterable[Problem]:
    if outcome.charon and BYPASS_LAN in outcome.charon.plugins:
        yield Problem(
            code="bypass-lan",
            message="strongSwan's plugin bypass-lan is loaded: it exempts local networks from IPsec, so the guard will drop them",
            hint="set charon.plugins.bypass-lan.load = no in strongswan.d",
            severity=Severity.WARNING,
        )


class Reporter:
    """Writes the status file and logs each problem once when it appears and once when it is solved."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._generation = 0
        self._told: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._metrics = Metrics(paths.metrics_file)
        self._lists: tuple[tuple[object, ...], str] = ((), "")

    def tell(self, outcome: Outcome, more: tuple[Problem, ...] = ()) -> dict[str, Any]:
        """Write and log, with ``more`` problems that no pass sees; return the document."""
        self._generation += 1
        told = document(outcome, self._generation, self._paths.vici_socket or default_socket())
        told["problems"] += [problem_row(problem) for problem in more]
        self._log_changes(told["problems"])
        self.write(told)
        self._metrics.tell(told, outcome.counters)
        return told

    def write(self, told: dict[str, Any]) -> None:
        """Replace the status file; where that fails, the log says so and the daemon goes on."""
        try:
            write_private(self._paths.status_file, self._rendered(told).encode())
        except (NotPermitted, StateUnavailable) as err:
            _log.error("%s", err)

    def _rendered(self, told: Mapping[str, Any]) -> str:
        """The document as JSON. The long lists are made anew when they differ, and that is seldom."""
        keys, rows = told.get("keys", ()), told.get("files", ())
        in_use = frozenset(row["key"] for row in told.get("portals", ()) if row["connection"])
        made_of, text = self._lists
        if made_of != (keys, rows, in_use):
            key_rows = (_key_row(key, key.name in in_use) for key in keys)
            text = f'"keys": {_json_list(key_rows)}, "files": {_json_list(map(_file_row, rows))}'
            self._lists = (keys, rows, in_use), text
        # the problems come last, as ever
        head = {name: value for name, value in told.items() if name not in ("keys", "files", "problems")}
        return f'{json.dumps(head)[:-1]}, {text}, "problems": {json.dumps(told.get("problems", ()))}}}\n'

    def _log_changes(self, problems: list[dict[str, Any]]) -> None:
        now = {(p["code"], p["file"], p["line"], p["portal"], p["message"]): p for p in problems}
        for at, problem in now.items():
            # a warning that became an error is news, too
            if at not in self._told or self._told[at]["severity"] != problem["severity"]:
                level = logging.ERROR if problem["severity"] == Severity.ERROR.value else logging.WARNING
                _log.log(level, "%s", sentence(problem), extra={"fields": _journal_fields(problem)})
        for at, problem in self._told.items():
            if at not in now:
                about = _journal_fields(problem) | {"MESSAGE_ID": message_id("solved")}
                _log.info("solved: %s", sentence(problem), extra={"fields": about})
        self._told = now


def summary(told: dict[str, Any]) -> str:
    """One line for systemctl status."""
    rows = [row for row in told["portals"] if row["managed"]]
    protected = sum(1 for row in rows if row["protected"])
    errors = sum(1 for p in told["problems"] if p["severity"] == Severity.ERROR.value)
    text = f"{len(rows)} portals managed, {protected} with an SA up, {len(told['keys'])} keys"
    if not told["charon"]["reachable"]:
        text += ", charon unreachable"
    return text + (f", {errors} problems" if errors else "")


def _journal_fields(problem: dict[str, Any]) -> dict[str, str]:
    fields = {
        "MESSAGE_ID": message_id(problem["code"]),
        "ISCSI_IPSEC_PROBLEM": problem["code"],
        "ISCSI_PORTAL": problem["portal"],
        "CONFIG_FILE": problem["file"],
    }
    return {name: value for name, value in fields.items() if value}
