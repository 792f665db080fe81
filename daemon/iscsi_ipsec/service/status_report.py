"""Reports a pass: ``status.json``, one log line per change, systemd's status line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iscsi_ipsec import __version__
from iscsi_ipsec.adapters.atomic_write import Part, RewrittenFile
from iscsi_ipsec.adapters.charon import default_socket
from iscsi_ipsec.base.errors import NotPermitted, StateUnavailable
from iscsi_ipsec.base.keys import Key, PerIdKey
from iscsi_ipsec.base.memo import Memo
from iscsi_ipsec.base.portal import Portal, PortalRange
from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.config.key_file import moment_text
from iscsi_ipsec.core.report import portal_status
from iscsi_ipsec.core.report.schema import SCHEMA, problem_row, sentence
from iscsi_ipsec.service.config_files import FileRow
from iscsi_ipsec.service.metrics import Metrics
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.ports import Clock, Xfrm
from iscsi_ipsec.service.problems import message_id
from iscsi_ipsec.service.reconciler import Outcome

_log = logging.getLogger(__name__)

BYPASS_LAN = "bypass-lan"
"""A strongSwan plugin that installs PASS policies, which take precedence over traps (bypass_lan_listener.c)."""


def document(
    outcome: Outcome, rows: list[dict[str, Any]], guarded: list[str], generation: int, socket_path: str
) -> dict[str, Any]:
    """The status document of docs/status.md, with these rows of portals and closed portals; it never holds a key.

    It holds keys and files as values; :class:`StatusReporter` turns them into rows.
    """
    snapshot, charon, guard = outcome.snapshot, outcome.charon, outcome.guard
    problems = [problem_row(p) for p in (*outcome.problems, *_plugin_problems(outcome))]
    status = {(row["portal"], row["code"]) for row in problems}
    problems += [
        row["problem"]
        for row in rows
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
        "portals": rows,
        "keys": snapshot.config.keys,
        "files": snapshot.config.rows,
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


def _file_row(row: FileRow, _: bool) -> dict[str, str]:
    return {"path": row.path, "kind": row.kind, "state": row.state, "signature": row.signature}


class _JsonList:
    """A long list as JSON, in parts of a file: one whose things are as they were is not spelled again.

    Things are immutable, and so is what ``row`` makes of one and whether it is marked.
    """

    BLOCK = 200

    def __init__(self, row: Callable[[Any, bool], object]) -> None:
        self._row = row
        self._blocks: list[tuple[Sequence[object], bytes, Part]] = []

    def forget(self) -> None:
        """Encode everything again the next time."""
        self._blocks.clear()

    def parts(self, things: Sequence[object], marks: bytes = b"") -> list[Part]:
        """The list of these things' rows, without its brackets. ``marks``: for each thing 1 or 0; none is marked without."""
        marks = marks or bytes(len(things))
        before, self._blocks = self._blocks, []
        for place, start in enumerate(range(0, len(things), self.BLOCK)):
            block, marked = things[start : start + self.BLOCK], marks[start : start + self.BLOCK]
            if place < len(before) and before[place][:2] == (block, marked):
                self._blocks.append(before[place])
            else:
                rows = [self._row(thing, mark == 1) for thing, mark in zip(block, marked, strict=True)]
                text = json.dumps(rows)[1:-1]
                self._blocks.append((block, marked, Part(f"{', ' if place else ''}{text}".encode())))
        return [part for _, _, part in self._blocks]


def _sorted_texts(portals: Iterable[Portal | PortalRange]) -> list[str]:
    return sorted(map(str, portals))


def _in_use(rows: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["key"] for row in rows if row["connection"])


def _marked(keys: tuple[Key, ...], in_use: frozenset[str]) -> bytes:
    return bytes(key.name in in_use for key in keys)


def _plugin_problems(outcome: Outcome) -> Iterable[Problem]:
    if outcome.charon and BYPASS_LAN in outcome.charon.plugins:
        yield Problem(
            code="bypass-lan",
            message="strongSwan's plugin bypass-lan is loaded: it exempts local networks from IPsec, so the guard will drop them",
            hint="set charon.plugins.bypass-lan.load = no in strongswan.d",
            severity=Severity.WARNING,
        )


_LISTS = frozenset({"portals", "keys", "files", "problems"})


class StatusReporter:
    """Writes the status file and logs each problem once when it appears and once when it is solved."""

    def __init__(self, paths: Paths, xfrm: Xfrm, clock: Clock) -> None:
        self._paths = paths
        self._generation = 0
        self._told: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._metrics = Metrics(paths.metrics_file, xfrm, clock)
        self._rows, self._guarded = portal_status.PortalRows(), Memo(_sorted_texts)
        self._in_use, self._marked = Memo(_in_use), Memo(_marked)
        self._portal_list, self._key_list = _JsonList(lambda row, _: row), _JsonList(_key_row)
        self._file_list = _JsonList(_file_row)
        self._file = RewrittenFile(paths.status_file)

    def write(self, outcome: Outcome, more: tuple[Problem, ...] = ()) -> dict[str, Any]:
        """Write and log, with ``more`` problems that no pass sees; return the document."""
        self._generation += 1
        status = document(
            outcome,
            self._rows.rows(outcome.snapshot.desired.portals, outcome.observed),
            self._guarded(outcome.observed.guarded),
            self._generation,
            self._paths.vici_socket or default_socket(),
        )
        status["problems"] += [problem_row(problem) for problem in more]
        self._log_changes(status["problems"])
        self.write_file(status)
        self._metrics.write(status, outcome.counters)
        return status

    def write_file(self, status: dict[str, Any]) -> None:
        """Replace the status file; a failure is logged and the daemon goes on."""
        try:
            self._file.write(self._parts(status))
        except (NotPermitted, StateUnavailable) as err:
            _log.error("%s", err)

    def _parts(self, status: Mapping[str, Any]) -> list[Part]:
        """The document as JSON, its long lists in the blocks that are as they were."""
        lists = (self._portal_list, self._key_list, self._file_list)
        if not self._file.is_intact:
            for one in lists:
                one.forget()
        portals = status.get("portals", ())
        keys = status.get("keys", ())
        marks = self._marked(keys, self._in_use(portals))
        # the problems come last, as in earlier versions
        head = {name: value for name, value in status.items() if name not in _LISTS}
        return [
            Part(json.dumps(head)[:-1].encode() + b', "portals": ['),
            *self._portal_list.parts(portals),
            Part(b'], "keys": ['),
            *self._key_list.parts(keys, marks),
            Part(b'], "files": ['),
            *self._file_list.parts(status.get("files", ())),
            Part(b'], "problems": ' + json.dumps(status.get("problems", ())).encode() + b"}\n"),
        ]

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
    text = f"{len(rows)} portals managed, {protected} with an SA up, {len(status['keys'])} keys"
    if not status["charon"]["reachable"]:
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
