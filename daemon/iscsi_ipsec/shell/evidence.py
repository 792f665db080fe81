"""What charon said about failing negotiations, kept until the connection is up.

The one thing that cannot be read again later: charon tells causes only in
its log. Losing a line costs a less exact message, nothing else.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from iscsi_ipsec.core.causes import SILENT, Cause, classify, heavier
from iscsi_ipsec.core.messages import PREFIX

_SLACK = 1.0
"""Seconds; charon tells an SA's age in whole ones, and a failure may precede its success by less."""

_WIPED = re.compile(r"\b(unload|remov|uninstall|clear)", re.IGNORECASE)


class Evidence:
    """Collects causes by connection name; called from charon's event thread, read by the main loop."""

    def __init__(self, wake: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._wake, self._clock = wake, clock
        self._lock = threading.Lock()
        self._causes: dict[str, tuple[Cause, float]] = {}

    def on_event(self, event: str, message: Mapping[str, Any]) -> None:
        """Take one VICI event."""
        if event != "log":
            if any(name.startswith(PREFIX) for name in message):
                self._wake("sa")
            return
        line = message.get("msg")
        if not isinstance(line, str):
            return
        if PREFIX in line and _WIPED.search(line):
            # swanctl --load-* throws ours away, and no event tells: its log does
            self._wake("wiped")
        conn = message.get("ikesa-name")
        cause = classify(line)
        if cause and isinstance(conn, str) and conn.startswith(PREFIX):
            with self._lock:
                known = self._causes[conn][0] if conn in self._causes else None
                told = heavier(known, cause)
                self._causes[conn] = (told, self._clock())
            if told is not known:
                self._wake("cause")

    def settle(self, conn: str, age: float) -> None:
        """The connection's SA is up since ``age`` seconds: what was said before that is history.

        What was said since is kept if it is more than a slow answer: a rekeying that
        fails (say, because only one end wants PFS) shows nowhere else.
        """
        with self._lock:
            known = self._causes.get(conn)
            if known and (known[0].weight <= SILENT.weight or known[1] < self._clock() - age - _SLACK):
                del self._causes[conn]

    def causes(self) -> Mapping[str, Cause]:
        """What is known now."""
        with self._lock:
            return {conn: cause for conn, (cause, _) in self._causes.items()}
