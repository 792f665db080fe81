"""The verbs beside a running daemon and charon: what ``--wait`` promises is so when it returns."""

from __future__ import annotations

import os
import stat

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.admin import CONNECTION, PORTAL, ROW, our_connections, our_secrets, portal_file
from tests.support.ike import KEY_A, KEY_B, TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.pair import Pair

SET = ("psk", "set", "--id", "a.lab", "--id-type", "ID_FQDN", "--stdin", "--wait")
NEW = ("psk", "set", "a.lab", "--stdin", "--wait")


def accept(pair: Pair, key: bytes) -> None:
    settings = connection(
        Ike.V2, local=PORTAL, remote=pair.lab.node("initiator").at.v4, local_id=TARGET, remote_id=A
    )
    pair.target.load_conn("far", settings)
    pair.target.load_psk("far", key, [A])


def test_when_set_with_wait_returns_charon_has_key_and_connection(pair: Pair, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    # no waiting here: that is what is tested
    assert our_secrets(pair.initiator)
    assert CONNECTION in our_connections(pair.initiator)
    accept(pair, KEY_A)
    assert pair.comes_up(CONNECTION)


def test_when_a_changed_key_is_waited_for_charon_no_longer_has_the_old_one(
    pair: Pair, daemon: Daemon
) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    old = our_secrets(pair.initiator)
    daemon.cli(*NEW, "--revoke", text=KEY_B.decode(), check=True)
    now = our_secrets(pair.initiator)
    assert now
    assert not now & old
    accept(pair, KEY_B)
    assert pair.comes_up(CONNECTION)


def test_a_key_that_no_portal_uses_is_waited_for_too(charon: Charon, daemon: Daemon) -> None:
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    assert len(our_secrets(charon)) == 1


def test_a_runtime_key_in_a_folder_that_was_not_there_is_noticed(charon: Charon, daemon: Daemon) -> None:
    daemon.start()
    daemon.cli(*SET, "--runtime", text=KEY_A.decode(), check=True)
    assert len(our_secrets(charon)) == 1
    daemon.cli("psk", "remove", "a.lab", "--wait", check=True)
    assert our_secrets(charon) == set()


def test_a_removed_key_has_left_charon_when_the_wait_is_over(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    said = daemon.cli("psk", "remove", "a.lab", "--wait", check=True)
    assert our_secrets(charon) == set()
    assert ROW in said.err


def test_a_group_key_is_in_use_when_the_wait_is_over(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    daemon.cli("group-psk", "set", "--generate", "--wait", check=True)
    assert CONNECTION in our_connections(charon)
    assert daemon.row(ROW)["key"] == "group"


def test_a_portal_that_cannot_get_ready_is_not_waited_for(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("far", portal_file("2001:db8:ffff::1", psk="a.lab"))
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    assert [row["problem"]["code"] for row in daemon.status()["portals"]] == ["no-route"]


def test_without_charon_the_wait_ends_in_exit_code_4_and_the_key_is_used_later(
    pair: Pair, daemon: Daemon
) -> None:
    daemon.put_portal("san", portal_file())
    daemon.start()
    pair.initiator.kill()
    answer = daemon.cli(*SET, "--timeout", "1.5", text=KEY_A.decode())
    assert answer.rc == 4
    assert (daemon.psk / "a.lab.toml").exists()


@pytest.mark.skipif(
    not os.path.exists("/usr/bin/systemd-creds"),
    reason="needs systemd-creds and the machine's credential key",
)
def test_an_encrypted_key_reaches_charon_without_a_restart(charon: Charon, daemon: Daemon) -> None:
    name = f"netlab-{os.getpid()}"
    daemon.start()
    try:
        daemon.cli(*SET, "--name", name, "--encrypt", text=KEY_A.decode(), check=True)
        old = our_secrets(charon)
        assert len(old) == 1
        daemon.cli("psk", "set", name, "--stdin", "--revoke", "--wait", text=KEY_B.decode(), check=True)
        assert len(our_secrets(charon)) == 1
        assert our_secrets(charon) != old
        assert not [path for path in daemon.config.rglob("*.toml") if KEY_B.decode() in path.read_text()]
    finally:
        daemon.cli("psk", "remove", "--name", name)
    assert not os.path.exists(f"/etc/credstore.encrypted/iscsi-ipsec-{name}")


def test_clear_cache_loads_again_what_was_unloaded_from_charon(charon: Charon, daemon: Daemon) -> None:
    daemon.put_settings("resync_interval = 3600\n")
    daemon.put_portal("san", portal_file())
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    wait_until(daemon.passes, "a pass")
    passes = daemon.passes()
    daemon.cli("clear-cache", check=True)
    assert daemon.passes() > passes
    assert daemon.running


def test_an_outer_address_set_by_the_command_is_the_connections(charon: Charon, daemon: Daemon) -> None:
    daemon.put_portal("net", portal_file("10.10.0.0/24"))
    daemon.start()
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    daemon.cli("tunnel-address", "set", PORTAL, "10.10.0.77", "--local", "10.10.0.1", check=True)
    row = wait_until(
        lambda: (row := daemon.row(ROW)) and row["remote_address"] == "10.10.0.77" and row,
        "the outer address is used",
        detail=daemon.tail,
    )
    assert row["mode"] == "tunnel"
    assert row["peer_identity"] == "target.lab"


def test_metrics_follow_the_state(charon: Charon, daemon: Daemon) -> None:
    path = daemon.runtime / "metrics.prom"

    def value(name: str) -> float:
        families = text_string_to_metric_families(path.read_text())
        return next(s.value for family in families for s in family.samples if s.name == f"iscsi_ipsec_{name}")

    daemon.put_portal("san", portal_file())
    daemon.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert value("charon_reachable") == 1
    assert value("keys") == 0
    writes = value("vici_writes_total")
    daemon.cli(*SET, text=KEY_A.decode(), check=True)
    wait_until(lambda: value("keys") == 1, "the key is counted")
    assert value("portals_managed") == 1
    assert value("portals_closed") == 1
    assert value("vici_writes_total") > writes
    assert value("last_success_timestamp_seconds") > 0
    assert KEY_A.decode() not in path.read_text()
    charon.kill()
    wait_until(lambda: value("charon_reachable") == 0, "charon's end is reported", detail=daemon.tail)
