"""What charon's log says, and whom it wakes."""

from __future__ import annotations

from iscsi_ipsec.service.ike_failure_log import IkeFailureLog

NAME = "iscsi-ipsec-00aa11bb22cc33dd"


def reported(failure_log: IkeFailureLog, line: str) -> None:
    failure_log.on_event("log", {"group": "CFG", "msg": line})


def test_what_we_unload_ourselves_wakes_nobody_and_what_others_do_wakes() -> None:
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


def test_what_charon_takes_for_a_duplicate_of_ours_is_looked_into() -> None:
    woken: list[str] = []
    failure_log = IkeFailureLog(woken.append)
    line = "not establishing CHILD_SA {}-1-2{{17}} due to existing duplicate {{16}} with SPIs c1_i c2_o and TS a === b"
    failure_log.on_event(
        "log", {"msg": line.format("iscsi-ipsec-395"), "ikesa-name": "iscsi-ipsec-10.0.0.20-3260"}
    )
    assert woken == ["duplicate"]
    failure_log.on_event("log", {"msg": line.format("vpn"), "ikesa-name": "vpn"})
    assert woken == ["duplicate"]
