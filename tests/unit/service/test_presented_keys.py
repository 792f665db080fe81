"""Which of two valid keys is presented, from pass to pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iscsi_ipsec.core.ike.key_rotation import TRY_AGAIN
from iscsi_ipsec.service.pass_schedule import RELOAD
from tests.support.service_host import Host
from tests.support.values import TARGET, per_id, policy, previous, record, session

OLD = b"the key before this one"
STAGED = per_id("10.0.0.1", "db1", secret=b"the new key of db1", previous=previous(OLD))
PARTS = (policy(TARGET), record(), session())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.put(STAGED, *PARTS)
    host.run()
    return host


def presents_previous(host: Host) -> bool:
    (rotation,) = host.run("sa").snapshot.desired.rotations
    return rotation.previous_key_first


def refuse(host: Host) -> None:
    """Charon's log of a negotiation that the peer refused for its key."""
    (conn,) = host.charon.conns
    number = len(host.woken)
    host.failure_log.on_event(
        "log",
        {
            "msg": "received AUTHENTICATION_FAILED notify error",
            "ikesa-name": conn,
            "ikesa-uniqueid": str(number),
        },
    )
    host.woken.append("refused")


def test_an_initiator_presents_the_new_key_first(host: Host) -> None:
    assert not presents_previous(host)


def test_a_refused_new_key_is_followed_by_the_previous_one_in_the_next_pass(host: Host) -> None:
    refuse(host)
    host.run("doubt")
    assert presents_previous(host)


def test_two_passes_without_news_change_nothing(host: Host) -> None:
    refuse(host)
    host.run("doubt")
    host.run("sa")
    host.charon.log.clear()
    host.run("sa")
    host.run("sa")
    assert "load-shared" not in host.charon.commands()


def test_the_same_refusal_heard_twice_counts_once(host: Host) -> None:
    refuse(host)
    host.woken.pop()
    refuse(host)
    host.run("doubt")
    host.run("sa")
    assert presents_previous(host)


def test_the_new_key_is_tried_again_after_a_while_under_the_previous_one(host: Host) -> None:
    refuse(host)
    host.run("doubt")
    host.run("sa")
    host.establish()
    assert presents_previous(host)
    host.clock.advance(TRY_AGAIN + 1)
    host.run("due")
    assert not presents_previous(host)


def test_a_reload_tries_the_new_key_at_once(host: Host) -> None:
    refuse(host)
    host.run("doubt")
    host.run("sa")
    host.establish()
    host.run("sa")
    host.run(RELOAD)
    assert not presents_previous(host)


def test_a_restarted_daemon_goes_on_with_the_key_that_charon_holds_on_top(host: Host) -> None:
    refuse(host)
    host.run("doubt")
    host.run("sa")
    host.charon.log.clear()
    host.start()
    host.run()
    assert presents_previous(host)
    assert "load-shared" not in host.charon.commands()


def test_the_end_of_the_previous_keys_time_limits_the_sleep(host: Host) -> None:
    host.files.says = replace(host.files.says, expires_in=1.5)
    assert host.run("due").recheck_in <= 1.6


def test_without_a_rotation_nothing_is_remembered(host: Host) -> None:
    host.put(per_id("10.0.0.1", "db1"), *PARTS)
    assert host.run("files").snapshot.desired.rotations == ()
