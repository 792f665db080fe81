"""A key is rotated on a host that serves: who comes in by the old key, who by the new one, and until when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.real.test_daemon_target import PEER, SERVED, comes_in, serve
from tests.support.ike import TARGET, A, B, Ike, connection
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.pair import SIGNS_OF_FAILURE, Pair
from tests.support.staging import LONG, NEW, OLD, THIRD, plain_file, staged_file

ALL_IKE = pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
TRIES = {Ike.V2: 2, Ike.MAIN: 4, Ike.AGGRESSIVE: 4}
"""How often a peer with one key must come at most: twice in vain before an IKEv1 target changes its mind."""


def gets_in(pair: Pair, daemon: Daemon, key: bytes, ike: Ike) -> bool:
    """Whether a peer with this key alone has an SA after a few tries."""
    peer, served = pair.target, pair.initiator
    peer.load_psk("held", key, [A, TARGET])
    peer.load_conn("c", connection(ike, local=PEER, remote=SERVED, local_id=A, remote_id=TARGET))
    for _ in range(TRIES[ike]):
        marks = {charon: charon.log_mark() for charon in (peer, served)}
        peer.start_initiate(ike="c")

        def verdict(marks: dict[Charon, int] = marks) -> str:
            if any(sa["state"] == b"ESTABLISHED" for _, sa in peer.sas()):
                return "up"
            said = {charon: charon.log_text(mark) for charon, mark in marks.items()}
            if ike is Ike.AGGRESSIVE:  # all that the target sees is that no answer comes
                return "refused" if "sending retransmit" in said[served] else ""
            return (
                "refused" if any(sign in text for sign in SIGNS_OF_FAILURE for text in said.values()) else ""
            )

        seen = wait_until(verdict, "the peer is up or refused", detail=served.tail)
        pair.forget()
        if seen == "up":
            return True
        daemon.settle(0.3)
    return False


@ALL_IKE
def test_while_two_keys_are_valid_a_peer_comes_in_with_either_and_with_no_third(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    serve(pair, daemon, {"a": staged_file(NEW, OLD, LONG, ike=ike)}, peers=1)
    daemon.settle()
    # nothing changes for who has the old key
    assert comes_in(pair, A, OLD, ike)
    assert gets_in(pair, daemon, NEW, ike)
    assert gets_in(pair, daemon, OLD, ike)
    assert not comes_in(pair, A, THIRD, ike)


def test_both_keys_are_one_identitys_and_nobody_elses(pair: Pair, daemon: Daemon) -> None:
    files = {"a": staged_file(NEW, OLD, LONG), "b": plain_file(THIRD).replace("a.lab", "b.lab")}
    serve(pair, daemon, files, peers=2)
    daemon.settle()
    for key in (OLD, NEW):
        assert not comes_in(pair, B, key, Ike.V2)
    assert not comes_in(pair, A, THIRD, Ike.V2)
    assert comes_in(pair, B, THIRD, Ike.V2)


@ALL_IKE
def test_after_its_time_the_old_key_admits_nobody(pair: Pair, daemon: Daemon, ike: Ike) -> None:
    serve(pair, daemon, {"a": staged_file(NEW, OLD, LONG, ike=ike)}, peers=1)
    daemon.settle()
    assert comes_in(pair, A, OLD, ike)
    daemon.put_key("a", staged_file(NEW, OLD, timedelta(seconds=2), ike=ike))
    wait_until(
        lambda: any("no longer used, since" in said for said in daemon.problems()),
        "the daemon woke up and took it out of use", detail=daemon.tail,
    )  # fmt: skip
    assert not comes_in(pair, A, OLD, ike)
    assert comes_in(pair, A, NEW, ike)


def test_a_host_with_both_keys_comes_in_at_its_first_try_whichever_this_one_shows(
    pair: Pair, daemon: Daemon
) -> None:
    serve(pair, daemon, {"a": staged_file(NEW, OLD, LONG)}, peers=1)
    daemon.settle()
    peer = pair.target
    peer.load_conn("c", connection(Ike.V2, local=PEER, remote=SERVED, local_id=A, remote_id=TARGET))
    peer.load_psk("old", OLD, [A, TARGET])
    peer.load_psk("new", NEW, [A, TARGET])  # the last one is shown
    assert peer.initiate(ike="c", timeout=2)
    pair.forget()
    peer.load_psk("old", OLD, [A, TARGET])
    assert peer.initiate(ike="c", timeout=2)
