"""A folder that cannot be written costs a problem, never the daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ipsec.adapters.nft import Guard, GuardState
from iscsi_ipsec.base.problem import Problem
from iscsi_ipsec.core.config.settings import Settings
from iscsi_ipsec.core.decide.derive import derive
from iscsi_ipsec.core.decide.lookup import Lookup
from iscsi_ipsec.core.decide.world import World
from iscsi_ipsec.service.guard import GuardReconciler
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.status_report import StatusReporter
from tests.support.fakes import FakeClock, FakeXfrm
from tests.support.netlab.space import Namespace


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace("unwritable")
    yield space
    space.close()


def test_a_guard_whose_file_cannot_be_written_is_in_the_kernel_all_the_same(
    space: Namespace, tmp_path: Path
) -> None:
    keeper = GuardReconciler(Guard(), str(tmp_path / "gone" / "guard.nft"))
    problems: list[Problem] = []

    def keep() -> GuardState | None:
        return keeper.reconcile(derive(Lookup(World())), Settings(), frozenset({"start"}), problems)

    assert space.inside(keep) is not None
    assert [problem.code for problem in problems] == ["state-unsaved"]


def test_a_status_file_that_cannot_be_written_is_logged_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = StatusReporter(Paths(runtime_dir=str(tmp_path / "gone")), FakeXfrm(FakeClock()), FakeClock())
    with caplog.at_level(logging.ERROR):
        reporter.write_file({"generation": 1})
    assert "status.json" in caplog.text
