"""SAs in passes whose charon and kernel fail: what is begun, what ends, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_ipsec.base.errors import CharonRefused
from iscsi_ipsec.core.ike.sa_lifecycle import RETRY_DELAYS
from tests.support.fakes import AWAY, NO_BUFFERS
from tests.support.service_host import Host
from tests.support.values import TARGET, per_id, policy, record, session

KEY = per_id("10.0.0.1", "db1")
NEW_KEY = per_id("10.0.0.1", "db1", secret=b"another key for the same file")
SAN = policy(TARGET)
OTHER = policy("10.0.0.21", name="other")
WITH_SESSION = (KEY, SAN, record(), session())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.put(*WITH_SESSION)
    return host


@pytest.fixture
def up(host: Host) -> Host:
    """The connection is loaded, its SA is up, and everything is quiet."""
    host.run()
    host.establish()
    host.run()
    host.charon.log.clear()
    return host


def only_child(host: Host) -> str:
    ((child,),) = host.charon.conns.values()
    return child


# -- bringing up


def test_a_connection_that_a_session_needs_is_initiated_at_once(host: Host) -> None:
    host.run()
    assert host.charon.commands().count("initiate") == 1


def test_a_connection_that_nobody_needs_waits_for_its_trap(host: Host) -> None:
    host.put(KEY, SAN, record())
    host.run()
    assert "initiate" not in host.charon.commands()


def test_a_connection_that_only_an_offloaded_session_names_is_never_initiated(host: Host) -> None:
    host.put(KEY, SAN, record(), session(transport="iscsi_iser"))
    host.run()
    assert "initiate" not in host.charon.commands()


def test_attempts_follow_the_delays_and_no_pass_in_between_adds_one(host: Host) -> None:
    host.run()
    begun = host.clock.at
    for delay in RETRY_DELAYS:
        for _ in range(5):
            host.clock.advance(delay / 6)
            host.run("due")
        assert host.charon.calls["initiate"] == 1 + RETRY_DELAYS.index(delay), "not before it is due"
        host.clock.at = begun = begun + delay
        host.run("due")
        assert host.charon.calls["initiate"] == 2 + RETRY_DELAYS.index(delay)
        if RETRY_DELAYS.count(delay) > 1:
            break  # the delays stay at their longest


def test_the_next_attempt_limits_the_sleep(host: Host) -> None:
    host.run()
    host.run("due")
    assert host.run("due").recheck_in <= RETRY_DELAYS[0] + 0.1


def test_a_refused_initiate_is_no_reason_to_stop_the_pass(host: Host) -> None:
    host.run()
    host.charon.conns = {name: frozenset({"another-child"}) for name in host.charon.conns}
    take = host.charon.initiate

    def refuse(conn: str, child: str) -> None:
        take(conn, "no-such-child")

    host.charon.initiate = refuse  # type: ignore[method-assign]  # charon lost the child in between
    host.clock.advance(RETRY_DELAYS[0])
    assert host.run("due").charon is not None


def test_a_charon_that_went_away_and_came_back_is_tried_at_once(host: Host) -> None:
    for delay in RETRY_DELAYS:
        host.run("due")
        host.clock.advance(delay)
    host.charon.fail(AWAY, "observe", "sas")
    host.run("charon-down")
    host.charon.recover()
    before = host.charon.calls["initiate"]
    host.run("charon-up")
    assert host.charon.calls["initiate"] == before + 1


# -- replacing and ending


def test_an_established_sa_is_left_alone_in_every_pass(up: Host) -> None:
    for _ in range(10):
        up.clock.advance(30)
        up.run()
    assert up.charon.log == []


def test_the_sa_of_a_replaced_key_ends_only_after_its_successor_is_up(up: Host) -> None:
    (old,) = up.charon.sas_now
    up.put(NEW_KEY, *WITH_SESSION[1:])
    up.run("files")
    assert "initiate" in up.charon.commands()
    assert up.charon.ended() == []
    up.charon.sas_now = up.charon.sas_now[:0]
    up.establish()
    (new,) = up.charon.sas_now
    up.charon.sas_now = (old, replace(new, unique_id=99))
    up.run("sa")
    assert up.charon.ended() == [f"ike {old.unique_id}"]


def test_the_sa_of_a_removed_key_ends_in_the_pass_that_saw_it_go(up: Host) -> None:
    up.put(*WITH_SESSION[1:])
    up.run("files")
    assert up.charon.ended() == ["ike 1"]


def test_a_removed_key_touches_no_other_portals_sa(host: Host) -> None:
    other = per_id("db2.example.com", "db2", portals=["10.0.0.21"])
    named = per_id("db1.example.com", "db1", portals=[TARGET])
    host.put(named, other, SAN, OTHER, record(), record("10.0.0.21"), session(), session("10.0.0.21", 2))
    host.run()
    host.establish()
    host.run()
    kept = next(sa for sa in host.charon.sas_now if "10.0.0.21" in sa.conn)
    host.put(other, SAN, OTHER, record(), record("10.0.0.21"), session(), session("10.0.0.21", 2))
    host.run("files")
    assert kept in host.charon.sas_now
    assert len(host.charon.ended()) == 1


# -- the kernel


def test_a_policy_that_the_kernel_lost_is_loaded_again(up: Host) -> None:
    up.xfrm.policies_now = ()
    up.run("policies")
    assert up.charon.commands()[:2] == ["terminate", "unload-conn"]
    assert "load-conn" in up.charon.commands()


def test_policies_that_cannot_be_read_are_not_taken_for_lost(up: Host) -> None:
    up.xfrm.policies_now = ()
    up.xfrm.fail(NO_BUFFERS, "policies")
    for _ in range(5):
        up.run()
    assert up.charon.log == []


def test_an_sa_that_the_kernel_lost_is_negotiated_again(up: Host) -> None:
    up.xfrm.states_now = ()
    up.run("policies")
    assert up.charon.ended() == ["ike 1"]
    assert "initiate" in up.charon.commands()


# -- half answers and repeated ones


def test_an_sa_that_charon_lists_twice_is_ended_once(up: Host) -> None:
    up.charon.sas_now *= 2
    up.put(*WITH_SESSION[1:])
    up.run("files")
    assert up.charon.sas_now == ()


@pytest.mark.parametrize("state", ["CONNECTING", "CREATED", "REKEYING", "DELETING"])
def test_an_ike_sa_without_children_is_no_protection_and_no_reason_to_end_another(
    up: Host, state: str
) -> None:
    (sa,) = up.charon.sas_now
    up.charon.sas_now = (sa, replace(sa, unique_id=50, state=state, children=()))
    up.run("sa")
    assert up.charon.ended() == []


def test_an_attempt_under_way_is_not_doubled(host: Host) -> None:
    host.run()
    host.establish()
    (sa,) = host.charon.sas_now
    host.charon.sas_now = (replace(sa, state="CONNECTING", children=()),)
    host.start()
    host.charon.log.clear()
    host.run()
    assert "initiate" not in host.charon.commands()
    assert only_child(host)


# -- a far end that lost its SAs


def passes_traffic(host: Host, bytes_in: int, bytes_out: int) -> None:
    """So much has passed through each SA so far."""
    host.charon.sas_now = tuple(
        replace(sa, children=tuple(replace(c, bytes_in=bytes_in, bytes_out=bytes_out) for c in sa.children))
        for sa in host.charon.sas_now
    )


def falls_silent(host: Host, seconds: int) -> float | None:
    """The far end answers no more; when (from now) the daemon began to negotiate, passes as often as it asks for."""
    begun, number = host.clock.at, 0
    while host.clock.at < begun + seconds:
        outcome = host.run("due")
        if "initiate" in host.charon.commands():
            return host.clock.at - begun
        host.clock.advance(min(outcome.recheck_in, 5.0))
        number += 1
        passes_traffic(host, 10_000, 10_000 + number)
    return None


def test_an_sa_that_the_far_end_lost_gets_a_successor_within_ten_seconds_and_ends_when_that_is_up(
    up: Host,
) -> None:
    (old,) = up.charon.sas_now
    lifetime = up.charon.messages[old.conn]["rekey_time"]
    passes_traffic(up, 10_000, 10_000)
    after = falls_silent(up, 60)
    assert after is not None
    assert after <= 10
    assert up.charon.commands()[-3:] == ["unload-conn", "load-conn", "initiate"]
    assert up.charon.messages[old.conn]["rekey_time"] != lifetime, "charon would begin inside the dead one"
    assert up.charon.ended() == []
    outcome = up.run("due")
    assert (outcome.observed.causes or {})[old.conn].code == "peer-lost"
    new = replace(
        old, unique_id=2, children=(replace(old.children[0], unique_id=2, bytes_in=0, bytes_out=0),)
    )
    up.charon.sas_now = (old, new)
    outcome = up.run("sa")
    assert up.charon.ended() == ["ike 1"]
    assert old.conn not in (outcome.observed.causes or {})


def test_a_far_end_that_answers_slowly_keeps_its_sa(up: Host) -> None:
    for second in range(600):
        passes_traffic(up, second // 6 * 10_000, second * 10_000)
        up.run("due")
        up.clock.advance(1)
    assert "initiate" not in up.charon.commands()
    assert up.charon.ended() == []


def test_an_sa_in_use_is_looked_at_every_two_seconds_and_an_idle_one_is_not(up: Host) -> None:
    passes_traffic(up, 1, 1)
    assert up.run("sa").recheck_in == pytest.approx(2, abs=0.1)
    up.clock.advance(60)
    up.run()
    assert up.run().recheck_in > 2.1


def test_requests_that_charon_repeats_in_an_sa_that_carries_packets_are_a_suspicion(up: Host) -> None:
    (old,) = up.charon.sas_now
    passes_traffic(up, 10, 10)
    up.run("sa")
    for number in (1, 2, 3):
        assert "initiate" not in up.charon.commands()
        line = f"retransmit {number} of request with message ID 7"
        up.failure_log.on_event("log", {"msg": line, "ikesa-name": old.conn, "ikesa-uniqueid": "1"})
        up.run("cause")
    assert "initiate" in up.charon.commands()


# -- what is said again and again


def test_a_refusal_that_each_attempt_meets_is_one_warning(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(conn: str, child: str) -> None:
        host.charon.calls["initiate"] += 1
        raise CharonRefused("initiate", child, "establishing CHILD_SA failed")

    host.charon.initiate = refuse  # type: ignore[method-assign]  # each attempt fails at once
    for _ in range(50):
        host.run("due")
        host.clock.advance(20)
    assert host.charon.calls["initiate"] > 10
    assert [r.levelname for r in caplog.records if "charon refused" in r.getMessage()] == ["WARNING"]


def test_a_cause_of_a_charon_that_is_gone_is_not_said_of_the_next_one(host: Host) -> None:
    host.run()
    (conn,) = host.charon.conns
    line = "received AUTHENTICATION_FAILED notify error"
    host.failure_log.on_event("log", {"msg": line, "ikesa-name": conn, "ikesa-uniqueid": "1"})
    assert (host.run("cause").observed.causes or {})[conn].code == "auth-refused"
    host.charon.fail(AWAY, "observe")
    host.run("charon-down")
    host.charon.recover()
    assert not host.run("charon-up").observed.causes
