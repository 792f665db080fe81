"""The group key on a host that serves a portal: only for the identities that the policy names."""

from __future__ import annotations

import pytest

from tests.real.test_daemon_target import PEER, SERVED, comes_in
from tests.support.admin import FLAGS, group_file, key_file, our_connections
from tests.support.ike import KEY_A, KEY_GROUP, A, B, C, Ike
from tests.support.netlab import Daemon, wait_until
from tests.support.pair import Pair

NETWORK = "10.10.0.0/24"


def serve_group(pair: Pair, daemon: Daemon, files: dict[str, str], initiators: str, ike: Ike) -> None:
    """Serve with these key files and these initiators for the group key; wait until something is loaded."""
    daemon.put_portal(
        "served",
        f'portals = ["{SERVED}"]\nrole = "target"\ntarget_id = "target.lab"\ntarget_id_type = "ID_FQDN"\n'
        f'ike_proposals = ["aes128-sha256-ecp256"]\ninitiators = [{initiators}]\nsecurity_flags = {FLAGS[ike]}\n',
    )
    for name, text in files.items():
        daemon.put_key(name, text)
    daemon.start()
    wait_until(
        lambda: daemon.status()["portals"] and all(row["ready"] for row in daemon.status()["portals"]),
        "every admitted initiator has its connection",
        detail=daemon.tail,
    )


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_a_named_initiator_is_admitted_with_the_group_key_and_an_unnamed_one_is_not(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    serve_group(pair, daemon, {"group": group_file(KEY_GROUP)}, '"c.lab"', ike)
    assert comes_in(pair, C, KEY_GROUP, ike)
    assert not comes_in(pair, C, KEY_A, ike)
    assert not comes_in(pair, B, KEY_GROUP, ike)


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_an_address_of_a_named_network_is_admitted_with_the_group_key(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    serve_group(pair, daemon, {"group": group_file(KEY_GROUP)}, f'"{NETWORK}"', ike)
    assert comes_in(pair, PEER, KEY_GROUP, ike)
    assert not comes_in(pair, PEER, KEY_A, ike)
    assert not comes_in(pair, C, KEY_GROUP, ike)


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_an_address_with_its_own_key_is_cut_out_of_the_network_of_the_group_key(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    own = f'id_type = "ID_IPV4_ADDR"\nid = "{PEER}"\nkey = "{KEY_A.decode()}"\n'
    serve_group(pair, daemon, {"group": group_file(KEY_GROUP), "own": own}, f'"{NETWORK}"', ike)
    assert not comes_in(pair, PEER, KEY_GROUP, ike)
    assert comes_in(pair, PEER, KEY_A, ike)


ELSEWHERE = 'portals = ["10.99.0.0/24"]\n'


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
def test_an_address_whose_own_key_is_for_other_portals_is_admitted_with_neither_key(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    own = f'id_type = "ID_IPV4_ADDR"\nid = "{PEER}"\nkey = "{KEY_A.decode()}"\n{ELSEWHERE}'
    serve_group(pair, daemon, {"group": group_file(KEY_GROUP), "own": own}, f'"{NETWORK}", "c.lab"', ike)
    assert not comes_in(pair, PEER, KEY_A, ike), "its key is not for this portal"
    assert not comes_in(pair, PEER, KEY_GROUP, ike), "the group key is for those without a key of their own"
    assert any("cannot come in" in reported for reported in daemon.problems())


@pytest.mark.parametrize("ike", [Ike.V2, Ike.AGGRESSIVE], ids=lambda ike: ike.name)
def test_a_named_initiator_whose_own_key_is_for_other_portals_is_admitted_with_neither_key(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    files = {"group": group_file(KEY_GROUP), "a": key_file("a.lab", KEY_A, ike=ike) + ELSEWHERE}
    serve_group(pair, daemon, files, '"a.lab", "c.lab"', ike)
    assert not comes_in(pair, A, KEY_A, ike)
    assert not comes_in(pair, A, KEY_GROUP, ike)
    assert comes_in(pair, C, KEY_GROUP, ike), "the others are served as ever"


@pytest.mark.parametrize("ike", [Ike.V2, Ike.AGGRESSIVE], ids=lambda ike: ike.name)
def test_a_named_initiator_with_its_own_key_does_not_come_in_with_the_group_key(
    pair: Pair, daemon: Daemon, ike: Ike
) -> None:
    files = {"group": group_file(KEY_GROUP), "a": key_file("a.lab", KEY_A, ike=ike)}
    serve_group(pair, daemon, files, '"a.lab", "c.lab"', ike)
    assert not comes_in(pair, A, KEY_GROUP, ike)
    assert comes_in(pair, A, KEY_A, ike)
    assert comes_in(pair, C, KEY_GROUP, ike)


def test_without_initiators_a_group_key_admits_nobody_and_the_portal_says_so(
    pair: Pair, daemon: Daemon
) -> None:
    daemon.put_portal("served", f'portals = ["{SERVED}"]\nrole = "target"\n')
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.start()
    wait_until(
        lambda: any("admits no initiator" in reported for reported in daemon.problems()),
        "it is reported",
        detail=daemon.tail,
    )
    assert not our_connections(pair.initiator)
