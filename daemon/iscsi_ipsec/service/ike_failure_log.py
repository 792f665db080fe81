"""Collects from charon's log why negotiations fail, until the connection is up.

This is the only input that cannot be read again later: charon reports causes only in its log. A lost line
makes a message less exact, nothing else.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iscsi_ipsec.core.ike.ike_failures import (
    AGGRESSIVE_OFF,
    SILENT,
    UNREACHABLE,
    Cause,
    as_passing,
    classify,
    doubts_key,
    heavier,
)
from iscsi_ipsec.core.ike.key_rotation import UNNAMED
from iscsi_ipsec.core.ike.vici_messages import PREFIX

_SLACK = 1.0
"""Seconds; charon gives an SA's age in whole seconds, and a failure may precede its success by less."""

_UNNAMED = "(unnamed)"
"""charon's name for an IKE_SA for which it has found no connection yet."""

_REMEMBERED = 600.0
"""Seconds; whoever is refused aggressive mode tries again sooner."""

_UNSENT_BEFORE = 20.0
"""Seconds before a first retransmission in which its packet was sent, at charon's slowest."""

YOUNG = 10.0
"""Seconds for which a peer's silence is no error yet: two of our attempts (core.ike.sa_lifecycle), and a slow machine's answer."""

# as in core.ike.ike_failures: from the beginning of the line, and nothing behind a text that a peer chose
_BEGUN = re.compile(
    r"initiating |establishing CHILD_SA |[0-9A-Fa-f.:]+ is initiating an? (?:[A-Za-z]+ Mode )?IKE_SA"
)
"""charon begins a negotiation, or is asked for one."""

_WIPED = re.compile(
    r"(?:unloaded shared key with id '|(?:updated|replaced|removed) vici connection: |uninstalling '|vici uninstall ')"
    rf"(?P<name>{re.escape(PREFIX)}[^\s'\",]+)'?$"
)
"""Somebody removed or replaced one of our connections or secrets (vici_config.c, vici_cred.c). The daemon itself never loads a connection over another one: it unloads the old one first."""

_DUPLICATE = re.compile(
    rf"not establishing CHILD_SA {re.escape(PREFIX)}\S+\{{\d+\}} due to existing duplicate"
)
"""charon (child_create.c) refuses to negotiate an SA that it already has. The kernel asks only for SAs that it does not have."""

_REPEATED = re.compile(r"(?:sending )?retransmit (\d+) of request")
"""charon sends a request again: 4, 11, 24 and 47 s after the first time, unless retransmit_* says otherwise."""

_LINE_LENGTH = 200

_NUMBER = re.compile(r"\[\d+\]")
"""An SA's number, which differs in each attempt; without it a repeated line is recognised."""

UNANSWERED = 3
"""After so many repetitions a request counts as unanswered: with one packet in five lost, 5 % of all requests are."""

_REPEATING = 60.0
"""Seconds for which that is remembered; the next repetition comes sooner."""

_NOISE = re.compile(
    r"^(sending|received packet|generating|parsed|parsing|retransmit|tried to checkin|destroying|IKE_SA .* state change)"
)
"""Lines that never say why a negotiation fails."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A cause, and when it was first and last heard."""

    cause: Cause
    first: float
    last: float


