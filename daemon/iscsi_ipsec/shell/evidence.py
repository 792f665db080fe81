"""What charon said about failing negotiations, kept until the connection is up.

The one thing that cannot be read again later: charon tells causes only in
its log. Losing a line costs a less exact message, nothing else.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from iscsi_ipsec.core.causes import Cause, classify, heavier
from iscsi_ipsec.core.messages import PREFIX

_WIPED = re.compile(r"\b(unload|remov|uninstall|clear)", re.IGNORECASE)


class Evidence:
    """Collects causes by connection name; called from charon's event thread, read by the main loop."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._causes: dict[str, Cause] = {}

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
                known = self._causes.get(conn)
                told = heavier(known, cause)
                self._causes[conn] = told
            if told is not known:
                self._wake("cause")

    def clear(self, conn: str) -> None:
        """The connection is up: what was said before is history."""
        with self._lock:
            self._causes.pop(conn, None)

    def causes(self) -> Mapping[str, Cause]:
        """What is known now."""
        with self._lock:
            return dict(self._causes)
