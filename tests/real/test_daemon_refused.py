"""A version that charon refuses leaves the last accepted one with its SA, and is tried again with backoff."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.admin import (
    CONNECTION,
    PORTAL,
    ROW,
    key_file,
    our_connections,
    portal_file,
    wait_for_connection,
)
from tests.support.ike import KEY_A, TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.pair import Pair

GOOD = 'esp_proposals = ["aes256gcm16-ecp256"]\n'
MISTYPED = 'esp_proposals = ["aes256gcm61-ecp256"]\n'
BETTER = 'esp_proposals = ["aes128gcm16-ecp256"]\n'

LONG_ENOUGH = 7.0
"""Seconds: a daemon that tries without backoff has written three times by then."""


def child_of(charon: Charon) -> str:
    (child,) = charon.connections()[CONNECTION]["children"]
    return str(child)


def ike_sas(charon: Charon) -> list[bytes]:
    return [
        sa["uniqueid"] for name, sa in charon.sas() if name == CONNECTION and sa["state"] == b"ESTABLISHED"
    ]


def refused(daemon: Daemon) -> bool:
    problem = daemon.row(ROW)["problem"]
    return bool(problem) and problem["code"] == "charon-refused"


@pytest.fixture
def up(pair: Pair, daemon: Daemon) -> tuple[str, list[bytes]]:
    """An IKE SA of a connection that charon accepted: its child, and the SA's number."""
    ours = pair.lab.node("initiator").at.v4
    pair.target.load_conn("far", connection(Ike.V2, local=PORTAL, remote=ours, local_id=TARGET, remote_id=A))
    pair.target.load_psk("far", KEY_A, [A])
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file(more=GOOD))
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    assert pair.initiator.initiate(ike=CONNECTION)
    return child_of(pair.initiator), ike_sas(pair.initiator)


def stays(what: Callable[[], object], value: object) -> None:
    end = time.monotonic() + LONG_ENOUGH
    while time.monotonic() < end:
        assert what() == value
        time.sleep(0.1)


def test_a_refused_change_leaves_the_accepted_connection_and_its_sa(
    pair: Pair, daemon: Daemon, up: tuple[str, list[bytes]]
) -> None:
    daemon.put_portal("san", portal_file(more=MISTYPED))
    wait_until(lambda: refused(daemon), "the row says that charon refused", detail=daemon.tail)
    mark = pair.initiator.log_mark()
    stays(lambda: (child_of(pair.initiator), ike_sas(pair.initiator)), up)
    assert pair.initiator.log_text(mark).count("aes256gcm61") <= 1
    daemon.put_portal("san", portal_file(more=BETTER))
    wait_until(lambda: child_of(pair.initiator) != up[0], "the fixed one is loaded", detail=daemon.tail)
    wait_until(lambda: daemon.row(ROW)["problem"] is None, "nothing is refused any more", detail=daemon.tail)
    assert our_connections(pair.initiator) == {CONNECTION}


def test_a_refused_change_is_tried_by_a_new_daemon_without_touching_the_accepted_one(
    pair: Pair, daemon: Daemon, up: tuple[str, list[bytes]]
) -> None:
    daemon.terminate()
    daemon.put_portal("san", portal_file(more=MISTYPED))
    daemon.start()
    wait_until(lambda: refused(daemon), "the row says that charon refused", detail=daemon.tail)
    stays(lambda: (child_of(pair.initiator), ike_sas(pair.initiator)), up)


def test_a_charon_that_restarts_gets_the_accepted_connection_while_it_refuses_the_new_one(
    pair: Pair, daemon: Daemon, up: tuple[str, list[bytes]]
) -> None:
    daemon.put_portal("san", portal_file(more=MISTYPED))
    wait_until(lambda: refused(daemon), "the row says that charon refused", detail=daemon.tail)
    pair.initiator.kill()
    pair.initiator.start()
    wait_for_connection(pair.initiator, daemon)
    assert child_of(pair.initiator) == up[0]
    assert pair.initiator.initiate(ike=CONNECTION)
