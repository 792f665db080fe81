"""The status file, and one line of log for each problem that comes or goes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.problems import message_id
from iscsi_ipsec.service.status_report import StatusReporter, summary
from tests.support.fakes import FakeClock, FakeXfrm


def row(
    message: str = "the key is missing", severity: Severity = Severity.ERROR, **more: Any
) -> dict[str, Any]:
    return problem_row(Problem(code="no-key", message=message, severity=severity, **more))


@pytest.fixture
def reporter(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> StatusReporter:
    caplog.set_level(logging.INFO, "iscsi_ipsec")
    return StatusReporter(Paths(runtime_dir=str(tmp_path)), FakeXfrm(FakeClock()), FakeClock())


def with_portals(count: int) -> dict[str, Any]:
    return {"portals": [{"key": f"k{n}", "connection": None} for n in range(count)], "problems": []}


@pytest.mark.parametrize("counts", [(0, 1, 200, 201, 450, 400, 399, 0), (450, 450, 3)])
def test_write_file_leaves_a_whole_file_however_its_lists_grow_and_shrink(
    reporter: StatusReporter, tmp_path: Path, counts: tuple[int, ...]
) -> None:
    for count in counts:
        reporter.write_file(with_portals(count) | {"generation": count})
        said = json.loads((tmp_path / "status.json").read_text())
        assert said == with_portals(count) | {"generation": count, "keys": [], "files": []}


@pytest.mark.parametrize("wrong", ["", "x" * 100_000, None])
def test_write_file_repairs_a_file_that_somebody_spoiled(
    reporter: StatusReporter, tmp_path: Path, wrong: str | None
) -> None:
    file = tmp_path / "status.json"
    reporter.write_file(with_portals(450))
    whole = file.read_bytes()
    time.sleep(0.02)  # more than a tick of the file system's clock
    if wrong is None:
        file.unlink()
    else:
        file.write_text(wrong)
    reporter.write_file(with_portals(450))
    assert file.read_bytes() == whole


def test_reporter_logs_a_problem_once_and_its_solution_once(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    for problems in ([], [row()], [row()], [row()], [], []):
        reporter._log_changes(problems)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "the key is missing"),
        ("INFO", "solved: the key is missing"),
    ]
    assert caplog.records[1].__dict__["fields"]["MESSAGE_ID"] == message_id("solved")


def test_reporter_logs_a_problem_that_comes_back_again(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    for problems in ([row()], [], [row()]):
        reporter._log_changes(problems)
    assert [r.levelname for r in caplog.records] == ["ERROR", "INFO", "ERROR"]


def test_reporter_logs_a_warning_as_one(reporter: StatusReporter, caplog: pytest.LogCaptureFixture) -> None:
    reporter._log_changes([row(severity=Severity.WARNING)])
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_reporter_logs_a_warning_that_became_an_error_again_and_not_as_solved(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(severity=Severity.WARNING)])
    reporter._log_changes([row(severity=Severity.ERROR)])
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_reporter_distinguishes_two_problems_of_one_file(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(file="a.toml", line=1)])
    reporter._log_changes([row(file="a.toml", line=1), row(file="a.toml", line=2)])
    assert [r.getMessage() for r in caplog.records] == [
        "a.toml:1: the key is missing",
        "a.toml:2: the key is missing",
    ]


def test_reporter_logs_the_same_problem_twice_in_one_pass_once(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(), row()])
    assert len(caplog.records) == 1


def test_reporter_gives_a_record_fields_for_the_journal_and_none_empty(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(file="a.toml", line=3)])
    fields = caplog.records[0].__dict__["fields"]
    assert fields["ISCSI_IPSEC_PROBLEM"] == "no-key"
    assert fields["CONFIG_FILE"] == "a.toml"
    assert fields["MESSAGE_ID"] == message_id("no-key")
    assert all(fields.values())


def test_summary_counts_portals_keys_and_errors() -> None:
    reported = {
        "portals": [{"managed": True, "protected": True}, {"managed": True, "protected": False}, {"managed": False, "protected": False}],
        "keys": [{}, {}],
        "problems": [row(), row(severity=Severity.WARNING)],
        "charon": {"reachable": False},
    }  # fmt: skip
    assert summary(reported) == "2 portals managed, 1 with an SA up, 2 keys, charon unreachable, 1 problems"
