"""The daemon's loop: runs one pass after the other, and waits in between.

Law: level, not edge. A wakeup only ends the wait; the pass that follows reads what it needs. The longest wait
is decided in ``service.pass_schedule``
(:func:`~iscsi_ipsec.service.pass_schedule.seconds_until_next_pass`) and by ``resync_interval``.
No wait is longer than systemd's watchdog allows between two pings.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any

from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.adapters.netlink import GuardMonitor
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.service.config_files import ConfigFiles
from iscsi_ipsec.service.pass_schedule import RESYNC, START
from iscsi_ipsec.service.ports import Clock, ServiceManager, Wakeups, Watch
from iscsi_ipsec.service.reconciler import Outcome
from iscsi_ipsec.service.status_report import summary

_log = logging.getLogger(__name__)

GATHER_AT_MOST = 1.0
"""Seconds for which a burst of changes is gathered at most, or one ``settle_time`` where that is longer."""


class Loop:
    """Runs passes. Main thread only; other threads wake it.

    ``run_pass`` is :meth:`Reconciler.run`, ``report`` is :meth:`StatusReporter.write`, and ``watched``
    names the folders to watch, each with whether all below it counts.
    """

    def __init__(
        self,
        *,
        run_pass: Callable[[frozenset[str]], Outcome],
        report: Callable[[Outcome, tuple[Problem, ...]], Mapping[str, Any]],
        watched: Callable[[ConfigFiles], frozenset[tuple[str, bool]]],
        set_log_level: Callable[[str], None],
        watch: Watch,
        wakeups: Wakeups,
        service_manager: ServiceManager,
        clock: Clock,
    ) -> None:
        self._run_pass, self._report = run_pass, report
        self._watched, self._set_log_level = watched, set_log_level
        self._watch, self._wakeups = watch, wakeups
        self._service_manager, self._clock = service_manager, clock
        self._ping_interval = service_manager.watchdog_interval()
        self._folders: frozenset[tuple[str, bool]] = frozenset()
        self._regular_pass_began = clock.monotonic()
        self._ready = False
        self._summary = ""

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run passes and wait in between, until ``stopped``; whoever makes that true must wake the loop too."""
        reasons = frozenset({START})
        while not stopped():
            _log.debug("pass for: %s", ", ".join(sorted(reasons)))
            # watched before it is read: what changes meanwhile wakes the next pass
            if self._watch.ensure(self._folders) or (self._watch.problems and RESYNC in reasons):
                reasons |= {FileWatch.reason}
            if reasons & {START, RESYNC}:
                self._regular_pass_began = self._clock.monotonic()
            outcome = self._run_pass(reasons)
            self._notify(outcome, self._report(outcome, self._watch.problems))
            config = outcome.snapshot.config
            self._set_log_level(config.settings.log_level)
            before, self._folders = self._folders, self._watched(config)
            if self._folders != before:
                reasons = frozenset({FileWatch.reason})
            else:
                reasons = self._wait(outcome.recheck_in, config.settings, stopped)

    def _notify(self, outcome: Outcome, status: Mapping[str, Any]) -> None:
        """READY=1 once charon has settled and the guard is in force, and systemd's status line when it differs."""
        guard, line = status["guard"], summary(status)
        if not self._ready and outcome.settled and (guard["installed"] or not guard["wanted"]):
            self._ready = True
            self._service_manager.ready(line)
            # objects made so far stay for good: with 10,000 keys each full garbage collection of them takes 50 ms
            gc.collect()
            gc.freeze()
        elif self._ready and line != self._summary:
            self._service_manager.status(line)
        self._summary = line

    def _wait(self, recheck_in: float, settings: Settings, stopped: Callable[[], bool]) -> frozenset[str]:
        """Sleep until a wakeup, until ``recheck_in`` seconds are over, or until the regular pass is due."""
        regular_pass_due = self._regular_pass_began + settings.resync_interval
        end = min(self._clock.monotonic() + recheck_in, regular_pass_due)
        while not stopped():
            left = end - self._clock.monotonic()
            if left <= 0:
                return frozenset({RESYNC if self._clock.monotonic() >= regular_pass_due else "due"})
            if reasons := self._sleep(left):
                return self._gather(reasons, settings.settle_time, stopped)
        return frozenset()

    def _gather(
        self, reasons: frozenset[str], settle_time: float, stopped: Callable[[], bool]
    ) -> frozenset[str]:
        """Take in a burst until it pauses for ``settle_time``; but not while the guard may be missing."""
        now = self._clock.monotonic()
        quiet, end = now + settle_time, now + max(GATHER_AT_MOST, settle_time)
        while not (reasons & GuardMonitor.reasons or stopped()):
            left = min(quiet, end) - self._clock.monotonic()
            if left <= 0:
                break
            if more := self._sleep(left):
                reasons |= more
                quiet = self._clock.monotonic() + settle_time
        return reasons

    def _sleep(self, seconds: float) -> frozenset[str]:
        """Wait for wakeups, pinging systemd's watchdog; returns early when the next ping is due."""
        if self._ping_interval is None:
            return self._wakeups.wait(seconds)
        self._service_manager.watchdog()
        return self._wakeups.wait(min(seconds, self._ping_interval))
