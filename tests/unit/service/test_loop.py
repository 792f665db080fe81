"""The loop: when it passes, how long it waits, what it notifies systemd of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iscsi_ipsec.adapters.inotify import FileWatch
from iscsi_ipsec.adapters.netlink import GuardMonitor
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.service.loop import GATHER_AT_MOST, Loop
from iscsi_ipsec.service.pass_schedule import RESYNC, START
from iscsi_ipsec.service.reconciler import Outcome
from tests.support.fakes import FakeClock, FakeServiceManager, FakeWakeups, FakeWatch, silences
from tests.support.service_host import Host

RESYNC_INTERVAL = Settings().resync_interval
SETTLE = Settings().settle_time
FILES, POLICIES = FileWatch.reason, "policies"


class Running:
    """A loop whose passes do nothing; ``passes`` are their moments and reasons, ``pass_seconds`` their length."""

    def __init__(self, outcome: Outcome, *, watchdog: float | None = None) -> None:
        self.clock = FakeClock(0.0)
        self.wakeups, self.watch = FakeWakeups(self.clock), FakeWatch(self.clock)
        self.service_manager = FakeServiceManager(self.clock)
        self.service_manager.interval = watchdog
        self.outcome = replace(outcome, recheck_in=RESYNC_INTERVAL)
        self.settings = Settings()
        self.guard = {"wanted": True, "installed": True, "dropped": 0}
        self.pass_seconds = 0.0
        self.passes: list[tuple[float, frozenset[str]]] = []
        self.levels: list[str] = []
        self.folders: frozenset[tuple[str, bool]] = frozenset()
        self.until = 0.0
        self.loop = Loop(
            run_pass=self._pass, report=self._report, watched=lambda config: self.folders,
            set_log_level=self.levels.append, watch=self.watch, wakeups=self.wakeups,
            service_manager=self.service_manager, clock=self.clock,
        )  # fmt: skip

    def _pass(self, reasons: frozenset[str]) -> Outcome:
        self.passes.append((round(self.clock.at, 3), reasons))
        self.clock.advance(self.pass_seconds)
        config = replace(self.outcome.snapshot.config, settings=self.settings)
        return replace(self.outcome, snapshot=replace(self.outcome.snapshot, config=config))

    def _report(self, outcome: Outcome, problems: tuple[Problem, ...]) -> Mapping[str, Any]:
        charon = {"reachable": True, "settled": True}
        return {"guard": self.guard, "charon": charon, "portals": [], "keys": [], "problems": []}

    def run(self, seconds: float) -> list[tuple[float, frozenset[str]]]:
        self.until = self.clock.at + seconds
        self.loop.run(lambda: self.clock.at >= self.until)
        return self.passes


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    return Host(tmp_path).run()


@pytest.fixture
def running(outcome: Outcome) -> Running:
    return Running(outcome)


def reasons(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_the_first_pass_is_a_start_and_regular_ones_follow_at_the_resync_interval(running: Running) -> None:
    assert running.run(2 * RESYNC_INTERVAL + 1) == [
        (0.0, reasons(START)),
        (RESYNC_INTERVAL, reasons(RESYNC)),
        (2 * RESYNC_INTERVAL, reasons(RESYNC)),
    ]


def test_an_earlier_recheck_is_no_regular_pass_and_does_not_put_it_off(running: Running) -> None:
    running.outcome = replace(running.outcome, recheck_in=20.0)
    assert running.run(RESYNC_INTERVAL + 1) == [
        (0.0, reasons(START)),
        (20.0, reasons("due")),
        (RESYNC_INTERVAL, reasons(RESYNC)),
    ]


def test_constant_wakeups_do_not_put_the_regular_pass_off(running: Running) -> None:
    for moment in range(1, 70):
        running.wakeups.at(float(moment), POLICIES)
    passes = running.run(70.0)
    regular = [moment for moment, why in passes if RESYNC in why]
    assert regular == pytest.approx([RESYNC_INTERVAL, 2 * RESYNC_INTERVAL], abs=2.0)


def test_a_wakeup_is_acted_on_after_the_settle_time(running: Running) -> None:
    running.wakeups.at(5.0, FILES)
    assert running.run(10.0)[1] == (round(5.0 + SETTLE, 3), reasons(FILES))


def test_a_burst_is_one_pass_with_all_its_reasons(running: Running) -> None:
    for number in range(10):
        running.wakeups.at(5.0 + number * SETTLE / 2, FILES, f"other-{number}")
    (_, why) = running.run(10.0)[1]
    assert why == reasons(FILES, *(f"other-{number}" for number in range(10)))
    assert len(running.passes) == 2


def test_an_endless_burst_is_cut_by_time_however_many_wakeups_it_has(running: Running) -> None:
    for number in range(5_000):
        running.wakeups.at(5.0 + number / 1000, FILES)
    moment, _ = running.run(10.0)[1]
    assert moment == pytest.approx(5.0 + GATHER_AT_MOST, abs=0.01)


def test_a_changed_guard_is_not_gathered(running: Running) -> None:
    running.wakeups.at(5.0, GuardMonitor.gone)
    assert running.run(10.0)[1] == (5.0, reasons(GuardMonitor.gone))


def test_a_guard_that_changes_within_a_burst_ends_the_gathering(running: Running) -> None:
    running.settings = replace(Settings(), settle_time=5.0)
    running.wakeups.at(5.0, FILES)
    running.wakeups.at(6.0, GuardMonitor.gone)
    assert running.run(10.0)[1] == (6.0, reasons(FILES, GuardMonitor.gone))


def test_without_a_settle_time_nothing_is_gathered(running: Running) -> None:
    running.settings = replace(Settings(), settle_time=0.0)
    running.wakeups.at(5.0, FILES)
    running.wakeups.at(5.01, POLICIES)
    assert running.run(10.0)[1:] == [(5.0, reasons(FILES)), (5.01, reasons(POLICIES))]


def test_the_watchdog_is_pinged_in_time_while_gathering_with_the_longest_settle_time(
    outcome: Outcome,
) -> None:
    running = Running(outcome, watchdog=2.0)
    running.settings = replace(Settings(), settle_time=5.0)
    for number in range(100):
        running.wakeups.at(5.0 + 4 * number, FILES)
    running.run(300.0)
    assert max(silences(running.service_manager.pings, running.clock.at)) <= 2.0 + 0.01
    assert len(running.passes) >= 300 / 11


def test_the_watchdog_is_pinged_in_time_while_nothing_happens(outcome: Outcome) -> None:
    running = Running(outcome, watchdog=7.0)
    running.run(100.0)
    assert max(silences(running.service_manager.pings, running.clock.at)) <= 7.0 + 0.01


def test_the_loop_pings_nobody_without_a_watchdog(running: Running) -> None:
    running.run(100.0)
    assert running.service_manager.pings == []


def test_a_stop_ends_the_loop_without_another_pass(running: Running) -> None:
    running.wakeups.at(5.0, "stop")
    assert len(running.run(5.0)) == 1


def test_a_new_watch_makes_the_next_pass_read_the_files(running: Running) -> None:
    running.watch.new = True
    assert running.run(1.0)[0] == (0.0, reasons(START, FILES))


def test_other_folders_are_watched_before_a_second_pass_that_follows_at_once(running: Running) -> None:
    running.folders = frozenset({("/etc/iscsi-ipsec", False)})
    assert running.run(1.0) == [(0.0, reasons(START)), (0.0, reasons(FILES))]
    assert running.watch.watched == [frozenset(), running.folders]


def test_folders_that_cannot_be_watched_are_read_in_each_regular_pass(running: Running) -> None:
    running.watch.problems = (Problem(code="unwatched", message="no inotify instance is left"),)
    running.outcome = replace(running.outcome, recheck_in=20.0)
    assert [why for _, why in running.run(RESYNC_INTERVAL + 1)] == [
        reasons(START),
        reasons("due"),
        reasons(RESYNC, FILES),
    ]


@pytest.mark.parametrize(
    ("settled", "guard", "ready"),
    [
        (True, {"wanted": True, "installed": True}, True),
        (True, {"wanted": False, "installed": False}, True),
        (True, {"wanted": True, "installed": False}, False),
        (False, {"wanted": True, "installed": True}, False),
    ],
)
def test_ready_needs_a_settled_charon_and_the_guard(
    running: Running, settled: bool, guard: dict[str, Any], ready: bool
) -> None:
    running.outcome = replace(running.outcome, settled=settled)
    running.guard = guard
    running.run(1.0)
    assert [what for what, _ in running.service_manager.said] == (["ready"] if ready else [])


def test_ready_is_said_once_and_the_status_line_only_when_it_differs(running: Running) -> None:
    running.run(3 * RESYNC_INTERVAL + 1)
    assert [what for what, _ in running.service_manager.said] == ["ready"]


def test_the_log_level_of_the_settings_is_in_force_after_the_first_pass(running: Running) -> None:
    running.settings = replace(Settings(), log_level="debug")
    running.run(1.0)
    assert running.levels == ["debug"]


def test_an_error_of_a_pass_is_not_swallowed(running: Running) -> None:
    def broken(reasons: frozenset[str]) -> Outcome:
        raise PermissionError(13, "not permitted", "/somewhere")

    running.loop._run_pass = broken
    with pytest.raises(PermissionError):
        running.run(1.0)


def test_config_files_name_what_is_watched(running: Running) -> None:
    running.loop._watched = lambda config: frozenset({(config.settings.log_level, False)})
    running.run(1.0)
    assert running.watch.watched[-1] == {(running.settings.log_level, False)}
