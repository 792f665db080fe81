"""The system's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """Reads the kernel's clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back (CLOCK_MONOTONIC)."""
        return time.monotonic()

    def unix_ns(self) -> int:
        """Nanoseconds since 1970 (CLOCK_REALTIME)."""
        return time.time_ns()
