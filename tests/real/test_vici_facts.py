"""The behaviour of VICI with secrets and connections on which the reconciler relies."""

from __future__ import annotations

import pytest
import vici

from tests.support.ike import KEY_A, KEY_B, TARGET, A, Ike, connection
from tests.support.netlab import Charon, holds_for, wait_until
from tests.support.pair import Pair


def trap(rekey_time: str = "3600") -> dict[str, object]:
    return {
        "mode": "transport",
        "start_action": "trap",
        "rekey_time": rekey_time,
        "local_ts": ["dynamic[6]"],
        "remote_ts": ["dynamic[6/3260]"],
        "esp_proposals": ["aes128gcm16"],
    }


def trapped(name: str, rekey_time: str = "3600", *, remote: str = "10.10.0.2") -> dict[str, object]:
    child: dict[str, object] = {name: trap(rekey_time)}
    return connection(Ike.V2, local="10.10.0.1", remote=remote, local_id=A, remote_id=TARGET, child=child)


def traps(charon: Charon) -> set[str]:
    with charon.vici() as session:
        return {name for item in session.list_policies({"trap": "yes"}) for name in item}


def test_get_shared_tells_ids_and_no_keys(charon: Charon) -> None:
    charon.load_psk("x-1", KEY_A, [A])
    with charon.vici() as session:
        reply = session.get_shared()
    assert list(reply) == ["keys"]
    assert reply["keys"] == [b"x-1"]


def test_a_secret_without_owners_is_for_anyone(charon: Charon) -> None:
    charon.load_psk("x-1", KEY_A)
    assert "loaded IKE shared key with id 'x-1' for: '%any'" in charon.log_text()


def test_the_same_id_loaded_again_replaces_the_key(pair: Pair) -> None:
    pair.target.load_psk("k", KEY_B, [A])
    pair.connect(Ike.V2, A)
    pair.initiator.load_psk("k", KEY_A, [A, TARGET])
    assert not pair.comes_up()  # control: it is the key that counts
    pair.initiator.load_psk("k", KEY_B, [A, TARGET])
    assert pair.initiator.secrets() == {"k"}
    assert pair.comes_up()


def test_unloading_an_unknown_secret_is_no_error(charon: Charon) -> None:
    charon.unload_psk("never-loaded")
    assert charon.secrets() == set()


def test_a_key_is_bytes_and_a_newline_counts(pair: Pair) -> None:
    key = b"\0\xff 0x41 0sQQ== \0" + KEY_A
    pair.connect(Ike.V2, A)
    pair.target.load_psk("k", key, [A])
    pair.initiator.load_psk("k", key + b"\n", [A, TARGET])
    assert not pair.comes_up()
    pair.initiator.load_psk("k", key, [A, TARGET])
    assert pair.comes_up()


def test_swanctl_load_creds_drops_every_secret_that_is_not_in_its_file(charon: Charon) -> None:
    charon.load_psk("x-1", KEY_A, [A])
    path = charon.write_swanctl("")
    charon.swanctl("--load-creds", "--noprompt", "--file", str(path))
    assert charon.secrets() == set()


def test_swanctl_load_all_drops_every_connection_and_secret_while_sessions_live_on(charon: Charon) -> None:
    with charon.vici() as session:
        session.load_shared({"id": "x-1", "type": "IKE", "data": KEY_A, "owners": [A]})
        session.load_conn({"c": trapped("old")})
        charon.load_all("")
        assert not session.get_shared()["keys"]
        assert list(session.list_conns()) == []
    assert traps(charon) == set()


def test_a_changed_child_under_a_new_name_takes_the_place_of_the_old_one(charon: Charon) -> None:
    charon.load_conn("c", trapped("old"))
    charon.load_conn("c", trapped("new", rekey_time="3000"))
    assert list(charon.connections()["c"]["children"]) == ["new"]
    assert traps(charon) == {"c/new"}


def test_a_child_that_changes_nothing_but_its_name_leaves_its_trap_behind(charon: Charon) -> None:
    """Why a child's name may only change together with what charon compares."""
    charon.load_conn("c", trapped("old"))
    charon.load_conn("c", trapped("new"))
    assert list(charon.connections()["c"]["children"]) == ["new"]
    assert traps(charon) == {"c/old"}
    with charon.vici() as session:
        session.unload_conn({"name": "c"})
    assert traps(charon) == {"c/old"}


def test_a_changed_connection_replaces_its_traps(charon: Charon) -> None:
    charon.load_conn("c", trapped("old"))
    charon.load_conn("c", trapped("new", remote="10.10.0.3"))
    assert traps(charon) == {"c/new"}


def test_a_command_refused_leaves_what_was_loaded(charon: Charon) -> None:
    charon.load_conn("c", trapped("old"))
    refused = trapped("new") | {"nonsense": "yes"}
    with charon.vici() as session:
        try:
            session.load_conn({"c": refused})
            message = ""
        except vici.exception.CommandException as error:
            message = str(error)
    assert "unknown option: nonsense" in message
    assert list(charon.connections()["c"]["children"]) == ["old"]


def test_a_charon_killed_leaves_a_socket_that_refuses(charon: Charon) -> None:
    charon.load_psk("x-1", KEY_A, [A])
    charon.kill()
    assert charon.socket.exists()
    charon.start()
    assert charon.secrets() == set()


def ike_sas(charon: Charon) -> set[bytes]:
    return {sa["uniqueid"] for _, sa in charon.sas() if sa["state"] == b"ESTABLISHED"}


@pytest.mark.parametrize("ike", [Ike.V2, Ike.MAIN], ids=lambda ike: ike.name)
def test_a_negotiation_begins_inside_a_dead_ike_sa_unless_the_lifetime_differs(pair: Pair, ike: Ike) -> None:
    """A negotiation beside an SA that the far end has lost needs settings that differ."""

    def load(rekey_time: str) -> None:
        settings = connection(
            ike, local="10.10.0.1", remote="10.10.0.2", local_id=A, remote_id=TARGET, child={"x": trap()}
        )
        with pair.initiator.vici() as session:
            session.unload_conn({"name": "c"})
            session.load_conn({"c": {**settings, "rekey_time": rekey_time, "unique": "never"}})

    def far_end_up() -> None:
        pair.target.load_conn(
            "c", connection(ike, local="10.10.0.2", remote="10.10.0.1", local_id=TARGET, remote_id=A)
        )
        pair.target.load_psk("k", KEY_A, [A])

    pair.connect(ike, A)
    pair.initiator.load_psk("k", KEY_A, [A, TARGET])
    far_end_up()
    load("14400s")
    assert pair.comes_up()
    (old,) = ike_sas(pair.initiator)
    pair.target.kill()
    pair.target.start()
    far_end_up()
    load("14400s")
    pair.initiator.start_initiate(ike="c", child="x")
    assert holds_for(lambda: ike_sas(pair.initiator) <= {old}, 0.5), "control: it waits inside the dead one"
    load("14401s")
    pair.initiator.start_initiate(ike="c", child="x")
    wait_until(lambda: ike_sas(pair.initiator) - {old}, "a new one is up", detail=pair.initiator.tail)
