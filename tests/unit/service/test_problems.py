"""What is kept of charon's log, and how often a problem is told."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from iscsi_ipsec.base.problem import Problem, Severity
from iscsi_ipsec.core.report.schema import problem_row
from iscsi_ipsec.service.ike_failure_log import YOUNG, IkeFailureLog
from iscsi_ipsec.service.paths import Paths
from iscsi_ipsec.service.problems import message_id
from iscsi_ipsec.service.status_report import StatusReporter, summary
from tests.support.fakes import FakeClock, FakeXfrm

CONN = "iscsi-ipsec-10.0.0.20-3260"
WRONG_KEY = "tried 1 shared key for 'a' - 'b', but MAC mismatched"
SILENT = "retransmit 1 of request with message ID 0"


class Ear:
    """Evidence with a clock of its own, and what it woke for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.woken: list[str] = []
        self.failure_log = IkeFailureLog(self.woken.append, lambda: self.now)

    def log(self, line: object, conn: object = CONN) -> None:
        self.failure_log.on_event("log", {"msg": line, "ikesa-name": conn})

    @property
    def codes(self) -> dict[str, str]:
        return {conn: cause.code for conn, cause in self.failure_log.causes().items()}


@pytest.fixture
def ear() -> Ear:
    return Ear()


def test_a_cause_is_kept_by_connection(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.log(SILENT, "iscsi-ipsec-10.0.0.21-3260")
    assert ear.codes == {CONN: "wrong-key", "iscsi-ipsec-10.0.0.21-3260": "peer-silent"}
    assert ear.woken == ["cause", "cause"]


def test_the_cause_that_says_more_is_kept(ear: Ear) -> None:
    for line in (SILENT, WRONG_KEY, SILENT):
        ear.log(line)
    assert ear.codes == {CONN: "wrong-key"}


def test_the_same_cause_again_wakes_nobody(ear: Ear) -> None:
    for _ in range(5):
        ear.log(WRONG_KEY)
    assert ear.woken == ["cause"]


def test_a_foreign_connections_cause_is_nobodys_business(ear: Ear) -> None:
    ear.log(WRONG_KEY, "vpn")
    ear.log(WRONG_KEY, "")
    ear.log(WRONG_KEY, None)
    assert (ear.codes, ear.woken) == ({}, [])


@pytest.mark.parametrize(
    "message", [{}, {"msg": None}, {"msg": b"bytes"}, {"msg": ["list"]}, {"msg": WRONG_KEY}]
)
def test_an_odd_event_does_no_harm(ear: Ear, message: dict[str, Any]) -> None:
    ear.failure_log.on_event("log", message)
    assert ear.codes == {}


def test_what_was_said_before_the_sa_came_up_is_history(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.now += 100
    ear.failure_log.settle(CONN, age=5)
    assert ear.codes == {}


def test_what_was_said_since_the_sa_is_up_is_kept(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.now += 5
    ear.failure_log.settle(CONN, age=100)
    assert ear.codes == {CONN: "wrong-key"}


def test_a_slow_answer_is_forgotten_once_the_sa_is_up(ear: Ear) -> None:
    ear.log(SILENT)
    ear.failure_log.settle(CONN, age=100)
    assert ear.codes == {}


def test_an_sa_event_of_ours_wakes_the_loop_and_a_foreign_one_does_not(ear: Ear) -> None:
    ear.failure_log.on_event("child-updown", {"up": "yes", "vpn": {}})
    assert ear.woken == []
    ear.failure_log.on_event("child-updown", {"up": "yes", CONN: {}})
    assert ear.woken == ["sa"]


@pytest.mark.parametrize(
    "line", [f"removed vici connection: {CONN}", "unloaded shared key with id 'iscsi-ipsec-0123456789abcdef'"]
)
def test_the_log_of_a_wipe_wakes_the_loop(ear: Ear, line: str) -> None:
    ear.log(line, None)
    assert ear.woken == ["wiped"]


def test_silence_is_a_warning_until_it_has_lasted(ear: Ear) -> None:
    ear.log(SILENT)
    (cause,) = ear.failure_log.causes().values()
    assert cause.passing
    assert "tried again" in cause.hint
    assert ear.failure_log.seconds_until_error() == pytest.approx(YOUNG)
    ear.now += YOUNG - 1
    ear.log(SILENT)  # said again, it is not young again
    ear.now += 1
    (cause,) = ear.failure_log.causes().values()
    assert not cause.passing
    assert ear.failure_log.seconds_until_error() is None


def test_a_cause_that_somebody_has_to_mend_is_an_error_at_once(ear: Ear) -> None:
    ear.log(SILENT)
    ear.log(WRONG_KEY)
    (cause,) = ear.failure_log.causes().values()
    assert (cause.code, cause.passing, ear.failure_log.seconds_until_error()) == ("wrong-key", False, None)


def test_a_packet_that_could_not_be_sent_explains_the_silence_around_it(ear: Ear) -> None:
    ear.log("error writing to socket: Operation not permitted", None)
    assert ear.codes == {}, "it may have been anybody's"
    ear.log(SILENT)
    assert ear.codes == {CONN: "unreachable"}
    ear.failure_log.settle(CONN, age=0)
    ear.now += 1000
    ear.log(SILENT)
    assert ear.codes == {CONN: "peer-silent"}, "the packet is history"


@pytest.mark.parametrize("unnamed", [None, "(unnamed)"])
def test_refused_aggressive_mode_is_heard_though_charon_says_not_whose(ear: Ear, unnamed: object) -> None:
    ear.log("Aggressive Mode PSK disabled for security reasons", "vpn")
    assert not ear.failure_log.aggressive_off()
    ear.log("Aggressive Mode PSK disabled for security reasons", unnamed)
    assert ear.failure_log.aggressive_off()
    assert ear.woken == ["cause"]
    ear.now += 601
    assert not ear.failure_log.aggressive_off()


def test_a_failed_negotiation_is_counted_once_by_each_of_its_causes(ear: Ear) -> None:
    for _ in range(3):
        ear.log(f"initiating IKE_SA {CONN}[1] to 10.0.0.20")
        for line in (SILENT, SILENT, WRONG_KEY, "could not decrypt payloads"):
            ear.log(line)
    ear.log("10.0.0.21 is initiating a Main Mode IKE_SA", "iscsi-ipsec-10.0.0.21-3260")
    ear.log(WRONG_KEY, "iscsi-ipsec-10.0.0.21-3260")
    ear.log(WRONG_KEY, "vpn")
    assert ear.failure_log.failures() == {"peer-silent": 3, "wrong-key": 4}


def test_causes_are_a_copy(ear: Ear) -> None:
    before = ear.failure_log.causes()
    ear.log(WRONG_KEY)
    assert before == {}


# -- the reporter


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
def test_the_status_file_is_whole_however_its_lists_grow_and_shrink(
    reporter: StatusReporter, tmp_path: Path, counts: tuple[int, ...]
) -> None:
    for count in counts:
        reporter.write_file(with_portals(count) | {"generation": count})
        said = json.loads((tmp_path / "status.json").read_text())
        assert said == with_portals(count) | {"generation": count, "keys": [], "files": []}


@pytest.mark.parametrize("wrong", ["", "x" * 100_000, None])
def test_a_status_file_that_somebody_spoiled_is_whole_again_after_the_next_pass(
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


def test_a_problem_is_logged_once_and_its_solution_once(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    for problems in ([], [row()], [row()], [row()], [], []):
        reporter._log_changes(problems)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "the key is missing"),
        ("INFO", "solved: the key is missing"),
    ]
    assert caplog.records[1].__dict__["fields"]["MESSAGE_ID"] == message_id("solved")


def test_a_problem_that_comes_back_is_logged_again(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    for problems in ([row()], [], [row()]):
        reporter._log_changes(problems)
    assert [r.levelname for r in caplog.records] == ["ERROR", "INFO", "ERROR"]


def test_a_warning_is_logged_as_one(reporter: StatusReporter, caplog: pytest.LogCaptureFixture) -> None:
    reporter._log_changes([row(severity=Severity.WARNING)])
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_warning_that_became_an_error_is_logged_again_and_is_not_solved(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(severity=Severity.WARNING)])
    reporter._log_changes([row(severity=Severity.ERROR)])
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_another_problem_of_the_same_file_is_another_problem(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(file="a.toml", line=1)])
    reporter._log_changes([row(file="a.toml", line=1), row(file="a.toml", line=2)])
    assert [r.getMessage() for r in caplog.records] == [
        "a.toml:1: the key is missing",
        "a.toml:2: the key is missing",
    ]


def test_the_same_problem_twice_in_one_pass_is_logged_once(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(), row()])
    assert len(caplog.records) == 1


def test_a_record_carries_fields_for_the_journal_and_nothing_empty(
    reporter: StatusReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter._log_changes([row(file="a.toml", line=3)])
    fields = caplog.records[0].__dict__["fields"]
    assert fields["ISCSI_IPSEC_PROBLEM"] == "no-key"
    assert fields["CONFIG_FILE"] == "a.toml"
    assert fields["MESSAGE_ID"] == message_id("no-key")
    assert all(fields.values())


def test_the_summary_counts_what_matters() -> None:
    reported = {
        "portals": [{"managed": True, "protected": True}, {"managed": True, "protected": False}, {"managed": False, "protected": False}],
        "keys": [{}, {}],
        "problems": [row(), row(severity=Severity.WARNING)],
        "charon": {"reachable": False},
    }  # fmt: skip
    assert summary(reported) == "2 portals managed, 1 with an SA up, 2 keys, charon unreachable, 1 problems"


def test_doubts_about_a_key_are_counted_once_for_each_negotiation() -> None:
    ear = Ear()
    for ike_id, line in (
        ("1", "could not decrypt payloads"),
        ("1", "could not decrypt payloads"),
        ("2", "received AUTHENTICATION_FAILED notify error"),
    ):
        ear.failure_log.on_event("log", {"msg": line, "ikesa-name": CONN, "ikesa-uniqueid": ike_id})
    assert ear.failure_log.doubts() == {CONN: 2}
    assert "doubt" in ear.woken


def test_a_negotiation_without_a_name_wakes_only_where_it_is_asked_for() -> None:
    ear = Ear()
    message = {"msg": "could not decrypt payloads", "ikesa-name": "(unnamed)"}
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "1"})
    assert ear.woken == []
    ear.failure_log.nameless = True
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "2"})
    assert ear.woken == ["doubt"]
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "3", "ikesa-name": "somebody-elses"})
    assert ear.failure_log.doubts() == {"": 2}
