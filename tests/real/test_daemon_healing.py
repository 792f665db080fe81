"""Everything that charon, swanctl or a restart removes is loaded again; objects of others stay untouched."""

from __future__ import annotations

import pytest

from tests.support.admin import (
    CONNECTION,
    changes_in,
    key_file,
    our_connections,
    our_secrets,
    portal_file,
    wait_for_connection,
)
from tests.support.ike import KEY_A, KEY_B, KEY_GROUP, TARGET, A, Ike, connection
from tests.support.netlab import Charon, Daemon, Node, wait_until

HEALED_WITHIN = 2.0  # seconds, promised

FOREIGN = """
connections {
  foreign {
    remote_addrs = 192.0.2.7
    local { auth = psk
      id = me.lab }
    remote { auth = psk
      id = you.lab }
  }
}
secrets {
  ike-foreign {
    id = you.lab
    secret = "the foreign secret, long enough"
  }
}
"""


@pytest.mark.parametrize("again", ["--load-all", "--load-creds", "--load-conns"])
def test_connections_that_swanctl_wipes_are_back_within_two_seconds(
    charon: Charon, managed: Daemon, again: str
) -> None:
    secrets = our_secrets(charon)
    path = charon.write_swanctl(FOREIGN)
    mark = charon.log_mark()
    charon.swanctl(again, *([] if again == "--load-conns" else ["--noprompt"]), "--file", str(path))
    assert changes_in(charon.log_text(mark)), "nothing was wiped"
    wait_until(
        lambda: our_secrets(charon) == secrets and CONNECTION in our_connections(charon),
        "all is back",
        timeout=HEALED_WITHIN,
        detail=managed.tail,
    )
    if again != "--load-creds":
        assert "foreign" in charon.connections()


def test_a_charon_that_was_killed_gets_everything_back(charon: Charon, managed: Daemon) -> None:
    secrets = our_secrets(charon)
    charon.kill()
    wait_until(
        lambda: not managed.status()["charon"]["reachable"], "the loss is reported", detail=managed.tail
    )
    charon.start()
    assert our_secrets(charon) <= secrets
    wait_until(
        lambda: our_secrets(charon) == secrets and CONNECTION in our_connections(charon),
        "all is back",
        timeout=HEALED_WITHIN,
        detail=managed.tail,
    )


def test_a_charon_that_starts_after_the_daemon_gets_everything(charon: Charon, daemon: Daemon) -> None:
    charon.terminate()
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()  # READY=1 with charon down: the guard is what must be there
    assert guard_rules(daemon.node)
    charon.start()
    wait_for_connection(charon, daemon, timeout=HEALED_WITHIN)


def test_a_key_changed_while_charon_was_down_is_the_one_that_is_loaded(
    charon: Charon, managed: Daemon
) -> None:
    old = our_secrets(charon)
    charon.terminate()
    managed.put_key("a", key_file("a.lab", KEY_B))
    charon.start()
    wait_until(lambda: our_secrets(charon), "a secret is back", detail=managed.tail)
    wait_until(lambda: not our_secrets(charon) & old, "and it is the new one", detail=managed.tail)


def test_another_connection_of_our_name_is_replaced_by_ours_again(charon: Charon, managed: Daemon) -> None:
    before = charon.connections()[CONNECTION]
    managed.settle(2.2)  # nothing looks unasked for a while
    theirs = connection(Ike.V2, local="10.10.0.1", remote="10.10.0.2", local_id=A, remote_id=TARGET)
    charon.load_conn(CONNECTION, theirs)
    assert charon.connections()[CONNECTION] != before
    wait_until(
        lambda: charon.connections().get(CONNECTION) == before, "ours is back", timeout=5, detail=managed.tail
    )


def test_foreign_connections_and_secrets_are_never_touched(charon: Charon, daemon: Daemon) -> None:
    charon.load_psk("foreign-1", KEY_GROUP, ["fqdn:foreign.lab"])
    charon.load_conn(
        "foreign",
        connection(Ike.V2, local="10.10.0.1", remote="192.0.2.7", local_id=A, remote_id=TARGET),
    )
    tree = charon.connections()["foreign"]
    mark = charon.log_mark()
    daemon.put_portal("san", portal_file())
    daemon.start()
    path = daemon.put_key("a", key_file("a.lab", KEY_A))
    wait_for_connection(charon, daemon)
    old = our_secrets(charon)
    daemon.put_key("a", key_file("a.lab", KEY_B))
    wait_until(lambda: not our_secrets(charon) & old, "the key is changed", detail=daemon.tail)
    path.unlink()
    wait_until(lambda: not our_secrets(charon), "the key is gone", detail=daemon.tail)
    daemon.terminate()
    assert "foreign-1" in charon.secrets()
    assert charon.connections()["foreign"] == tree
    assert "foreign" not in charon.log_text(mark)


def test_a_foreign_connection_to_the_same_portal_stays(charon: Charon, daemon: Daemon) -> None:
    foreign = connection(Ike.V2, local="10.10.0.1", remote="10.10.0.2", local_id=A, remote_id=TARGET)
    charon.load_conn("foreign", foreign)
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.put_portal("san", portal_file())
    daemon.start()
    wait_for_connection(charon, daemon)
    assert "foreign" in charon.connections()


@pytest.mark.parametrize("how", ["terminated", "killed"])
def test_a_daemon_that_was_restarted_loads_nothing_again(charon: Charon, managed: Daemon, how: str) -> None:
    secrets, connections = our_secrets(charon), charon.connections()
    mark = charon.log_mark()
    managed.terminate() if how == "terminated" else managed.kill()
    assert our_secrets(charon) == secrets, "the daemon took its secrets with it"
    managed.start()
    wait_until(lambda: managed.status().get("pid") == managed.pid, "the new daemon has written status.json")
    assert changes_in(charon.log_text(mark)) == []
    assert charon.connections() == connections
    # control: the same log does show a load
    managed.put_key("a", key_file("a.lab", KEY_B))
    wait_until(lambda: changes_in(charon.log_text(mark)), "a change shows in the log", detail=managed.tail)


def test_a_change_made_while_the_daemon_was_down_is_found_at_its_start(
    charon: Charon, managed: Daemon
) -> None:
    old = our_secrets(charon)
    managed.terminate()
    managed.put_key("a", key_file("a.lab", KEY_B))
    managed.start()
    wait_until(
        lambda: our_secrets(charon) and not our_secrets(charon) & old,
        "the new key is in and the old one out",
        detail=managed.tail,
    )


def guard_rules(node: Node) -> str:
    """The guard as the kernel has it; empty when there is none."""
    shown = node.run(["nft", "list", "table", "inet", "iscsi_ipsec"], check=False)
    return shown.out if shown.ok else ""


def test_the_guard_outlives_the_daemon(charon: Charon, managed: Daemon) -> None:
    assert "10.10.0.2" in guard_rules(managed.node)
    managed.terminate()
    assert "10.10.0.2" in guard_rules(managed.node)


def test_a_flushed_guard_is_back_at_once(charon: Charon, managed: Daemon) -> None:
    managed.node.run(["nft", "flush", "ruleset"])
    wait_until(
        lambda: "10.10.0.2" in guard_rules(managed.node),
        "the guard is back",
        timeout=HEALED_WITHIN,
        detail=managed.tail,
    )
