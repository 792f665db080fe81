"""Negotiations that got stuck: charon and the kernel would leave them so, the daemon does not.

Without ESP in the kernel an IKE SA is as far as it goes, and far enough: what is stuck is IKE.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.admin import CONNECTION, PORTAL, key_file, portal_file, wait_for_connection
from tests.support.ike import KEY_A, TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, Lab, holds_for, wait_until
from tests.support.pair import Pair

UNTOUCHED = 1.5
"""Seconds in which nobody but the daemon would repair anything; larval states live for 165."""


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def let_in(pair: Pair, ike: Ike) -> None:
    ours = pair.lab.node("initiator").at.v4
    pair.target.load_conn("far", connection(ike, local=PORTAL, remote=ours, local_id=TARGET, remote_id=A))
    pair.target.load_psk("far", KEY_A, [A])


def knock(lab: Lab) -> None:
    """One SYN to the portal, always of the same connection, as TCP sends it again and again.

    The kernel asks charon for an SA, if it has not asked already.
    """

    def connect() -> None:
        with socket.socket() as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.bind(("", 40_000))
            end.setblocking(False)
            end.connect_ex((PORTAL, 3260))

    lab.node("initiator").inside(connect)


def states(charon: Charon) -> list[str]:
    return [sa["state"].decode() for name, sa in charon.sas() if name == CONNECTION]


def trap_of(pair: Pair, daemon: Daemon, ike: Ike) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A, ike=ike))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    # charon sets it by its own patience, which is short in this lab and 165 s elsewhere
    daemon.node.run(["sysctl", "-q", "-w", "net.core.xfrm_acq_expires=165"])


@pytest.mark.parametrize("ike", [Ike.MAIN, Ike.AGGRESSIVE], ids=lambda ike: ike.name)
def test_an_ikev1_sa_that_stays_rekeying_for_ever_is_replaced_when_the_peer_is_back(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    let_in(pair, ike)
    trap_of(pair, daemon, ike)
    knock(pair.lab)
    wait_until(
        lambda: "ESTABLISHED" in states(pair.initiator) and "error notify" in pair.initiator.log_text(),
        "IKE comes up, and the far end has refused the rest",
        detail=pair.initiator.tail,
    )
    with stopped(daemon):
        pair.target.kill()
        mark = pair.initiator.log_mark()
        with pair.initiator.vici() as session:
            session.rekey({"ike": CONNECTION, "reauth": "yes"})
        wait_until(
            lambda: (
                "giving up after" in pair.initiator.log_text(mark) and states(pair.initiator) == ["REKEYING"]
            ),
            "it is wedged",
            detail=pair.initiator.tail,
        )
        pair.target.start()
        let_in(pair, ike)
        knock(pair.lab)
        assert holds_for(lambda: states(pair.initiator) == ["REKEYING"], UNTOUCHED), (
            "charon repairs it itself"
        )
    wait_until(
        lambda: "ESTABLISHED" in states(pair.initiator),
        "the daemon replaces it",
        timeout=40,
        detail=daemon.tail,
    )


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_a_portal_whose_peer_was_away_at_the_first_packet_is_negotiated_when_the_peer_comes(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    pair.target.terminate()
    trap_of(pair, daemon, ike)
    with stopped(daemon):
        mark = pair.initiator.log_mark()
        knock(pair.lab)
        wait_until(lambda: "giving up after" in pair.initiator.log_text(mark), "charon gives up")
        pair.target.start()
        let_in(pair, ike)
        knock(pair.lab)
        assert holds_for(lambda: not states(pair.initiator), UNTOUCHED), "the kernel asks again itself"
    wait_until(
        lambda: "ESTABLISHED" in states(pair.initiator),
        "the daemon asks again",
        timeout=40,
        detail=daemon.tail,
    )
