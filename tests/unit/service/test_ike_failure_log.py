"""Causes from charon's log: what is kept, for how long, and what wakes the loop."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ipsec.service.ike_failure_log import YOUNG, IkeFailureLog
from tests.support.hostile_log import IMITATIONS, SLOTS

NAME = "iscsi-ipsec-00aa11bb22cc33dd"


def reported(failure_log: IkeFailureLog, line: str) -> None:
    failure_log.on_event("log", {"group": "CFG", "msg": line})


def test_failure_log_wakes_for_what_others_unload_and_not_for_what_we_do() -> None:
    woken: list[str] = []
    failure_log = IkeFailureLog(woken.append)
    failure_log.expect_gone([NAME])
    reported(failure_log, f"unloaded shared key with id '{NAME}'")
    assert woken == []
    reported(failure_log, "unloaded shared key with id 'iscsi-ipsec-ffffffffffffffff'")
    assert woken == ["wiped"]
    failure_log.expect_gone([])
    reported(failure_log, f"unloaded shared key with id '{NAME}'")
    assert woken == ["wiped", "wiped"]


def test_failure_log_wakes_for_what_charon_takes_for_a_duplicate_of_ours() -> None:
    woken: list[str] = []
    failure_log = IkeFailureLog(woken.append)
    line = "not establishing CHILD_SA {}-1-2{{17}} due to existing duplicate {{16}} with SPIs c1_i c2_o and TS a === b"
    failure_log.on_event(
        "log", {"msg": line.format("iscsi-ipsec-395"), "ikesa-name": "iscsi-ipsec-10.0.0.20-3260"}
    )
    assert woken == ["duplicate"]
    failure_log.on_event("log", {"msg": line.format("vpn"), "ikesa-name": "vpn"})
    assert woken == ["duplicate"]


CONN = "iscsi-ipsec-10.0.0.20-3260"


WRONG_KEY = "tried 1 shared key for 'a' - 'b', but MAC mismatched"


SILENT = "retransmit 1 of request with message ID 0"


# -- causes


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


def test_failure_log_keeps_a_cause_by_connection(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.log(SILENT, "iscsi-ipsec-10.0.0.21-3260")
    assert ear.codes == {CONN: "wrong-key", "iscsi-ipsec-10.0.0.21-3260": "peer-silent"}
    assert ear.woken == ["cause", "cause"]


def test_failure_log_keeps_the_cause_that_says_more(ear: Ear) -> None:
    for line in (SILENT, WRONG_KEY, SILENT):
        ear.log(line)
    assert ear.codes == {CONN: "wrong-key"}


def test_failure_log_wakes_nobody_for_the_same_cause_again(ear: Ear) -> None:
    for _ in range(5):
        ear.log(WRONG_KEY)
    assert ear.woken == ["cause"]


def test_failure_log_ignores_a_foreign_connections_cause(ear: Ear) -> None:
    ear.log(WRONG_KEY, "vpn")
    ear.log(WRONG_KEY, "")
    ear.log(WRONG_KEY, None)
    assert (ear.codes, ear.woken) == ({}, [])


@pytest.mark.parametrize(
    "message", [{}, {"msg": None}, {"msg": b"bytes"}, {"msg": ["list"]}, {"msg": WRONG_KEY}]
)
def test_failure_log_ignores_an_odd_event(ear: Ear, message: dict[str, Any]) -> None:
    ear.failure_log.on_event("log", message)
    assert ear.codes == {}


def test_settle_forgets_a_cause_from_before_the_sa_came_up(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.now += 100
    ear.failure_log.settle(CONN, age=5)
    assert ear.codes == {}


def test_settle_keeps_a_cause_since_the_sa_is_up(ear: Ear) -> None:
    ear.log(WRONG_KEY)
    ear.now += 5
    ear.failure_log.settle(CONN, age=100)
    assert ear.codes == {CONN: "wrong-key"}


def test_settle_forgets_a_slow_answer_once_the_sa_is_up(ear: Ear) -> None:
    ear.log(SILENT)
    ear.failure_log.settle(CONN, age=100)
    assert ear.codes == {}


def test_failure_log_wakes_the_loop_for_an_sa_event_of_ours_only(ear: Ear) -> None:
    ear.failure_log.on_event("child-updown", {"up": "yes", "vpn": {}})
    assert ear.woken == []
    ear.failure_log.on_event("child-updown", {"up": "yes", CONN: {}})
    assert ear.woken == ["sa"]


@pytest.mark.parametrize(
    "line", [f"removed vici connection: {CONN}", "unloaded shared key with id 'iscsi-ipsec-0123456789abcdef'"]
)
def test_failure_log_wakes_the_loop_when_charon_was_wiped(ear: Ear, line: str) -> None:
    ear.log(line, None)
    assert ear.woken == ["wiped"]


def test_causes_show_silence_as_a_warning_until_it_has_lasted(ear: Ear) -> None:
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


def test_causes_show_what_somebody_has_to_fix_as_an_error_at_once(ear: Ear) -> None:
    ear.log(SILENT)
    ear.log(WRONG_KEY)
    (cause,) = ear.failure_log.causes().values()
    assert (cause.code, cause.passing, ear.failure_log.seconds_until_error()) == ("wrong-key", False, None)


def test_failure_log_explains_silence_by_a_packet_that_could_not_be_sent(ear: Ear) -> None:
    ear.log("error writing to socket: Operation not permitted", None)
    assert ear.codes == {}, "it may have been anybody's"
    ear.log(SILENT)
    assert ear.codes == {CONN: "unreachable"}
    ear.failure_log.settle(CONN, age=0)
    ear.now += 1000
    ear.log(SILENT)
    assert ear.codes == {CONN: "peer-silent"}, "the packet is history"


@pytest.mark.parametrize("unnamed", [None, "(unnamed)"])
def test_aggressive_off_is_heard_though_charon_does_not_say_whose(ear: Ear, unnamed: object) -> None:
    ear.log("Aggressive Mode PSK disabled for security reasons", "vpn")
    assert not ear.failure_log.aggressive_off()
    ear.log("Aggressive Mode PSK disabled for security reasons", unnamed)
    assert ear.failure_log.aggressive_off()
    assert ear.woken == ["cause"]
    ear.now += 601
    assert not ear.failure_log.aggressive_off()


def test_failures_counts_a_negotiation_once_by_each_of_its_causes(ear: Ear) -> None:
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


def test_doubts_counts_once_for_each_negotiation() -> None:
    ear = Ear()
    for ike_id, line in (
        ("1", "could not decrypt payloads"),
        ("1", "could not decrypt payloads"),
        ("2", "received AUTHENTICATION_FAILED notify error"),
    ):
        ear.failure_log.on_event("log", {"msg": line, "ikesa-name": CONN, "ikesa-uniqueid": ike_id})
    assert ear.failure_log.doubts() == {CONN: 2}
    assert "doubt" in ear.woken


def test_doubts_of_a_negotiation_without_a_name_wake_only_where_asked_for() -> None:
    ear = Ear()
    message = {"msg": "could not decrypt payloads", "ikesa-name": "(unnamed)"}
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "1"})
    assert ear.woken == []
    ear.failure_log.nameless = True
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "2"})
    assert ear.woken == ["doubt"]
    ear.failure_log.on_event("log", message | {"ikesa-uniqueid": "3", "ikesa-name": "somebody-elses"})
    assert ear.failure_log.doubts() == {"": 2}


def test_the_last_line_is_what_may_say_why() -> None:
    log = IkeFailureLog(lambda _: None)
    for line in (
        "initiating IKE_SA c[1] to 10.0.0.20",
        "something that nobody has foreseen",
        "sending packet: from 10.0.0.1[500] to 10.0.0.20[500] (80 bytes)",
        "generating IKE_SA_INIT request 0 [ SA ]",
    ):
        log.on_event("log", {"msg": line, "ikesa-name": "iscsi-ipsec-a", "ikesa-uniqueid": "1"})
    assert log.last_line("iscsi-ipsec-a") == "something that nobody has foreseen"
    assert log.last_line("iscsi-ipsec-b") == ""


@pytest.mark.parametrize("conn", [CONN, "(unnamed)", None])
@pytest.mark.parametrize("slot", SLOTS)
def test_failure_log_wakes_for_nothing_that_a_peer_wrote(ear: Ear, slot: str, conn: str | None) -> None:
    for text in IMITATIONS:
        ear.log(slot.format(text), conn)
    assert ear.woken == []
    assert ear.codes == {}
    assert ear.failure_log.doubts() == {}
    assert not ear.failure_log.aggressive_off()
