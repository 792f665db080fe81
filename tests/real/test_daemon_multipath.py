"""Two paths under one pair of identities, as every multipath host has them: both come up, and both ends keep both."""

from __future__ import annotations

import pytest

from tests.support.admin import FLAGS, PORTAL, key_file, our_connections
from tests.support.ike import KEY_A, TARGET, A, Ike
from tests.support.netlab import Charon, Daemon, Node, holds_for, wait_until
from tests.support.pair import Pair

SECOND = "10.10.0.42"
TRIES = 25
"""Of those without `unique = never`, one in two to four failed."""


def established(charon: Charon) -> int:
    return sum(sa["state"] == b"ESTABLISHED" for _, sa in charon.sas())


def with_addresses(node: Node, *addresses: str) -> None:
    for address in addresses:
        node.add_address(address)


def respond(pair: Pair, ike: Ike) -> None:
    """The target's own configuration: whoever comes as a.lab, to either address; strongSwan's defaults else."""
    version, aggressive = ike.value
    pair.target.load_psk("far", KEY_A, [A])
    for address in (PORTAL, SECOND):
        pair.target.load_conn(
            f"far-{address}",
            {
                "version": version, "aggressive": aggressive, "local_addrs": [address],
                "remote_addrs": [pair.lab.node("initiator").at.v4], "proposals": ["aes128-sha256-ecp256"],
                "local": {"auth": "psk", "id": TARGET}, "remote": {"auth": "psk", "id": A},
            },
        )  # fmt: skip


def two_paths(daemon: Daemon, ike: Ike) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A, ike=ike))
    daemon.put_portal(
        "san",
        f'portals = ["{PORTAL}", "{SECOND}"]\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\nsecurity_flags = {FLAGS[ike]}\n',
    )
    daemon.start()


@pytest.mark.parametrize("ike", [Ike.V2, Ike.MAIN], ids=lambda ike: ike.name)
def test_both_ends_keep_both_paths_however_close_together_they_begin(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    with_addresses(pair.lab.node("target"), SECOND)
    try:
        respond(pair, ike)
        two_paths(daemon, ike)
        wait_until(lambda: len(our_connections(pair.initiator)) == 2, "both are loaded", detail=daemon.tail)
        names = sorted(our_connections(pair.initiator))
        for _ in range(TRIES):
            for name in names:
                pair.initiator.start_initiate(ike=name)
            wait_until(
                lambda: established(pair.initiator) == established(pair.target) == 2,
                "both paths are up at both ends",
                detail=pair.target.tail,
            )
            assert holds_for(lambda: established(pair.initiator) == established(pair.target) == 2, 0.1)
            pair.forget()
        assert "received INITIAL_CONTACT" not in pair.target.log_text()
    finally:
        pair.lab.node("target").ip("address", "del", f"{SECOND}/24", "dev", "eth0")


def test_the_control_charon_says_initial_contact_unless_it_is_kept_from_it(pair: Pair) -> None:
    respond(pair, Ike.V2)
    pair.initiator.load_psk("k", KEY_A, [A, TARGET])
    said = {}
    for unique in ("no", "never"):
        pair.initiator.load_conn(
            "c",
            {
                "version": "2", "local_addrs": [pair.lab.node("initiator").at.v4], "remote_addrs": [PORTAL],
                "proposals": ["aes128-sha256-ecp256"], "unique": unique,
                "local": {"auth": "psk", "id": A}, "remote": {"auth": "psk", "id": TARGET},
            },
        )  # fmt: skip
        mark = pair.target.log_mark()
        assert pair.initiator.initiate(ike="c")
        said[unique] = "N(INIT_CONTACT)" in pair.target.log_text(mark)
        pair.forget()
    assert said == {"no": True, "never": False}
