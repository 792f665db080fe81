"""Wakeups from other threads: none is lost, and many are one."""

from __future__ import annotations

import threading
import time

from iscsi_ipsec.base.wakeups import Wakeups

PATIENCE = 30.0


def test_wait_returns_at_once_with_everything_that_gathered() -> None:
    wakeups = Wakeups()
    for reason in ("files", "sa", "files"):
        wakeups.wake(reason)
    began = time.monotonic()
    assert wakeups.wait(PATIENCE) == {"files", "sa"}
    assert time.monotonic() - began < PATIENCE / 2


def test_wait_clears_what_it_returns() -> None:
    wakeups = Wakeups()
    wakeups.wake("files")
    wakeups.wait(PATIENCE)
    assert wakeups.wait(0.001) == frozenset()


def test_wait_is_woken_by_another_thread() -> None:
    wakeups = Wakeups()
    thread = threading.Timer(0.05, wakeups.wake, ["sa"])
    thread.start()
    try:
        assert wakeups.wait(PATIENCE) == {"sa"}
    finally:
        thread.join()


def test_wait_ends_at_its_timeout_without_a_reason() -> None:
    began = time.monotonic()
    assert Wakeups().wait(0.02) == frozenset()
    assert time.monotonic() - began >= 0.019
