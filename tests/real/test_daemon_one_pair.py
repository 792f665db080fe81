"""Several connections between one pair of identities: none ends the SAs of another, at either end.

charon's default (``unique = no``) has an initiator send INITIAL_CONTACT as long as it has no
established SA of the pair, and a responder destroy the SAs of the pair when it reads that.
"""

from __future__ import annotations

import pytest

from tests.support.admin import FLAGS, key_file, our_connections, portal_file
from tests.support.ike import KEY_A, TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, Lab, wait_until

INITIATOR, ONE, OTHER = "10.10.0.1", "10.10.0.2", "10.10.0.22"
PATHS = [f"iscsi-ipsec-{address}-3260" for address in (ONE, OTHER)]


@pytest.mark.parametrize("ike", list(Ike))
def test_two_paths_come_up_together_without_initial_contact(
    lab: Lab, charon: Charon, daemon: Daemon, ike: Ike
) -> None:
    target = lab.ike_only("target")
    lab.node("target").add_address(OTHER)
    settings = connection(ike, local=ONE, remote=INITIATOR, local_id=TARGET, remote_id=A)
    target.load_conn("array", {**settings, "local_addrs": [ONE, OTHER]})
    target.load_psk("a", KEY_A, [A])
    daemon.put_key("a", key_file("a.lab", KEY_A, ike=ike))
    policy = portal_file(more=f'start = "start"\nsecurity_flags = {FLAGS[ike]}\n')
    daemon.put_portal("san", policy.replace(f'["{ONE}"]', f'["{ONE}", "{OTHER}"]'))
    try:
        daemon.start()
        wait_until(lambda: our_connections(charon) >= set(PATHS), "both are loaded", detail=daemon.tail)
        for _ in range(5):
            wait_until(lambda: established(charon) == [*PATHS], "both are up here", detail=daemon.tail)
            assert len(established(target)) == 2
            charon.forget_sas()
            target.forget_sas()
            for path in PATHS:
                charon.start_initiate(ike=path)
        assert "_CONTACT" not in target.log_text()
    finally:
        target.kill()
        lab.node("target").ip("address", "del", f"{OTHER}/24", "dev", "eth0")


def test_a_served_portal_keeps_the_old_sa_of_an_initiator_that_says_initial_contact(
    lab: Lab, charon: Charon, daemon: Daemon
) -> None:
    """The old one serves until DPD finds it dead; without it, answers would leave unencrypted but for the guard."""
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal(
        "served",
        f'portals = ["{INITIATOR}"]\nrole = "target"\ntarget_id = "target.lab"\n'
        'ike_proposals = ["aes128-sha256-ecp256"]\n',
    )
    daemon.start()
    wait_until(lambda: our_connections(charon), "the portal is served", detail=daemon.tail)
    peer = lab.ike_only("target")
    try:
        for count in (1, 2):
            peer.load_conn("c", connection(Ike.V2, local=ONE, remote=INITIATOR, local_id=A, remote_id=TARGET))
            peer.load_psk("a", KEY_A, [TARGET])
            assert peer.initiate(ike="c"), peer.tail()
            assert len(established(charon)) == count
            peer.kill()  # without a word, as a host that lost its power
            peer.start()
        assert "INIT_CONTACT" in charon.log_text()
    finally:
        peer.kill()


def established(charon: Charon) -> list[str]:
    return sorted(name for name, sa in charon.sas() if sa["state"] == b"ESTABLISHED")
