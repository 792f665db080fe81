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
from tests.support.service_host import Host
from tests.support.values import per_id, policy


def row(
    message: str = "the key is missing", severity: Severity = Severity.ERROR, **more: Any
) -> dict[str, Any]:
    return problem_row(Problem(code="no-key", message=message, severity=severity, **more))


@pytest.fixture
def reporter(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> StatusReporter:
    caplog.set_level(logging.INFO, "iscsi_ipsec")
    return StatusReporter(Paths(runtime_dir=str(tmp_path)), FakeXfrm(FakeClock()), FakeClock())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def read(host: Host) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(Path(host.paths.status_file).read_text())
    return said


def with_portals(count: int) -> dict[str, Any]:
    return {"portals": [{"key": f"k{n}", "connection": None} for n in range(count)], "problems": []}


def test_write_file_leaves_the_file_alone_if_only_time_and_generation_differ(
    reporter: StatusReporter, tmp_path: Path
) -> None:
    file = tmp_path / "status.json"
    reporter.write_file(with_portals(3) | {"generation": 1, "time": 1})
    inode = file.stat().st_ino
    reporter.write_file(with_portals(3) | {"generation": 2, "time": 2})
    assert file.stat().st_ino == inode
    assert json.loads(file.read_text()) == with_portals(3) | {"generation": 1, "time": 1}


@pytest.mark.parametrize(
    "change", [{"portals": []}, {"problems": [row()]}, {"guard": {"dropped": 1}}, {"pid": 2}, {"new": None}]
)
def test_write_file_writes_the_whole_document_if_anything_else_differs(
    reporter: StatusReporter, tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "status.json"
    before = with_portals(3) | {"guard": {"dropped": 0}, "pid": 1}
    reporter.write_file(before | {"generation": 1})
    reporter.write_file(before | change | {"generation": 2})
    assert json.loads(file.read_text()) == before | change | {"generation": 2}


def test_write_file_tries_again_after_a_failure(reporter: StatusReporter, tmp_path: Path) -> None:
    reporter.write_file(with_portals(1))
    file = tmp_path / "status.json"
    file.unlink()
    file.mkdir()  # no file can be renamed over it
    reporter.write_file(with_portals(2))
    file.rmdir()
    reporter.write_file(with_portals(2))
    assert json.loads(file.read_text()) == with_portals(2)


def test_write_of_a_pass_that_changed_nothing_writes_metrics_alone(host: Host) -> None:
    host.put(per_id("db1"), policy("10.0.0.20"))
    reporter = StatusReporter(host.paths, host.xfrm, host.clock)
    for _ in range(3):  # charon's answers settle
        reporter.write(host.run())
    status = reporter.write(host.run())
    file, metrics = Path(host.paths.status_file), Path(host.paths.metrics_file)
    before, inodes = json.loads(file.read_text()), (file.stat().st_ino, metrics.stat().st_ino)
    again = reporter.write(host.run())
    assert again["generation"] == status["generation"] + 1
    assert (file.stat().st_ino == inodes[0], metrics.stat().st_ino == inodes[1]) == (True, False)
    of_each_pass = {"generation": before["generation"], "time": before["time"]}
    assert before == json.loads(json.dumps(again)) | of_each_pass


def test_write_shows_a_key_that_came_and_one_that_came_into_use(host: Host) -> None:
    reporter = StatusReporter(host.paths, host.xfrm, host.clock)
    host.put(per_id("db1"))
    reporter.write(host.run())
    assert [(k["name"], k["in_use"]) for k in read(host)["keys"]] == [("db1", False)]
    host.put(per_id("db1"), policy("10.0.0.20"))
    reporter.write(host.run())
    assert [(k["name"], k["in_use"]) for k in read(host)["keys"]] == [("db1", True)]
    host.put(per_id("db1"), per_id("db2"), policy("10.0.0.20", psk="db1"))
    reporter.write(host.run())
    assert [(k["name"], k["in_use"]) for k in read(host)["keys"]] == [("db1", True), ("db2", False)]


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
    assert summary(reported) == "2 portals managed, 1 with an SA up, 2 keys, charon unreachable, 1 problem"