class IkeFailureLog:
    """Collects causes by connection name; called from charon's event thread, read by the main loop.

    ``nameless``: whether doubts about keys of negotiations without a connection are worth a pass.
    :attr:`wiped` is the wakeup's reason where others changed our secrets or connections, :attr:`duplicate`
    where charon and the kernel may not have the same SAs.
    """

    wiped = "wiped"
    duplicate = "duplicate"

    def __init__(self, wake: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._wake, self._clock = wake, clock
        self._lock = threading.Lock()
        self._causes: dict[str, _Heard] = {}
        self._unsent: tuple[Cause, float] | None = None
        self._aggressive_off: float | None = None
        self._counted: dict[str, set[str]] = {}
        self._failures: Counter[str] = Counter()
        self._doubts: dict[str, tuple[str, int]] = {}
        self._going: frozenset[str] = frozenset()
        self._repeated: dict[str, float] = {}
        self._last_lines: dict[str, str] = {}
        self.nameless = False

    def expect_gone(self, names: Iterable[str]) -> None:
        """Ignore charon's lines about these connections: the daemon itself unloads them now."""
        self._going = frozenset(names)

    def on_event(self, event: str, message: Mapping[str, Any]) -> None:
        """Take one VICI event."""
        if event != "log":
            if any(name.startswith(PREFIX) for name in message):
                self._wake("sa")
            return
        line = message.get("msg")
        if not isinstance(line, str):
            return
        if (wiped := _WIPED.match(line)) and wiped["name"] not in self._going:
            # swanctl --load-* drops ours, or somebody loads another of our name: only charon's log shows it, no event does
            self._wake(self.wiped)
        if _DUPLICATE.match(line):
            self._wake(self.duplicate)
        conn = message.get("ikesa-name")
        if isinstance(conn, str) and doubts_key(line):
            self._doubt(conn, str(message.get("ikesa-uniqueid")))
        if conn is None and (unsent := classify(line)) and unsent.code == UNREACHABLE.code:
            with self._lock:
                self._unsent = (unsent, self._clock())
        if not isinstance(conn, str) or not conn.startswith(PREFIX):
            if conn in (None, _UNNAMED) and classify(line) is AGGRESSIVE_OFF:
                with self._lock:
                    self._aggressive_off = self._clock()
                self._wake("cause")
            return
        if not (_NOISE.match(line) or _BEGUN.match(line)):
            with self._lock:
                self._last_lines[conn] = _NUMBER.sub("", line)[:_LINE_LENGTH]
        if (repeated := _REPEATED.match(line)) and int(repeated[1]) >= UNANSWERED:
            with self._lock:
                self._repeated[str(message.get("ikesa-uniqueid"))] = self._clock()
            self._wake("cause")
        if _BEGUN.match(line):
            with self._lock:
                self._counted.pop(conn, None)
        cause = classify(line)
        if cause:
            with self._lock:
                known = self._causes.get(conn)
                heard = heavier(known.cause if known else None, cause)
                fresh = known is None or heard is not known.cause
                now = self._clock()
                self._causes[conn] = _Heard(heard, now if fresh or known is None else known.first, now)
                self._count(conn, cause.code)
            if fresh:
                self._wake("cause")

    def _count(self, conn: str, code: str) -> None:
        """Once for each negotiation, however many lines it takes charon to say so."""
        counted = self._counted.setdefault(conn, set())
        if code not in counted:
            counted.add(code)
            self._failures[code] += 1

    def _doubt(self, conn: str, ike_id: str) -> None:
        """Count each negotiation once, however often it says so."""
        if conn != _UNNAMED and not conn.startswith(PREFIX):
            return
        at = UNNAMED if conn == _UNNAMED else conn
        with self._lock:
            last, count = self._doubts.get(at, ("", 0))
            if last == ike_id:
                return
            self._doubts[at] = (ike_id, count + 1)
        if at or self.nameless:
            self._wake("doubt")

    def doubts(self) -> Mapping[str, int]:
        """How many negotiations of each connection probably failed because of the key."""
        with self._lock:
            return {conn: count for conn, (_, count) in self._doubts.items()}

    def forget_all(self) -> None:
        """Forget all causes: the charon that reported them is gone."""
        with self._lock:
            self._causes.clear()
            self._last_lines.clear()
            self._repeated.clear()

    def forget(self, conn: str) -> None:
        """Forget the connection's causes: another key is presented now."""
        with self._lock:
            self._causes.pop(conn, None)

    def settle(self, conn: str, age: float) -> None:
        """The connection's SA has been up for ``age`` seconds: drop causes from before that.

        A later cause is kept if it is more than a slow answer: a rekeying that
        fails (say, because only one end wants PFS) shows nowhere else.
        """
        with self._lock:
            known = self._causes.get(conn)
            if known and (known.cause.weight <= SILENT.weight or known.last < self._clock() - age - _SLACK):
                del self._causes[conn]

    def last_line(self, conn: str) -> str:
        """The last line of charon's log about a connection, except lines that never say why."""
        with self._lock:
            return self._last_lines.get(conn, "")

    def unanswered(self) -> frozenset[int]:
        """The IKE SAs in which charon has lately sent the same request again and again."""
        with self._lock:
            since = self._clock() - _REPEATING
            self._repeated = {ike: at for ike, at in self._repeated.items() if at >= since}
            return frozenset(int(ike) for ike in self._repeated if ike.isdecimal())

    def causes(self) -> Mapping[str, Cause]:
        """The causes that are known now."""
        with self._lock:
            return {
                conn: as_passing(self._named(heard)) if self._left(heard) > 0 else self._named(heard)
                for conn, heard in self._causes.items()
            }

    def _named(self, heard: _Heard) -> Cause:
        """The cause; for silence, where nothing could be sent, that cause instead: charon's log names no connection for it."""
        if heard.cause is SILENT and self._unsent and self._unsent[1] >= heard.first - _UNSENT_BEFORE:
            return self._unsent[0]
        return heard.cause

    def _left(self, heard: _Heard) -> float:
        """Seconds for which a cause is young; 0 for a cause that somebody must fix."""
        return heard.first + YOUNG - self._clock() if heard.cause.weight <= UNREACHABLE.weight else 0.0

    def aggressive_off(self) -> bool:
        """Whether charon has lately refused to answer in aggressive mode; charon logs this before it knows the peer."""
        with self._lock:
            return self._aggressive_off is not None and self._clock() - self._aggressive_off < _REMEMBERED

    def seconds_until_error(self) -> float | None:
        """Seconds until the first young cause (a warning so far) becomes an error; None where there is none."""
        with self._lock:
            return min(
                (left for heard in self._causes.values() if (left := self._left(heard)) > 0), default=None
            )

    def failures(self) -> Mapping[str, int]:
        """Negotiations that failed since the start, by the codes of their causes."""
        with self._lock:
            return dict(self._failures)
