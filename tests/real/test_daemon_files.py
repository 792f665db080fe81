"""From a file to charon: dropped, changed, broken, fixed, removed, while the daemon runs."""

from __future__ import annotations

import pytest

from tests.support.admin import (
    CONNECTION,
    PORTAL,
    ROW,
    changes_in,
    group_file,
    key_file,
    our_connections,
    our_secrets,
    portal_file,
    wait_for_connection,
)
from tests.support.ike import KEY_A, KEY_B, KEY_GROUP, TARGET, A, C, Ike, connection
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.pair import Pair


def let_in(pair: Pair, ident: str, key: bytes, ike: Ike = Ike.V2) -> None:
    """The far end, by hand: takes *ident* with *key* and nobody else."""
    lab = pair.lab
    settings = connection(
        ike, local=PORTAL, remote=lab.node("initiator").at.v4, local_id=TARGET, remote_id=ident
    )
    pair.target.load_conn("far", settings)
    pair.target.load_psk("far", key, [ident])


def test_files_dropped_into_a_running_daemon_become_a_secret_and_a_connection(
    pair: Pair, daemon: Daemon
) -> None:
    daemon.start()
    assert our_secrets(pair.initiator) == set()
    assert our_connections(pair.initiator) == set()
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    wait_for_connection(pair.initiator, daemon)
    let_in(pair, A, KEY_A)
    assert pair.comes_up(CONNECTION)


@pytest.mark.parametrize("ike", list(Ike), ids=lambda ike: ike.name)
@pytest.mark.parametrize("group_first", [True, False], ids=["group-first", "group-last"])
def test_an_identity_uses_its_own_key_and_never_the_groups(
    pair: Pair, daemon: Daemon, ike: Ike, group_first: bool
) -> None:
    files = [("group", group_file(KEY_GROUP)), ("a", key_file("a.lab", KEY_A, ike=ike))]
    daemon.put_portal("san", portal_file())
    daemon.start()
    for name, text in files if group_first else files[::-1]:
        daemon.put_key(name, text)
        wait_for_connection(pair.initiator, daemon)
    wait_until(lambda: len(daemon.status()["keys"]) == 2, "both keys are known", detail=daemon.tail)
    daemon.settle()
    assert daemon.row(ROW)["key"] == "a"
    let_in(pair, A, KEY_GROUP, ike)
    assert not pair.comes_up(CONNECTION)
    let_in(pair, A, KEY_A, ike)
    assert pair.comes_up(CONNECTION)


def test_an_identity_without_a_key_uses_the_groups_and_not_anothers(pair: Pair, daemon: Daemon) -> None:
    source = pair.lab.node("initiator").at.v4
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_key("other", key_file("other.lab", KEY_A) + 'portals = ["192.0.2.1"]\n')
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    let_in(pair, source, KEY_A)
    assert not pair.comes_up(CONNECTION)
    let_in(pair, source, KEY_GROUP)
    assert pair.comes_up(CONNECTION)


