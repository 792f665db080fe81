"""The daemon on a host that serves a portal: which peers are admitted, with which key, as which identity."""

from __future__ import annotations

import pytest

from tests.support.admin import group_file, key_file, our_connections
from tests.support.ike import KEY_A, KEY_B, KEY_GROUP, TARGET, A, B, Ike, connection
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import SIGNS_OF_FAILURE, Pair

SERVED = "10.10.0.1"  # the daemon's node, which serves here
PEER = "10.10.0.2"


def serve(pair: Pair, daemon: Daemon, files: dict[str, str], *, peers: int) -> None:
    """Start with these key files and wait until every peer has its connection."""
    daemon.put_portal(
        "served",
        f'portals = ["{SERVED}"]\nrole = "target"\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        'ike_proposals = ["aes128-sha256-ecp256"]\n',
    )
    for name, text in files.items():
        daemon.put_key(name, text)
    daemon.start()
    wait_until(
        lambda: len(our_connections(pair.initiator)) == peers,
        f"{peers} peers have a connection",
        detail=daemon.tail,
    )


def comes_in(pair: Pair, ident: str, key: bytes, ike: Ike) -> bool:
    """Whether who says to be *ident* and holds *key* is believed by the daemon's charon."""
    peer, served = pair.target, pair.initiator
    peer.load_psk("held", key, [ident, TARGET])
    peer.load_conn("c", connection(ike, local=PEER, remote=SERVED, local_id=ident, remote_id=TARGET))
    marks = {charon: charon.log_mark() for charon in (peer, served)}
    peer.start_initiate(ike="c")
    name = ident.partition(":")[2] or ident

    def verdict() -> str:
        if any(sa["state"] == b"ESTABLISHED" for _, sa in peer.sas()):
            return "in"
        if f"authentication of '{name}' with pre-shared key successful" in served.log_text(marks[served]):
            return "in"  # whatever the peer makes of our own proof: an impostor would not look
        said = "".join(charon.log_text(mark) for charon, mark in marks.items())
        return "out" if any(sign in said for sign in SIGNS_OF_FAILURE) else ""

    result = wait_until(verdict, f"{ident} is let in or not", detail=served.tail)
    pair.forget()
    return result == "in"


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_a_peer_is_admitted_with_its_own_key_and_with_no_other(pair: Pair, daemon: Daemon, ike: Ike) -> None:
    serve(pair, daemon, {"a": key_file("a.lab", KEY_A, ike=ike)}, peers=1)
    assert comes_in(pair, A, KEY_A, ike)
    assert not comes_in(pair, A, KEY_B, ike)
    assert not comes_in(pair, B, KEY_A, ike)


@pytest.mark.parametrize("ike", [Ike.V2, Ike.AGGRESSIVE], ids=lambda ike: ike.name)
def test_no_peer_is_admitted_with_another_peers_key(pair: Pair, daemon: Daemon, ike: Ike) -> None:
    files = {"a": key_file("a.lab", KEY_A, ike=ike), "b": key_file("b.lab", KEY_B, ike=ike)}
    serve(pair, daemon, files, peers=2)
    assert not comes_in(pair, A, KEY_B, ike)
    assert not comes_in(pair, B, KEY_A, ike)
    assert comes_in(pair, A, KEY_A, ike)
    assert comes_in(pair, B, KEY_B, ike)


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_a_peer_with_a_key_of_its_own_does_not_come_in_with_the_groups(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    files = {"a": key_file("a.lab", KEY_A, ike=ike), "group": group_file(KEY_GROUP)}
    serve(pair, daemon, files, peers=1)
    assert not comes_in(pair, A, KEY_GROUP, ike)
    assert comes_in(pair, A, KEY_A, ike)


def test_a_peer_whose_key_was_removed_is_not_admitted(pair: Pair, daemon: Daemon) -> None:
    files = {"a": key_file("a.lab", KEY_A), "b": key_file("b.lab", KEY_B)}
    serve(pair, daemon, files, peers=2)
    assert comes_in(pair, B, KEY_B, Ike.V2)
    (daemon.psk / "b.toml").unlink()
    wait_until(
        lambda: len(our_connections(pair.initiator)) == 1, "b's connection is gone", detail=daemon.tail
    )
    assert not comes_in(pair, B, KEY_B, Ike.V2)
    assert comes_in(pair, A, KEY_A, Ike.V2)
