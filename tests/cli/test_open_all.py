"""``open-all`` removes everything that the daemon loaded, and starting the daemon again closes the same portals."""

from __future__ import annotations

from tests.support.admin import ROW, key_file, our_connections, our_secrets, portal_file
from tests.support.ike import KEY_A
from tests.support.netlab import Charon, Daemon, wait_until
from tests.support.reported import write_session


def has_table(daemon: Daemon) -> bool:
    return daemon.node.run(["nft", "list", "table", "inet", "iscsi_ipsec"], check=False).rc == 0


def closed(daemon: Daemon) -> None:
    daemon.put_portal("san", portal_file(psk="a"))
    daemon.put_key("a", key_file("a.lab", KEY_A))
    daemon.start()
    wait_until(lambda: daemon.row(ROW)["closed"] and has_table(daemon), "the portal is closed")


def test_a_dry_run_and_a_missing_yes_open_nothing(charon: Charon, daemon: Daemon) -> None:
    closed(daemon)
    for words, code in ((("--dry-run",), 0), ((), 1)):
        answer = daemon.cli("open-all", *words)
        assert answer.rc == code
        assert ROW in answer.err
    assert daemon.running
    assert has_table(daemon)


def test_open_all_removes_everything_loaded_and_a_daemon_start_loads_it_again(
    charon: Charon, daemon: Daemon
) -> None:
    closed(daemon)
    write_session(daemon.folder / "sys", 7, "10.10.0.2")
    answer = daemon.cli("open-all", "--yes", f"--sysfs-dir={daemon.folder}/sys", check=True)
    assert "UNENCRYPTED from now on: session 7 to 10.10.0.2:3260" in answer.out
    assert "go back with: systemctl unmask" in answer.out
    wait_until(lambda: not daemon.running, "the daemon has ended")
    assert not has_table(daemon)
    assert our_connections(charon) == our_secrets(charon) == frozenset()
    daemon.start()
    wait_until(lambda: daemon.row(ROW)["closed"] and has_table(daemon), "the portal is closed again")


def test_without_a_daemon_portals_that_a_killed_one_closed_are_opened_too(
    charon: Charon, daemon: Daemon
) -> None:
    closed(daemon)
    daemon.kill()
    assert has_table(daemon)
    answer = daemon.cli("open-all", "--yes", check=True)
    assert "every portal is open" in answer.out
    assert not has_table(daemon)