def test_a_changed_key_is_loaded_before_the_old_one_is_unloaded(pair: Pair, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(pair.initiator, daemon)
    old = our_secrets(pair.initiator)
    mark = pair.initiator.log_mark()
    daemon.put_key("a", key_file("a.lab", KEY_B))
    wait_until(
        lambda: our_secrets(pair.initiator) and not our_secrets(pair.initiator) & old,
        "the new secret is in and the old one out",
        detail=daemon.tail,
    )
    lines = [line for line in pair.initiator.log_text(mark).splitlines() if "shared key with id" in line]
    assert "unloaded" not in lines[0]
    assert "unloaded" in lines[-1]
    let_in(pair, A, KEY_A)
    assert not pair.comes_up(CONNECTION)
    let_in(pair, A, KEY_B)
    assert pair.comes_up(CONNECTION)


def test_a_removed_key_leaves_charon(charon: Charon, daemon: Daemon) -> None:
    path = daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    path.unlink()
    wait_until(lambda: not our_secrets(charon), "the secret is unloaded", detail=daemon.tail)


def test_another_portals_secret_is_not_touched_by_a_change(charon: Charon, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_key("c", key_file("c.lab", KEY_B))
    daemon.put_portal("one", portal_file(psk="a"))
    daemon.put_portal("two", portal_file("10.10.0.3", psk="c"))
    daemon.start()
    wait_until(lambda: len(our_connections(charon)) == 2, "both portals are in charon", detail=daemon.tail)
    before = our_secrets(charon)
    mark = charon.log_mark()
    daemon.put_key("c", key_file("c.lab", KEY_GROUP))
    wait_until(
        lambda: len(our_secrets(charon)) == len(before) and our_secrets(charon) != before,
        "the changed key is loaded and the old one gone",
        detail=daemon.tail,
    )
    assert len(our_secrets(charon) & before) == len(before) - 1
    assert "'a.lab'" not in charon.log_text(mark)


def test_a_broken_file_leaves_its_last_good_content_in_force(charon: Charon, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    secrets, connections = our_secrets(charon), charon.connections()
    daemon.put_key("a", 'id_type = "ID_FDQN"\nid = "a.lab"\nkey = "something else, long enough"\n')
    wait_until(lambda: any("ID_FDQN" in said for said in daemon.problems()), "the problem is reported")
    assert our_secrets(charon) == secrets
    assert charon.connections() == connections
    daemon.put_key("a", key_file("a.lab", KEY_B))
    wait_until(lambda: our_secrets(charon) and our_secrets(charon) != secrets, "the fixed file is in force")
    wait_until(lambda: not any("ID_FDQN" in said for said in daemon.problems()), "the problem is gone")


def test_a_broken_files_last_good_content_survives_a_restart_of_everything(
    charon: Charon, daemon: Daemon
) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    secrets = our_secrets(charon)
    daemon.put_key("a", "key = \n")
    wait_until(daemon.problems, "the problem is reported")
    daemon.kill()
    charon.terminate()
    charon.start()
    daemon.start()
    wait_until(lambda: our_secrets(charon) == secrets, "the last good key is back", detail=daemon.tail)


def test_a_file_that_others_can_read_is_refused_with_the_command_that_fixes_it(
    charon: Charon, daemon: Daemon
) -> None:
    path = daemon.put_key("a", key_file("a.lab", KEY_A))
    path.chmod(0o644)
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_until(daemon.problems, "the problem is reported")
    assert our_secrets(charon) == set()
    assert any("chmod" in (problem.get("hint") or "") for problem in daemon.status()["problems"])
    path.chmod(0o600)
    wait_for_connection(charon, daemon)


def test_no_message_holds_a_key(charon: Charon, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_key("broken", f'id_type = "ID_FQDN"\nid = "x.lab"\nkey = "{KEY_B.decode()}"\nnonsense = 1\n')
    daemon.put_portal("san", portal_file())
    daemon.start("--log-level", "debug")
    wait_for_connection(charon, daemon)
    wait_until(daemon.problems, "the problem is reported")
    said = [daemon.tail(10_000), (daemon.runtime / "status.json").read_text(), charon.log_text()]
    said += [str(daemon.cli(verb)) for verb in ("status", "plan", "check")]
    said.append(str(daemon.cli("explain", ROW)))
    for text in said:
        assert text.strip()
        for key in (KEY_A, KEY_B):
            assert key.decode() not in text


def test_a_changed_route_changes_the_source_within_a_second(charon: Charon, daemon: Daemon) -> None:
    node = daemon.node
    daemon.put_key("group", group_file(KEY_GROUP))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)

    def source() -> list[bytes]:
        trees = [tree for name, tree in charon.connections().items() if name.startswith(CONNECTION)]
        return [address for tree in trees for address in tree["local_addrs"]]

    assert source() == [node.at.v4.encode()]
    node.add_address("10.10.0.77")
    node.ip("route", "add", f"{PORTAL}/32", "dev", "eth0", "src", "10.10.0.77")
    try:
        wait_until(
            lambda: source() == [b"10.10.0.77"], "the new source is used", timeout=1.5, detail=daemon.tail
        )
    finally:
        node.ip("route", "del", f"{PORTAL}/32")
        node.ip("address", "del", "10.10.0.77/24", "dev", "eth0")
    wait_until(lambda: source() == [node.at.v4.encode()], "the old source is used again")


def test_nothing_is_done_when_nothing_changes(charon: Charon, daemon: Daemon) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.put_settings("resync_interval = 1\n")
    daemon.start()
    wait_for_connection(charon, daemon)
    mark, passes = charon.log_mark(), daemon.passes()
    wait_until(lambda: daemon.passes() >= passes + 3, "three more passes are over")
    assert changes_in(charon.log_text(mark)) == []
    charon.load_psk("foreign", KEY_B, [C])  # control: the same log does show a load
    assert changes_in(charon.log_text(mark)) != []


@pytest.mark.parametrize(
    ("portal", "name"), [(PORTAL, CONNECTION), ("fd00:10::2", "iscsi-ipsec-fd00:10::2-3260")]
)
def test_every_managed_portal_has_a_trap_for_its_port_alone(
    charon: Charon, daemon: Daemon, portal: str, name: str
) -> None:
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file(portal))
    daemon.start()
    wait_for_connection(charon, daemon, name)
    policies = daemon.node.ip("xfrm", "policy").out
    selector = next(line for line in policies.splitlines() if f"dst {portal}/" in line)
    assert "proto tcp" in selector
    assert "dport 3260" in selector
    daemon.terminate()
    assert selector in daemon.node.ip("xfrm", "policy").out
