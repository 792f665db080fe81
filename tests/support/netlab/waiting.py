"""Waiting on conditions: nothing in the lab ever sleeps a fixed time and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NeverHappenedError(AssertionError):
    """A condition that was waited for did not come true in time."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    timeout: float = 10.0,
    interval: float = 0.02,
    detail: Callable[[], str] | None = None,
) -> T:
    """Return the first truthy value of *condition*; *detail* is shown when it never comes."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            more = f"\n{detail()}" if detail else ""
            raise NeverHappenedError(f"not within {timeout:g} s: {what}{more}")
        time.sleep(interval)


def holds_for(condition: Callable[[], object], seconds: float, *, interval: float = 0.02) -> bool:
    """Whether *condition* stays true for *seconds*: the only honest test that something does not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            return False
        time.sleep(interval)
    return bool(condition())
