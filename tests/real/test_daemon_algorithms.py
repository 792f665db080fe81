"""A charon that lacks algorithms of the defaults: it is offered what it has, and negotiates."""

from __future__ import annotations

from tests.support.admin import CONNECTION, PORTAL, ROW, key_file, wait_for_connection
from tests.support.ike import KEY_A, A
from tests.support.netlab import Daemon
from tests.support.pair import Pair

WITHOUT_CURVES = "random nonce aes sha1 sha2 hmac kdf gmp gcm kernel-netlink socket-default updown vici"


def test_a_charon_without_elliptic_curves_is_offered_none_and_comes_up(pair: Pair, daemon: Daemon) -> None:
    pair.initiator.terminate()
    pair.initiator.set_option("plugins", WITHOUT_CURVES)
    pair.initiator.start()
    ours = pair.lab.node("initiator").at.v4
    pair.target.load_conn(
        "far",
        {
            "version": "2", "local_addrs": [PORTAL], "remote_addrs": [ours], "proposals": ["default"],
            "local": {"auth": "psk", "id": PORTAL}, "remote": {"auth": "psk", "id": "fqdn:a.lab"},
        },
    )  # fmt: skip
    pair.target.load_psk("far", KEY_A, [A])
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", f'portals = ["{PORTAL}"]\n')
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    row = daemon.row(ROW)
    offered = {part for p in (*row["ike_proposals"], *row["esp_proposals"]) for part in p.split("-")}
    assert not {part for part in offered if part.startswith(("ecp", "curve"))}
    assert {"modp2048", "modp3072"} <= offered
    assert pair.initiator.initiate(ike=CONNECTION), pair.initiator.tail()
