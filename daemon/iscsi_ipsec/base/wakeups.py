"""Wakes the main loop from other threads.

Law: a wakeup carries no data beyond the reason's name, which is only for the
log. The loop re-reads the world, so a lost or doubled wakeup costs time and
never correctness.
"""

from __future__ import annotations

import threading


class Wakeups:
    """A set of reasons and a condition. :meth:`wake` never blocks for long."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._reasons: set[str] = set()

    def wake(self, reason: str) -> None:
        """Ask for another pass. Callable from every thread and from callbacks."""
        with self._condition:
            self._reasons.add(reason)
            self._condition.notify()

    def wait(self, timeout: float) -> frozenset[str]:
        """Wait up to ``timeout`` seconds; return and clear the reasons (empty: timed out)."""
        with self._condition:
            if not self._reasons:
                self._condition.wait(timeout)
            reasons = frozenset(self._reasons)
            self._reasons.clear()
            return reasons
